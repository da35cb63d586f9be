"""The part of an array that lies in several boxes of it: chunks of a file, or shards on devices.

Nothing is put together before it is asked for, and then each chunk's share goes straight to its place.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.arrays.tiles import fill


class Chunk(NamedTuple):
    """A part of an array: where it starts, and its values."""

    offset: tuple[int, ...]
    values: np.ndarray | LazyArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def joined(shape: tuple[int, ...], dtype: np.dtype, chunks: Sequence[Chunk]) -> LazyArray:
    """The array that chunks tile. Each time that it or a part is asked for, it is assembled anew."""
    write = partial(_write, chunks)
    return from_parts(shape, dtype, partial(assembled, chunks, dtype=dtype), write=write)


def assembled(chunks: Sequence[Chunk], box: Box, dtype: np.dtype) -> np.ndarray:
    """The values inside a box, of chunks that tile the array; only those that meet the box are read.

    >>> rows = [Chunk((0, 0), np.array([[1, 2]])), Chunk((1, 0), np.array([[3, 4]]))]
    >>> assembled(rows, (slice(0, 2, 1), slice(1, 2, 1)), np.dtype(int)).tolist()
    [[2], [4]]
    """
    result = np.empty([span.stop - span.start for span in box], dtype)
    _write(chunks, result, box)
    return result


def _write(chunks: Sequence[Chunk], out: np.ndarray, box: Box) -> None:
    for chunk, there, here in met(chunks, box):
        fill(out[(*there, ...)], chunk.values[here])


def met(chunks: Sequence[Chunk], box: Box) -> Iterator[tuple[Chunk, Box, Box]]:
    """The chunks that a box meets; of each, where in the box it lies, and what of it does.

    >>> rows = [Chunk((0,), np.array([1, 2])), Chunk((2,), np.array([3, 4])), Chunk((4,), np.array([5]))]
    >>> [(there, here) for _, there, here in met(rows, (slice(1, 4, 1),))]
    [((slice(0, 1, None),), (slice(1, 2, None),)), ((slice(1, 3, None),), (slice(0, 2, None),))]
    """
    for chunk in chunks:
        spans = [_shared(span, o, n) for span, o, n in zip(box, chunk.offset, chunk.shape, strict=True)]
        if all(low < high for low, high in spans):
            there = (slice(low - s.start, high - s.start) for (low, high), s in zip(spans, box, strict=True))
            here = (slice(low - o, high - o) for (low, high), o in zip(spans, chunk.offset, strict=True))
            yield chunk, tuple(there), tuple(here)


def _shared(span: slice, offset: int, length: int) -> tuple[int, int]:
    return max(span.start, offset), min(span.stop, offset + length)
