"""Alignment: an activation of JAX's with the axes in torch's order, as far as the two agree on what they are.

Between the inputs and the outputs nobody says which axis is which. JAX has channels last and torch second;
torch's recurrent and attention layers may have time before batch; heads may be apart or merged. Of the known
ways to lay the one over the other, the one in which they are closest is taken. This judges no weights: with
data at random a wrong way does not make two arrays equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxstate.testing._distance import Distance, distance


@dataclass(frozen=True, eq=False)
class Match:
    """Two arrays, laid over each other.

    Attributes:
        theirs, ours: arrays of one shape, that of torch, or of a part of torch's array.
        distance: between them.
        how: what was done to JAX's array, or which part of torch's it is; "" for nothing.
    """

    theirs: np.ndarray
    ours: np.ndarray
    distance: Distance
    how: str


def best_match(
    theirs: np.ndarray | None, ours: np.ndarray | None, order: np.ndarray | None = None
) -> Match | None:
    """Lay JAX's array over torch's; None where nothing known makes the shapes equal.

    Args:
        order: of the elements of the last axis, where the Binding says that torch has another.
    """
    if theirs is None or ours is None:
        return None
    ways = [(theirs, a, how) for how, a in _ways(theirs.shape, ours, order)] or _parts(theirs, ours)
    found = (Match(one, other, distance(one, other), how) for one, other, how in ways)
    return min(found, key=lambda match: match.distance.relative, default=None)


def _ways(
    shape: tuple[int, ...], ours: np.ndarray, order: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray]]:
    if ours.shape == shape:
        yield "", ours
        if order is not None and len(order) == shape[-1]:
            yield "flattened in torch's order", ours[..., order]
    if ours.ndim > 0 and ours.shape == shape[1:]:
        yield "repeated for the batch", np.broadcast_to(ours, shape)
    if ours.ndim > 2 and _moved(ours.shape) == shape:
        yield "channels moved", np.moveaxis(ours, -1, 1)
    if ours.ndim > 1 and (ours.shape[1], ours.shape[0], *ours.shape[2:]) == shape:
        yield "first two axes swapped", np.swapaxes(ours, 0, 1)
    if ours.shape != shape and ours.size == np.prod(shape, dtype=int) and _nested(ours.shape, shape):
        yield "axes merged", ours.reshape(shape)


def _parts(theirs: np.ndarray, ours: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """JAX has what stands first or last on one of torch's axes, as a class token does, and not the rest."""
    axes = [n for n in range(1, theirs.ndim) if theirs.shape[:n] + theirs.shape[n + 1 :] == ours.shape]
    ends = {"first": 0, "last": -1}
    return [
        (np.take(theirs, end, n), ours, f"the {word} of torch's axis {n}")
        for n in axes
        for word, end in ends.items()
        if theirs.shape[n]
    ]


def _moved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1])


def _nested(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """True if one shape merges neighbouring axes of the other."""
    few, many = sorted((one, other), key=len)
    ends = set(np.cumprod(many, dtype=int).tolist())
    return len(few) < len(many) and {1, *np.cumprod(few, dtype=int).tolist()} <= ends | {1}
