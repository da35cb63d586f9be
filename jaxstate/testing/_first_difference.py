"""The first difference: the layer, or the place between two layers, where JAX leaves torch's way; and why.

Both models are watched while they run. Layers are passed in torch's order until one reads what torch's reads
and returns something else, or reads something else though all before it agreed. A difference below the
tolerance is followed up too, as later layers may enlarge it: it counts if its cause is found.
"""

from dataclasses import dataclass, replace

from jaxstate.testing._align import Match
from jaxstate.testing._causes import LESS, Cause, confirmed, error_of, proportional
from jaxstate.testing._gaps import Gap, causes_in, modules_in
from jaxstate.testing._layers import Layer, Run, differs, same_values
from jaxstate.testing._suspicions import suspicions
from jaxstate.testing._weights import wrong_entries

SMALL = 10  # differences this many times below the tolerance are not followed up


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
        found,
        causes=tuple(replace(cause, mend=run.port.spelled(cause.mend)) for cause in found.causes),
        count=len(run.layers),
        wrong=tuple(wrong_entries(run)),
        unpaired=run.unpaired,
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
    before = error_of(layer.output)
    if before <= rtol / SMALL or (layer.input and error_of(layer.input) > before / LESS):
        return None
    ours = layer.ours.output
    tried = suspicions(run, layer)
    causes = confirmed(((s.says, s.mend, s.run) for s in tried), ours, before, rtol, layer.output_order)
    causes = causes or tuple(proportional(layer.output, rtol))
    if not causes and before <= rtol:
        return None
    return Difference(layer, None, False, layer.output, causes)


def _between(run: Run, agreed: Layer | None, layer: Layer, rtol: float) -> Difference | None:
    """The layer reads something else than torch's, though all layers before it agreed."""
    error = error_of(layer.input)
    least = rtol / SMALL if agreed is None else max(rtol / SMALL, LESS * error_of(agreed.output))
    if error <= least or layer.ours.input is None:
        return None
    if _is_other_argument(layer) and not differs(layer.output, rtol):
        return None
    gap = Gap(run, agreed, layer, layer.input)
    causes = causes_in(gap, rtol)
    if not causes and error <= rtol:
        return None
    return Difference(
        layer,
        agreed,
        True,
        layer.input,
        causes,
        modules_in(gap),
        same_values(layer.theirs.input, layer.ours.input, rtol),
    )


def _is_other_argument(layer: Layer) -> bool:
    """Indices, or another shape: where the work is the same, these say nothing of it."""
    return layer.input is None or layer.input.theirs.dtype.kind in "iu"


def _at_the_end(run: Run, agreed: Layer | None, output: Match | None, rtol: float) -> Difference:
    gap = Gap(run, agreed, None, output)
    causes = () if output is None else causes_in(gap, rtol)
    reordered = output is not None and same_values(output.theirs, output.ours, rtol)
    return Difference(None, agreed, True, output, causes, modules_in(gap), reordered)
