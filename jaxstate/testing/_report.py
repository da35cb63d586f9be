"""The report: what a failed comparison says, as text for people.

First what the caller asked about, then the first place where the two part, with both arrays there, then the
cause that was reproduced and what mends it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxstate.errors import quoted
from jaxstate.testing._align import Match
from jaxstate.testing._causes import Cause
from jaxstate.testing._distance import Distance
from jaxstate.testing._first_difference import Difference
from jaxstate.testing._layers import Layer

MOST_CAUSES = 3
MOST_KEYS = 8


def report(head: str, difference: Difference | None) -> str:
    """The message of a ParityError."""
    return "\n".join([head, *(f"  {line}" for line in _lines(difference))])


def _lines(found: Difference | None) -> Iterator[str]:
    if found is None:
        yield "every layer agrees within the tolerance: rounding adds up; a looser rtol= accepts it"
        return
    yield _place(found)
    yield from (f"  {line}" for line in array_lines(found.match, found))
    if found.between:
        yield f"torch runs in between: {', '.join(found.between)}"
    if found.reordered:
        yield "both sides hold the same values in different orders: an axis is flattened or moved another way"
    yield from _cause_lines(found.causes)
    if found.wrong:
        yield f"weights that are not torch's: {_shortened(found.wrong)}"
    yield f"{found.count} layer calls were compared" if found.count else "no layers could be compared"
    if found.unpaired:
        yield f"not compared: {_shortened(found.unpaired)}"


def _shortened(names: Sequence[str]) -> str:
    return quoted(names[:MOST_KEYS]) + ", ..." * (len(names) > MOST_KEYS)


def _place(found: Difference) -> str:
    if not found.is_between and found.layer is not None:
        return f"first layer that differs: {_named(found.layer)}"
    after = f'after "{found.before.name}", which agrees,' if found.before else "from the model's input on"
    until = f"what {_named(found.layer)} reads" if found.layer else "the model's output"
    return f"{after} {until} differs"


def _named(layer: Layer) -> str:
    again = f", call {layer.theirs.number + 1}" if layer.theirs.number else ""
    return f'"{layer.name}" ({layer.theirs.kind}), in JAX "{layer.ours.name}" ({layer.ours.kind}){again}'


def array_lines(match: Match | None, found: Difference) -> Iterator[str]:
    """Both arrays of a difference, as statistics."""
    if match is None:
        call = found.layer
        theirs, ours = (call.theirs, call.ours) if call else (None, None)
        arrays = ("input", "input") if found.is_between else ("output", "output")
        for side, one, name in zip(("torch", "jax"), (theirs, ours), arrays, strict=True):
            array = getattr(one, name, None)
            yield f"{side:6} {'no array' if array is None else array_line(array)}"
        return
    yield f"torch  {array_line(match.theirs)}"
    yield f"jax    {array_line(match.ours)}{f' ({match.how})' if match.how else ''}"
    yield distance_line(match.distance)


def array_line(array: np.ndarray) -> str:
    """One array's shape and moments.

    >>> array_line(np.float32([1, 2, 3]))
    'shape (3,) mean 2 std 0.816 min 1 max 3'
    """
    if array.size == 0 or array.dtype.kind == "c":
        return f"shape {array.shape}"
    wide = array.astype(np.float64)
    moments = {"mean": wide.mean(), "std": wide.std(), "min": wide.min(), "max": wide.max()}
    return f"shape {array.shape} " + " ".join(f"{name} {value:.3g}" for name, value in moments.items())


def distance_line(d: Distance) -> str:
    """A distance in words."""
    return (
        f"largest difference {d.max_abs:.3g} at {d.where}: torch {d.theirs:.6g}, jax {d.ours:.6g}; "
        f"{d.relative:.2g} of the scale, cosine {d.cosine:.6f}"
    )


def _cause_lines(causes: Iterable[Cause]) -> Iterator[str]:
    first, *others = [*causes] or [Cause("", "", 0.0)]
    if not first.says:
        yield "cause: not among those that are tried"
        return
    yield f"cause: JAX {first.says} ({first.how}: {first.remains:.1g} of the scale then remains)"
    yield f"mend:  {first.mend}"
    for other in others[: MOST_CAUSES - 1]:
        yield f"or:    JAX {other.says} ({other.remains:.1g} remains)"
