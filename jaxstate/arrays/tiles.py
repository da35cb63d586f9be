"""Copies of arrays that lie across their memory, made tile by tile, so that every byte that is read is used.

numpy copies a transposed array in the order of the copy, and so jumps from row to row of the original: it
reads a line of the cache for each element. Here a tile is copied first as it lies, into a buffer that stays
in the cache, and from there across. The order of the tiles is that of the original, which is read once.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import numpy as np

ACROSS = 512  # elements of a row of the copy that one tile writes
ALONG = 512  # bytes of a row of the original that one tile reads
PADDING = 64  # bytes behind each row of the buffer: rows a power of two apart would fight for the same lines
SMALL = 1 << 17  # bytes up to which a copy by numpy stays in the cache anyway
PIECE = 2 << 20  # bytes that stay in the cache between two uses
ROOM = 4 << 20  # bytes of a larger piece, where that reads runs of the original in place of crumbs

Box = tuple[slice, ...]


def fill(copy: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The copy, after the view's values were written into it; they must not overlap.

    >>> view = np.arange(20000.0).reshape(100, 200).T
    >>> bool((fill(np.empty((200, 100)), view) == view).all())
    True
    """
    axes = [axis for axis, size in enumerate(view.shape) if size > 1] if view.nbytes > SMALL else []
    by_stride, of_copy = (sorted(axes, key=lambda axis: -abs(x.strides[axis])) for x in (view, copy))
    if not axes or by_stride[-1] == of_copy[-1]:
        copy[...] = view
        return copy
    target, bits = _as_bits(*_forward(copy, view))
    along = _taken(view.shape, by_stride[::-1], max(1, ALONG // view.itemsize))
    across = _taken(view.shape, of_copy[::-1], ACROSS)
    tile = _grown(view.shape, by_stride, {axis: max(along[axis], across[axis]) for axis in axes})
    inner = [axis for axis in by_stride if along[axis] > 1]
    outer = [axis for axis in range(view.ndim) if axis not in by_stride]
    outer += [axis for axis in by_stride if axis not in inner]
    rows, row = (prod(tile.get(axis, 1) for axis in part) for part in (outer, inner))
    buffer = np.empty((rows, row + max(1, PADDING // view.itemsize)), bits.dtype)
    for box in _boxes(view.shape, tile, by_stride):
        room = _shaped(buffer, bits[box].shape, outer, inner)
        room[...] = bits[box]
        target[box] = room
    return copy


def _forward(copy: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, along every axis in the direction in which the original lies: then its runs are runs."""
    steps = tuple(slice(None, None, -1 if stride < 0 else None) for stride in view.strides)
    return copy[steps], view[steps]


def _as_bits(copy: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as whole numbers of the same size: numpy copies these faster than the dtypes it does not know."""
    if copy.dtype != view.dtype or view.itemsize not in (1, 2, 4, 8):
        return copy, view
    return copy.view(f"u{view.itemsize}"), view.view(f"u{view.itemsize}")


def _taken(shape: Sequence[int], axes: Sequence[int], room: int) -> dict[int, int]:
    """How much of each axis fits into so many elements, the first axis before the next.

    >>> _taken((40, 3, 5), (2, 1, 0), 100)
    {2: 5, 1: 3, 0: 6}
    """
    lengths = {}
    for axis in axes:
        lengths[axis] = min(shape[axis], max(1, room))
        room //= shape[axis]
    return lengths


def _grown(shape: Sequence[int], by_stride: Sequence[int], tile: dict[int, int]) -> dict[int, int]:
    """A tile that is as large as any, where the axes that it is made of are short."""
    room = ACROSS * ALONG // 8 // prod(tile.values())
    for axis in reversed(by_stride):
        before, tile[axis] = tile[axis], min(shape[axis], tile[axis] * max(1, room))
        room = room * before // tile[axis]
    return tile


def _boxes(shape: Sequence[int], tile: dict[int, int], by_stride: Sequence[int]) -> Iterator[Box]:
    """The boxes of this size that cover the shape, in the order of the original's memory."""
    starts = [range(0, shape[axis], tile[axis]) for axis in by_stride]
    for corner in product(*starts):
        at = dict(zip(by_stride, corner, strict=True))
        yield tuple(slice(at.get(axis, 0), at.get(axis, 0) + tile.get(axis, 1)) for axis in range(len(shape)))


def _shaped(
    buffer: np.ndarray, shape: Sequence[int], outer: Sequence[int], inner: Sequence[int]
) -> np.ndarray:
    """The part of the buffer that takes a tile of this shape, its axes as they lie in the original."""
    rows, row = ([shape[axis] for axis in part] for part in (outer, inner))
    tile = buffer[: prod(rows), : prod(row)].reshape(*rows, *row)
    return tile.transpose([[*outer, *inner].index(axis) for axis in range(len(shape))])


def pieces(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order, in pieces that fit the cache; each holds until the next is asked for.

    An array that is not contiguous is never copied as a whole.

    >>> [len(piece) for piece in pieces(np.zeros(PIECE + 3, "int8"))] == [PIECE, 3]
    True
    >>> b"".join(pieces(np.int8([[1, 2], [3, 4]]).T))
    b'\\x01\\x03\\x02\\x04'
    """
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        yield from (flat[at : at + PIECE].data for at in range(0, flat.size, PIECE))
    else:
        yield from _copied(array, np.empty(min(array.nbytes, ROOM), np.uint8))


def _rows(array: np.ndarray) -> int:
    """How many rows make a piece: those of whole runs, if the rows run along the original."""
    row, run = max(1, array.nbytes // len(array)), max(1, ALONG // array.itemsize)
    whole = max(1, PIECE // row // run) * run
    return whole if whole * row <= ROOM else PIECE // row


def _copied(array: np.ndarray, room: np.ndarray) -> Iterator[memoryview]:
    rows = _rows(array)
    if rows == 0:
        for part in array:
            yield from _copied(part, room)
        return
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        copy = room[: part.nbytes].view(array.dtype).reshape(part.shape)
        fill(copy, part)
        yield room[: part.nbytes].data
