"""Gaps: the places between two layers, and what may have gone wrong there.

What torch computes in a gap is computed otherwise, in its own run, to see whether the next layer then reads
what JAX's does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np

from jaxstate.testing._align import Match
from jaxstate.testing._attention_causes import attention_causes
from jaxstate.testing._calls import Call
from jaxstate.testing._causes import (
    LESS,
    Cause,
    best_first,
    confirmed,
    error_of,
    proportional,
    shifted,
    tried,
)
from jaxstate.testing._experiments import with_entries
from jaxstate.testing._layers import Layer, Run
from jaxstate.testing._rewrites import ACTIVATIONS, Met, activations, rewrites, rewriting
from jaxstate.testing._stand_ins import activation_calls, computed, standing_in
from jaxstate.testing._torch_side import Watch, watched
from jaxstate.testing._weights import guessed_between, held_between
from jaxstate.testing._wiring import GATED, PLAIN, wiring_causes


@dataclass(frozen=True, eq=False)
class Gap:
    """Where what two sides have begins to differ though all layers before agreed.

    Attributes:
        run: both models, watched.
        agreed: the last layer that agreed; None for the model's input.
        layer: the layer that reads something else; None for the model's output.
        match: what both sides have at its end.
        inside: if not "", the torch module that it begins with, in place of the end of `agreed`: a branch
            of that module may have ended before.
    """

    run: Run
    agreed: Layer | None
    layer: Layer | None
    match: Match | None
    inside: str = ""

    @property
    def ours(self) -> np.ndarray | None:
        """What JAX has at its end."""
        return self.layer.ours.input if self.layer else self.match and self.match.ours

    @property
    def order(self) -> np.ndarray | None:
        return None if self.layer is None else self.layer.order

    @property
    def calls(self) -> list[Call]:
        """torch's calls that ended in it."""
        start = -1 if self.agreed is None or self.inside else self.agreed.position
        stop = len(self.run.calls) if self.layer is None else self.layer.position
        found = self.run.calls[start + 1 : stop]
        return [c for c in found if c.name.startswith(f"{self.inside}.")] if self.inside else found

    def is_open(self, watch: Watch) -> bool:
        """True while torch runs in it."""
        return self._has_begun(watch) and not self._is_over(watch)

    def _has_begun(self, watch: Watch) -> bool:
        if self.inside and self.layer is not None:
            return watch.begun[self.inside] > self.layer.theirs.number
        return self.agreed is None or watch.ended[self.agreed.theirs.name] > self.agreed.theirs.number

    def _is_over(self, watch: Watch) -> bool:
        layer = self.layer
        return layer is not None and watch.begun[layer.theirs.name] > layer.theirs.number


def causes_in(gap: Gap, rtol: float) -> tuple[Cause, ...]:
    """The mistakes in a gap that reproduce what JAX has at its end."""
    wide = _widened(gap)
    found = _causes(gap, rtol) or (_causes(wide, rtol) if wide else ())
    return found or wiring_causes(gap.run, gap.layer, rtol, GATED)


def modules_in(gap: Gap) -> tuple[str, ...]:
    """torch's modules that ran in it and hold no parameters: activations, pools."""
    bare = {name: m for name, m in gap.run.port.theirs.named_modules() if not list(m.parameters())}
    return tuple(f"{c.name} ({bare[c.name]})" for c in gap.calls if c.name in bare)


def _widened(gap: Gap) -> Gap | None:
    """From the beginning of the innermost module that both ends are in."""
    if gap.agreed is None or gap.layer is None:
        return None
    ends = (gap.agreed.theirs.name.split(".")[:-1], gap.layer.theirs.name.split(".")[:-1])
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    inside = ".".join(part for part, _ in same)
    return replace(gap, inside=inside) if inside else None


def _causes(gap: Gap, rtol: float) -> tuple[Cause, ...]:
    run, layer = gap.run, gap.layer
    first = [*shifted(gap.match), *proportional(gap.match, rtol), *_other_weights(gap, rtol)]
    found = (
        wiring_causes(run, layer, rtol, PLAIN) or attention_causes(run, layer, rtol) or _rewritten(gap, rtol)
    )
    tries = (*_skipped(gap), *_stood_in(gap))
    return best_first([*first, *found]) or confirmed(tries, gap.ours, error_of(gap.match), rtol, gap.order)


def _rewritten(gap: Gap, rtol: float) -> Iterator[Cause]:
    """Mistakes in the functions that torch computes."""
    for rewrite in rewrites():
        met = Met()
        error = tried(partial(_again, gap, partial(rewriting, rewrite, met=met)), gap.ours, gap.order)
        if met.names and error <= min(rtol, error_of(gap.match) / LESS):
            theirs = ", ".join(met.names)
            yield Cause(rewrite.says(theirs), rewrite.mend(theirs), error)


def _stood_in(gap: Gap) -> Iterator[tuple[str, str, Callable[[], np.ndarray | None]]]:
    """Other activations in the place of torch's modules."""
    calls = activation_calls(gap.run.port.theirs, gap.calls)
    theirs = computed(calls[0]) if calls else ""
    for words, function in activations().items() if calls else ():
        says = f"computes {words} where torch's {calls[0].kind} computes {theirs}"
        context = partial(standing_in, gap.run.port.theirs, calls, function)
        yield says, ACTIVATIONS.get(theirs, theirs), partial(_again, gap, context)


def _skipped(gap: Gap) -> Iterator[tuple[str, str, Callable[[], np.ndarray | None]]]:
    """Layers that torch calls and JAX, which has them, never does."""
    called = {call.name for call in gap.run.ours_calls}
    paths = {pair.name: pair.module.path for pair in gap.run.pairs if pair.is_layer}
    for call in [c for c in gap.calls if c.name in paths and paths[c.name] not in called]:
        context = partial(standing_in, gap.run.port.theirs, [call], lambda x: x)
        yield f'never calls "{call.name}"', f"x = model.{paths[call.name]}(x)", partial(_again, gap, context)


def _other_weights(gap: Gap, rtol: float) -> tuple[Cause, ...]:
    """Weights of modules that cannot be watched, as of layers in a scan, and of tables that none holds."""
    port = gap.run.port
    again = lambda entries: _met(watched(with_entries(port.theirs, entries), port.run_torch), gap.layer)  # noqa: E731
    held = (*held_between(gap.run), *guessed_between(gap.run))
    tries = ((says, mend, partial(again, entries)) for says, mend, entries in held)
    return confirmed(tries, gap.ours, error_of(gap.match), rtol, gap.order)


def _again(gap: Gap, context: Callable[[Callable[[], bool]], Any]) -> np.ndarray | None:
    """What torch has at the end of a gap where it computes otherwise in between.

    Args:
        context: makes the one to run in, of whether torch is in between now.
    """
    during = lambda watch: context(lambda: gap.is_open(watch))  # noqa: E731
    return _met(watched(gap.run.port.theirs, gap.run.port.run_torch, during), gap.layer)


def _met(calls: list[Call], layer: Layer | None) -> np.ndarray | None:
    """What a layer read, or the model returned, among all calls."""
    if layer is None:
        return calls[-1].output
    place = (layer.theirs.name, layer.theirs.number)
    return next((c.input for c in calls if (c.name, c.number) == place), None)
