"""Whether boxes fill an array exactly, and the part of an array that lies in several of them.

A box is an offset and a shape. The test is exact and takes no pair of boxes: take the difference along
every axis, of the function that counts how many boxes hold a point. For one box that leaves +1 or -1 at each
of its corners; boxes tile the array if and only if these add up to those of the array itself.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.errors import FileError

MAX_CORNERS = 1 << 22


class Chunk(NamedTuple):
    """A part of an array: where it starts, and its values."""

    offset: tuple[int, ...]
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


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


def assembled(chunks: Sequence[Chunk], box: Box, dtype: np.dtype) -> np.ndarray:
    """The values inside a box, of chunks that tile the array; only those that meet the box are read.

    >>> rows = [Chunk((0, 0), np.array([[1, 2]])), Chunk((1, 0), np.array([[3, 4]]))]
    >>> assembled(rows, (slice(0, 2, 1), slice(1, 2, 1)), np.dtype(int)).tolist()
    [[2], [4]]
    """
    result = np.empty([span.stop - span.start for span in box], dtype)
    for chunk in chunks:
        spans = [_shared(span, o, n) for span, o, n in zip(box, chunk.offset, chunk.shape, strict=True)]
        if all(low < high for low, high in spans):
            there = tuple(
                slice(low - s.start, high - s.start) for (low, high), s in zip(spans, box, strict=True)
            )
            here = tuple(slice(low - o, high - o) for (low, high), o in zip(spans, chunk.offset, strict=True))
            result[there] = chunk.values[here]
    return result


def joined(shape: tuple[int, ...], dtype: np.dtype, chunks: Sequence[Chunk]) -> LazyArray:
    """The array that chunks tile. Each time that it or a part is asked for, it is assembled anew."""
    return from_parts(shape, dtype, partial(assembled, chunks, dtype=dtype))


def _shared(span: slice, offset: int, length: int) -> tuple[int, int]:
    return max(span.start, offset), min(span.stop, offset + length)
