"""Layers: every call of a layer that both sides made, side by side, in the order in which torch made them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxstate.testing._align import Match, best_match
from jaxstate.testing._arrays import floating
from jaxstate.testing._calls import Call, Module
from jaxstate.testing._distance import distance
from jaxstate.testing._pairs import Pair, order_of, pairs_by_name, pairs_of
from jaxstate.testing._port import Port
from jaxstate.testing._steps import in_torchs_calls
from jaxstate.testing._torch_side import entries_of, watched


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of one layer on both sides.

    Attributes:
        pair: the two modules.
        theirs, ours: the calls.
        position: of torch's call among all of torch's calls.
        input: the first arguments, laid over each other; None where they cannot be.
        output: the first results likewise.
        order: of the last axis of what it reads, where torch flattens an image in another.
        output_order: the same of what it returns; a norm passes the order on, a matrix does not.
    """

    pair: Pair
    theirs: Call
    ours: Call
    position: int
    input: Match | None
    output: Match | None
    order: np.ndarray | None = None
    output_order: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.theirs.name or "the model"

    @property
    def module(self) -> Module:
        return self.pair.module


@dataclass(frozen=True, eq=False)
class Run:
    """Both models, watched while they ran: what `first_difference` and `compare` look at."""

    port: Port

    @cached_property
    def calls(self) -> list[Call]:
        """All of torch's calls."""
        return watched(self.port.theirs, self.port.run_torch)

    @cached_property
    def ours_calls(self) -> list[Call]:
        """All of JAX's calls."""
        return self.port.side.watched(self.port.ours, self.port.run_jax)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The modules that are one."""
        port, entries = self.port, self.entries
        names = [name for name, _ in port.theirs.named_modules()]
        told = pairs_of(port.binding, names, port.modules) if port.binding else []
        return told if port.own else [*pairs_by_name(entries, port.modules, told)]

    @cached_property
    def layers(self) -> list[Layer]:
        """Calls of layers that both sides made."""
        pairs = {pair.name: pair for pair in self.pairs if pair.is_layer}
        ours = self._jax_calls(pairs.values())
        return [
            self._layer(pairs[call.name], call, other, position)
            for position, call in enumerate(self.calls)
            if call.name in pairs
            and (other := ours.get((pairs[call.name].module.path, call.number))) is not None
        ]

    def _jax_calls(self, pairs: Iterable[Pair]) -> dict[tuple[str, int], Call]:
        """JAX's calls of these modules, by path and by the number of torch's call that each is."""
        theirs, ours = (_by_name(calls) for calls in (self.calls, self.ours_calls))
        paths = {pair.module.path: pair.name for pair in pairs}
        found = (in_torchs_calls(theirs.get(paths[p], []), calls) for p, calls in ours.items() if p in paths)
        return {(call.name, call.number): call for calls in found for call in calls}

    @property
    def unpaired(self) -> tuple[str, ...]:
        """torch's modules with entries of their own that no pair covers, as those in a scan."""
        owners = dict.fromkeys(key.rpartition(".")[0] for key in self.entries)
        layers = [pair for pair in self.pairs if pair.is_layer]
        covered = [pair.name for pair in layers if pair.name in owners or pair.module.is_layer]
        inside = [name for name in owners for c in covered if name == c or not c or name.startswith(f"{c}.")]
        return tuple(name for name in owners if name not in inside)

    @cached_property
    def entries(self) -> dict[str, np.ndarray]:
        """torch's state_dict."""
        return entries_of(self.port.theirs)

    @cached_property
    def images(self) -> list[tuple[int, ...]]:
        """The shapes (C, H, W) of the images that torch's modules returned."""
        return list(dict.fromkeys(a.shape[1:] for c in self.calls for a in c.outputs.values() if a.ndim > 2))

    def _layer(self, pair: Pair, theirs: Call, ours: Call, position: int) -> Layer:
        order = None
        if theirs.input is not None and theirs.input.ndim:
            order = order_of(self.port.binding, pair.name, theirs.input.shape[-1])
        weight = self.entries.get(f"{pair.name}.weight")
        after = order if weight is not None and weight.ndim == 1 else None
        outputs = [best_match(theirs.output, a, after) for a in floating(ours.outputs).values()]
        closest = min((m for m in outputs if m), key=lambda m: m.distance.relative, default=None)
        read = best_match(theirs.input, ours.input, order)
        return Layer(pair, theirs, ours, position, read, closest, order, after)


def _by_name(calls: Iterable[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.name, []).append(call)
    return found


def differs(match: Match | None, rtol: float) -> bool:
    """True if two arrays are further apart than the tolerance, or of other shapes."""
    return match is None or not match.distance.relative <= rtol


def same_values(theirs: np.ndarray | None, ours: np.ndarray | None, rtol: float) -> bool:
    """True if two arrays hold the same values, each in its own order."""
    if theirs is None or ours is None or theirs.size != ours.size or theirs.size < 2:
        return False
    return distance(np.sort(theirs, axis=None), np.sort(ours, axis=None)).relative <= rtol
