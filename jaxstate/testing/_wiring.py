"""Wiring: which recorded arrays a layer reads, on either side.

A residual that is taken from behind a norm, a norm before in place of after, a skip that is joined in another
order, the wrong token pooled: every layer is right, and its input comes from elsewhere. What each side reads
is looked for among what its layers read and returned before. Where both sides are found, in the same terms,
and are not the same, that is the mistake.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxstate.testing._align import best_match
from jaxstate.testing._arrays import floating
from jaxstate.testing._calls import Call
from jaxstate.testing._causes import RECOMPUTED, Cause, error_of
from jaxstate.testing._distance import distance
from jaxstate.testing._layers import Layer, Run
from jaxstate.testing._mixtures import Source, fitting, gated, joined, mixed, pooled, summed

Ways = Callable[[Sequence[Source], np.ndarray, float], Iterator[Source]]


@dataclass(frozen=True)
class Wiring:
    """Ways to make an input of what was there before, simple ones first."""

    ways: tuple[Ways, ...]


PLAIN = Wiring((lambda known, read, rtol: iter(fitting(known, read)), pooled, summed, joined, mixed))
GATED = Wiring(
    (*PLAIN.ways, gated)
)  # with activations in it, which are named better where torch computes them


def wiring_causes(run: Run, layer: Layer | None, rtol: float, wiring: Wiring) -> tuple[Cause, ...]:
    """What JAX's layer reads in place of what torch's reads, if both can be told."""
    if layer is None or layer.ours.input is None or layer.theirs.input is None:
        return ()
    layers = frozenset(pair.name for pair in run.pairs if pair.is_layer)
    known = (layers, _agreeing(run, rtol))
    ours = found_in(sources(_before_in_jax(run, layer), *known), layer.ours.input, rtol, wiring)
    theirs = ours and found_in(sources(run.calls[: layer.position], *known), layer.theirs.input, rtol, wiring)
    if ours is None or theirs is None or ours.words == theirs.words:
        return ()
    remains = distance(layer.ours.input, ours.array).relative
    says, mend = f"reads {ours.words}, and torch {theirs.words}", f"let it read {theirs.words}"
    return (Cause(says, mend, remains, RECOMPUTED),)


def _agreeing(run: Run, rtol: float) -> frozenset[str]:
    """What holds layers and returns the same on both sides."""
    theirs = {call.name: call.output for call in run.calls}
    ours = {call.name: call.output for call in run.ours_calls}
    pairs = [(pair.name, pair.module.path) for pair in run.pairs if not pair.is_layer]
    matches = ((name, best_match(theirs.get(name), ours.get(path))) for name, path in pairs)
    return frozenset(name for name, match in matches if error_of(match) <= rtol)


def _before_in_jax(run: Run, layer: Layer) -> list[Call]:
    """JAX's calls that ended before this one, by torch's names; without those inside it."""
    own = layer.ours
    names = {pair.module.path: pair.name for pair in run.pairs}
    ended = run.ours_calls[: run.ours_calls.index(own)]
    outside = [c for c in ended if not c.name.startswith(f"{own.name}.")]
    return [Call(names.get(c.name, c.name), c.kind, c.number, c.inputs, c.outputs) for c in outside]


def sources(calls: Sequence[Call], layers: frozenset[str], wider: frozenset[str]) -> list[Source]:
    """What calls read and returned, each once, the latest first.

    Args:
        layers: of these, and of what is inside them.
        wider: and of these alone.
    """
    inside, known = tuple(f"{name}." for name in layers), layers | wider
    own = _once([c for c in calls if c.name in known])
    deeper = _once([c for c in calls if c.name.startswith(inside) and c.name not in known])
    hidden = [source for key, source in deeper.items() if key not in own]
    return [*reversed(own.values()), *reversed(hidden)]


def _once(calls: Sequence[Call]) -> dict[tuple[tuple[int, ...], bytes], Source]:
    """Each array under its first name."""
    found: dict[tuple[tuple[int, ...], bytes], Source] = {}
    for source in (source for call in calls for source in _sides(call)):
        found.setdefault((source.array.shape, source.array.tobytes()), source)
    return found


def _sides(call: Call) -> Iterator[Source]:
    again = f" in call {call.number + 1}" if call.number else ""
    for verb, arrays in (("reads", call.inputs), ("returns", call.outputs)):
        for array in floating(arrays).values():
            if array.size:
                yield Source(f'what "{call.name or "the model"}" {verb}{again}', array)


def found_in(known: Sequence[Source], read: np.ndarray, rtol: float, wiring: Wiring) -> Source | None:
    """The simplest way to make what is read of what is known; None if there is none."""
    for ways in wiring.ways:
        for way in ways(known, read, rtol):
            if distance(read, way.array).relative <= rtol:
                return way
    return None
