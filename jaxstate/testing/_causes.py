"""Causes: experiments on torch's side, and which of them reproduce what JAX has."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from jaxstate.testing._align import Match, best_match
from jaxstate.testing._distance import distance

ROUNDING = 5e-8
RECOMPUTED = "recomputed from what both recorded"
LESS = 4  # an experiment succeeds if the difference gets this many times smaller


@dataclass(frozen=True)
class Cause:
    """A mistake that was reproduced.

    Attributes:
        says: what JAX does, as the end of a sentence.
        mend: what puts it right.
        remains: the difference between JAX and the reproduction, of the scale.
        how: it was reproduced.
    """

    says: str
    mend: str
    remains: float
    how: str = "tried in torch"


def error_of(match: Match | None) -> float:
    """How far two arrays are apart; infinitely, if they cannot be laid over each other."""
    return np.inf if match is None else match.distance.relative


def proportional(match: Match | None, rtol: float) -> list[Cause]:
    """JAX has a multiple of torch's array: a scale that one side applies and the other does not."""
    if match is None or (size := np.vdot(match.theirs, match.theirs)) == 0:
        return []
    factor = np.vdot(match.theirs, match.ours) / size
    remains = distance(match.theirs * factor, match.ours).relative
    if not remains <= min(rtol, error_of(match) / LESS) or abs(factor) < rtol:
        return []
    return [Cause(f"has {factor:.7g} times torch's values here", f"a factor of {1 / factor:.7g}", remains)]


def shifted(match: Match | None) -> list[Cause]:
    """JAX reads indices that count from another number."""
    if match is None or match.theirs.dtype.kind not in "iu" or match.ours.dtype.kind not in "iu":
        return []
    apart = np.unique(match.ours.astype(np.int64) - match.theirs)
    if apart.size != 1 or apart[0] == 0:
        return []
    says = f"reads indices that are {abs(apart[0])} {'more' if apart[0] > 0 else 'less'} than torch's"
    return [Cause(says, f"indices {-apart[0]:+d}", 0.0)]


def confirmed(
    tries: Iterable[tuple[str, str, Callable[[], np.ndarray | None]]],
    ours: np.ndarray | None,
    before: float,
    rtol: float,
    order: np.ndarray | None = None,
) -> tuple[Cause, ...]:
    """The mistakes that reproduce JAX's output."""
    errors = ((says, mend, tried(again, ours, order)) for says, mend, again in tries)
    return best_first([Cause(*row) for row in errors if row[-1] <= min(rtol, before / LESS)])


def best_first(causes: list[Cause]) -> tuple[Cause, ...]:
    """Those that leave the least; among equals, up to rounding, in the order in which they were tried."""
    least = min((cause.remains for cause in causes), default=0.0)
    return tuple(sorted(causes, key=lambda cause: cause.remains > LESS * max(least, ROUNDING)))


def tried(
    again: Callable[[], np.ndarray | None], ours: np.ndarray | None, order: np.ndarray | None = None
) -> float:
    """How far an experiment remains from JAX; an experiment that torch refuses fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an experiment is a misuse, and torch may say so
            result = again()
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return np.inf
    match = best_match(result, ours, order)
    return np.inf if match is None else match.distance.relative
