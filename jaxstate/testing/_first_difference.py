"""The first difference: the layer, or the place between two layers, where JAX leaves torch's way; and why.

Both models are watched while they run. Layers are passed in torch's order until one reads what torch's reads
and returns something else, or reads something else though all before it agreed. A difference below the
tolerance is followed up too, as later layers may enlarge it: it counts if its cause is found.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxstate.errors import quoted
from jaxstate.testing._align import Match, best_match
from jaxstate.testing._calls import Call
from jaxstate.testing._distance import distance
from jaxstate.testing._experiments import with_entries
from jaxstate.testing._layers import Layer, Run, differs, same_values
from jaxstate.testing._rewrites import Met, Rewrite, rewrites, rewriting
from jaxstate.testing._suspicions import suspicions
from jaxstate.testing._torch_side import Watch, watched
from jaxstate.testing._weights import wrong_entries

SMALL = 10  # differences this many times below the tolerance are not followed up
ROUNDING = 5e-8
LESS = 4  # an experiment succeeds if the difference gets this many times smaller


@dataclass(frozen=True)
class Cause:
    """A mistake that was reproduced: what JAX does, what puts it right, the difference that then remains."""

    says: str
    mend: str
    remains: float


@dataclass(frozen=True, eq=False)
class Difference:
    """Where the two part.

    Attributes:
        layer: the layer whose output differs, or whose input differs though all before it agreed; None for
            the model's output.
        before: where an input differs, the last layer that agreed, or None for the model's input.
        is_between: True if it lies between `before` and `layer`.
        match: the arrays that differ, laid over each other; None if their shapes cannot be.
        causes: mistakes that were reproduced, best first.
        between: torch's modules that ran in between.
        reordered: True if both sides hold the same values in different orders.
        count: of the layers that were compared.
        unpaired: torch's modules that could not be compared.
        wrong: the keys under which the JAX model, as it reads itself, does not hold what torch does.
    """

    layer: Layer | None
    before: Layer | None
    is_between: bool
    match: Match | None
    causes: tuple[Cause, ...]
    between: tuple[str, ...] = ()
    reordered: bool = False
    count: int = 0
    wrong: tuple[str, ...] = ()
    unpaired: tuple[str, ...] = ()


def first_difference(run: Run, output: Match | None, rtol: float) -> Difference | None:
    """Where the two models part, or None if every layer agrees and so does the output.

    Args:
        run: both models, watched.
        output: both outputs, laid over each other as the caller said.
        rtol: of the layers' scales.
    """
    found = _first(run, output, rtol)
    return found and replace(
        found, count=len(run.layers), wrong=tuple(wrong_entries(run)), unpaired=run.unpaired
    )


def _first(run: Run, output: Match | None, rtol: float) -> Difference | None:
    agreed: Layer | None = None
    for layer in run.layers:
        for found in (_between(run, agreed, layer, rtol), _within(run, layer, rtol)):
            if found is not None:
                return found
        agreed = layer
    return _at_the_end(run, agreed, output, rtol) if differs(output, rtol) else None


def _within(run: Run, layer: Layer, rtol: float) -> Difference | None:
    """The layer reads what torch's reads and returns something else."""
    before = _error(layer.output)
    if before <= rtol / SMALL or (layer.input and _error(layer.input) > before / LESS):
        return None
    ours = layer.ours.output
    tried = suspicions(run, layer)
    causes = _confirmed(((s.says, s.mend, s.run) for s in tried), ours, before, rtol, layer.output_order)
    causes = causes or tuple(_proportional(layer.output, rtol))
    if not causes and before <= rtol:
        return None
    return Difference(layer, None, False, layer.output, causes)


def _between(run: Run, agreed: Layer | None, layer: Layer, rtol: float) -> Difference | None:
    """The layer reads something else than torch's, though all layers before it agreed."""
    error = _error(layer.input)
    least = rtol / SMALL if agreed is None else max(rtol / SMALL, LESS * _error(agreed.output))
    if error <= least or layer.ours.input is None:
        return None
    causes = _rewritten(run, agreed, layer, rtol)
    if not causes and error <= rtol:
        return None
    return Difference(
        layer,
        agreed,
        True,
        layer.input,
        causes,
        _modules_between(run, agreed, layer),
        same_values(layer.theirs.input, layer.ours.input, rtol),
    )


def _at_the_end(run: Run, agreed: Layer | None, output: Match | None, rtol: float) -> Difference:
    causes = () if output is None else _rewritten(run, agreed, None, rtol, output)
    between = _modules_between(run, agreed, None)
    reordered = output is not None and same_values(output.theirs, output.ours, rtol)
    return Difference(None, agreed, True, output, causes, between, reordered)


def _error(match: Match | None) -> float:
    return np.inf if match is None else match.distance.relative


def _modules_between(run: Run, agreed: Layer | None, layer: Layer | None) -> tuple[str, ...]:
    """torch's modules that ended between two layers and hold no parameters: activations, pools."""
    start = -1 if agreed is None else agreed.position
    stop = len(run.calls) if layer is None else layer.position
    bare = {name: m for name, m in run.port.theirs.named_modules() if not list(m.parameters())}
    return tuple(f"{c.name} ({bare[c.name]})" for c in run.calls[start + 1 : stop] if c.name in bare)


def _rewritten(
    run: Run, agreed: Layer | None, layer: Layer | None, rtol: float, output: Match | None = None
) -> tuple[Cause, ...]:
    """The causes among mistakes in the functions that torch computes between two layers."""
    met_by = layer.input if layer else output
    ours = layer.ours.input if layer else output and output.ours
    before = _error(met_by)
    tries = []
    for rewrite in rewrites():
        met = Met()
        tries.append((rewrite, met, lambda rewrite=rewrite, met=met: _run(run, agreed, layer, rewrite, met)))
    found = [*_proportional(met_by, rtol), *_other_weights(run, layer, ours, before, rtol)]
    for rewrite, met, again in tries:
        error = _tried(again, ours, None if layer is None else layer.order)
        if met.names and error <= min(rtol, before / LESS):
            theirs = ", ".join(met.names)
            found.append(Cause(rewrite.says(theirs), rewrite.mend(theirs), error))
    return _best_first(found)


def _other_weights(
    run: Run, layer: Layer | None, ours: np.ndarray | None, before: float, rtol: float
) -> list[Cause]:
    """Weights of modules that cannot be watched, as of layers in a scan."""
    wrong = wrong_entries(run)
    if not wrong:
        return []

    def again() -> np.ndarray | None:
        return _met(watched(with_entries(run.port.theirs, wrong), run.port.run_torch), layer)

    error = _tried(again, ours, None if layer is None else layer.order)
    says = f"holds other weights: {quoted(wrong)}"
    mend = "js.load_state_dict(model, torch_module.state_dict(), binding)"
    return [Cause(says, mend, error)] if error <= min(rtol, before / LESS) else []


def _proportional(match: Match | None, rtol: float) -> list[Cause]:
    """JAX has a multiple of torch's array: a scale that one side applies and the other does not."""
    if match is None or (size := np.vdot(match.theirs, match.theirs)) == 0:
        return []
    factor = np.vdot(match.theirs, match.ours) / size
    remains = distance(match.theirs * factor, match.ours).relative
    if not remains <= rtol or abs(factor) < rtol:
        return []
    return [Cause(f"has {factor:.7g} times torch's values here", f"a factor of {1 / factor:.7g}", remains)]


def _run(
    run: Run, agreed: Layer | None, layer: Layer | None, rewrite: Rewrite, met: Met
) -> np.ndarray | None:
    """What the layer reads, or what the model returns, where torch computes otherwise in between."""

    def during(watch: Watch):
        def active() -> bool:
            begun = agreed is None or watch.ended[agreed.theirs.name] > agreed.theirs.number
            over = layer is not None and watch.begun[layer.theirs.name] > layer.theirs.number
            return begun and not over

        return rewriting(rewrite, active, met)

    return _met(watched(run.port.theirs, run.port.run_torch, during), layer)


def _met(calls: list[Call], layer: Layer | None) -> np.ndarray | None:
    """What a layer read, or the model returned, among all calls."""
    if layer is None:
        return calls[-1].output
    place = (layer.theirs.name, layer.theirs.number)
    return next((c.input for c in calls if (c.name, c.number) == place), None)


def _confirmed(
    tries: Iterator[tuple[str, str, Callable[[], np.ndarray]]],
    ours: np.ndarray | None,
    before: float,
    rtol: float,
    order: np.ndarray | None = None,
) -> tuple[Cause, ...]:
    """The mistakes that reproduce JAX's output."""
    errors = ((says, mend, _tried(again, ours, order)) for says, mend, again in tries)
    return _best_first([Cause(*tried) for tried in errors if tried[-1] <= min(rtol, before / LESS)])


def _best_first(causes: list[Cause]) -> tuple[Cause, ...]:
    """Those that leave the least; among equals, up to rounding, in the order in which they were tried."""
    least = min((cause.remains for cause in causes), default=0.0)
    return tuple(sorted(causes, key=lambda cause: cause.remains > LESS * max(least, ROUNDING)))


def _tried(
    again: Callable[[], np.ndarray | None], ours: np.ndarray | None, order: np.ndarray | None = None
) -> float:
    """How far an experiment remains from JAX; an experiment that torch refuses fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an experiment is a misuse, and torch may say so
            result = again()
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError):
        return np.inf
    match = best_match(result, ours, order)
    return np.inf if match is None else match.distance.relative
