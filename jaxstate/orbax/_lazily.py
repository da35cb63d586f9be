"""Lazily: a leaf of a checkpoint, read from the disk when its values are asked for.

A leaf is compared with its checksums when it is first read: with the leaf itself, if all of it is asked for,
and in a pass of its own over the leaf before a part of it is given.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstate.arrays.checksum import crc32
from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.errors import CheckpointError
from jaxstate.orbax._digests import Region, checksum
from jaxstate.orbax._engine import read_region
from jaxstate.orbax._leaves import NUMBERS, Leaf, unstored

PIECE = 8 << 20  # bytes that a checksum is taken of at once


def lazy_moments(path: Path, item: str, leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """The leaves of an optimizer's item: arrays of floats are lazy, what counts or steers is read at once.

    Raises:
        CheckpointError: a leaf of the latter that the disk has damaged.
    """
    return {p: _moment(lazy_leaf(path, f"{item}/{p}", leaf), leaf) for p, leaf in leaves.items()}


def _moment(array: LazyArray, leaf: Leaf) -> Any:
    if leaf.number is not None:
        return NUMBERS[leaf.number](np.asarray(array)[()])
    is_large = array.ndim > 0 and jax.numpy.issubdtype(array.dtype, np.inexact)
    return array if is_large else np.asarray(array)


def lazy_leaf(path: Path, name: str, leaf: Leaf) -> LazyArray:
    """One leaf of a checkpoint, `item/path`; no random key and no number of Python's."""
    whole: Region = tuple((0, n) for n in leaf.kind.shape)
    unknown = {name}

    def read(box: Box) -> Any:
        region = tuple((span.start, span.stop) for span in box)
        if unknown and region != whole:
            _check(path, name, [crc == _checksum(path, name, leaf, part) for part, crc in leaf.digests])
        array = read_region(path, name, region)
        if unknown and region == whole:
            _check(
                path,
                name,
                [crc == checksum(array[tuple(slice(*ends) for ends in part)]) for part, crc in leaf.digests],
            )
        unknown.clear()
        return unstored(array, leaf)

    return _empty(leaf) if leaf.is_empty else from_parts(leaf.kind.shape, leaf.kind.dtype, read)


def _empty(leaf: Leaf) -> LazyArray:
    """A leaf that the record alone has."""
    array = np.empty(leaf.kind.shape, leaf.kind.dtype)
    return from_parts(array.shape, array.dtype, array.__getitem__)


def _checksum(path: Path, name: str, leaf: Leaf, region: Region) -> int:
    """The checksum of a region, of which a piece at a time is read."""
    crc = 0
    for piece in pieces(region, max(1, PIECE // np.dtype(leaf.stored.dtype).itemsize)):
        array = np.ascontiguousarray(read_region(path, name, piece))
        crc = crc32(array.reshape(-1).view(np.uint8).data, crc)
    return crc


def pieces(region: Region, limit: int) -> Iterator[Region]:
    """A region in pieces of at most so many elements, which follow each other in C order.

    >>> list(pieces(((0, 3), (5, 9)), 8))
    [((0, 2), (5, 9)), ((2, 3), (5, 9))]
    """
    lengths = [stop - start for start, stop in region]
    if prod(lengths) <= limit:
        yield region
        return
    axis = next(i for i, n in enumerate(lengths) if n > 1)
    (start, stop), step = region[axis], max(1, limit * lengths[axis] // prod(lengths))
    for at in range(start, stop, step):
        yield from pieces((*region[:axis], (at, min(at + step, stop)), *region[axis + 1 :]), limit)


def _check(path: Path, name: str, sound: list[bool]) -> None:
    if not all(sound):
        item, _, leaf = name.partition("/")
        raise CheckpointError(
            f"{path} is damaged: {item}: {leaf} are not the values that were saved; restore another step, or "
            "a copy of this one"
        )
