"""Whether boxes fill an array exactly.

A box is an offset and a shape. The test is exact and takes no pair of boxes: take the difference along
every axis, of the function that counts how many boxes hold a point. For one box that leaves +1 or -1 at each
of its corners; boxes tile the array if and only if these add up to those of the array itself.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from jaxstate.errors import FileError

MAX_CORNERS = 1 << 22


Corners = tuple[tuple[int, ...], tuple[int, ...]]
"""The offset and the shape of a box."""


def check_tiling(shape: tuple[int, ...], boxes: Sequence[Corners]) -> None:
    """Refuse boxes that overlap, leave a gap or reach out of the array.

    Raises:
        FileError: they do, or there are too many to tell.

    >>> check_tiling((2, 3), [((0, 0), (2, 1)), ((0, 1), (2, 2))])
    >>> check_tiling((2, 3), [((0, 0), (2, 1)), ((0, 2), (2, 1))])
    Traceback (most recent call last):
    jaxstate.errors.FileError: its 2 parts do not fill shape (2, 3) exactly
    """
    # An axis along which nothing is cut tells nothing, unless it has no points at all.
    cut = [
        axis for axis, n in enumerate(shape) if n == 0 or any((o[axis], s[axis]) != (0, n) for o, s in boxes)
    ]
    if len(boxes) << len(cut) > MAX_CORNERS:
        raise FileError(f"{len(boxes)} parts that are cut along {len(cut)} axes; that is more than is read")
    whole = ((0,) * len(cut), tuple(shape[axis] for axis in cut))
    inner = [(tuple(o[axis] for axis in cut), tuple(s[axis] for axis in cut)) for o, s in boxes]
    if _corners(inner) != _corners([whole]):
        raise FileError(f"its {len(boxes)} parts do not fill shape {shape} exactly")


def _corners(boxes: Sequence[Corners]) -> dict[tuple[int, ...], int]:
    """The signed corners of boxes, without those that cancel."""
    count: Counter[tuple[int, ...]] = Counter()
    for offset, shape in boxes:
        for side in product((0, 1), repeat=len(shape)):
            corner = tuple(o + n * s for o, n, s in zip(offset, shape, side, strict=True))
            count[corner] += -1 if sum(side) % 2 else 1
    return {corner: sign for corner, sign in count.items() if sign}
