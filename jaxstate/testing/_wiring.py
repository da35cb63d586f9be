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
from jaxstate.testing._causes import Cause, error_of
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
    agreeing = _agreeing(run, rtol)
    ours = found_in(sources(_before_in_jax(run, layer), agreeing), layer.ours.input, rtol, wiring)
    before = [c for c in run.calls[: layer.position] if c.name in agreeing]
    theirs = ours and found_in(sources(before, agreeing), layer.theirs.input, rtol, wiring)
    if ours is None or theirs is None or ours.words == theirs.words:
        return ()
    remains = distance(layer.ours.input, ours.array).relative
    return (Cause(f"reads {ours.words}, and torch {theirs.words}", f"let it read {theirs.words}", remains),)


def _agreeing(run: Run, rtol: float) -> frozenset[str]:
    """Modules that mean the same on both sides: layers, and what holds layers and returns the same."""
    theirs = {call.name: call for call in run.calls}
    ours = {call.name: call for call in run.ours_calls}
    wider = [(pair.name, pair.module.path) for pair in run.pairs if not pair.is_layer]
    same = (
        name
        for name, path in wider
        if name in theirs
        and path in ours
        and error_of(best_match(theirs[name].output, ours[path].output)) <= rtol
    )
    return frozenset([*(pair.name for pair in run.pairs if pair.is_layer), *same])


def _before_in_jax(run: Run, layer: Layer) -> list[Call]:
    """JAX's calls that ended before this one, by torch's names; without those inside it."""
    own = layer.ours
    names = {pair.module.path: pair.name for pair in run.pairs}
    ended = run.ours_calls[: run.ours_calls.index(own)]
    outside = [c for c in ended if not c.name.startswith(f"{own.name}.")]
    return [Call(names.get(c.name, c.name), c.kind, c.number, c.inputs, c.outputs) for c in outside]


def sources(calls: Sequence[Call], known: frozenset[str]) -> list[Source]:
    """What calls of known modules, and of those inside them, read and returned: each once, latest first."""
    inside = tuple(f"{name}." for name in known if name)
    found: dict[tuple[tuple[int, ...], bytes], Source] = {}
    for call in calls:
        for source in _sides(call) if call.name in known or call.name.startswith(inside) else ():
            found.setdefault((source.array.shape, source.array.tobytes()), source)
    return [*found.values()][::-1]


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
