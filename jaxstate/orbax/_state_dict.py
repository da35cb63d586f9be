"""State_dict: the weights of a checkpoint under torch's names, read from the disk when they are asked for.

A leaf is compared with its checksums when it is first read: with the leaf itself, if all of it is asked for,
and in a pass of its own over the leaf before a part of it is given.
"""

import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxstate.convert import with_metadata
from jaxstate.errors import CheckpointError
from jaxstate.lazy import Box, LazyArray, from_parts
from jaxstate.orbax._digests import Region, checksum
from jaxstate.orbax._engine import read_region
from jaxstate.orbax._items import MODEL
from jaxstate.orbax._leaves import Leaf, unstored
from jaxstate.orbax._restore import read_record

PIECE = 8 << 20  # bytes that a checksum is taken of at once


def state_dict(path: str | Path) -> dict[str, Any]:
    """torch's state_dict of a checkpoint's model, of which an array is read when its values are asked for.

    It equals `to_torch(path)["model"]`, and `js.save` writes it with one array in memory after the other.

    Args:
        path: what `save` wrote, or one step of a `Checkpointer`.

    Raises:
        CheckpointError: another program's checkpoint; and, when it is read, a leaf that the disk has damaged.

    >>> import tempfile
    >>> from jaxstate.binding import Binding, Rule
    >>> from jaxstate.orbax import save
    >>> path, binding = tempfile.mkdtemp() + "/c", Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> save(path, {"w": np.arange(6.0).reshape(3, 2)}, binding=binding)
    >>> lazy = state_dict(path)["fc.weight"]
    >>> lazy.shape, lazy[1].tolist()
    ((2, 3), [1.0, 3.0, 5.0])
    """
    record = read_record(path)
    rows = [(item, record.leaves.get(item, {})) for item in MODEL[:2]]
    leaves = {
        p: _lazy(Path(path).absolute(), f"{item}/{p}", leaf) for item, row in rows for p, leaf in row.items()
    }
    binding = record.binding if set(leaves) == set(record.binding.paths) else record.binding.of_parameters()
    if refused := [line for rule in binding.rules for line in rule.refused_leaves(leaves)]:
        raise CheckpointError("torch cannot hold these leaves:\n\t" + "\n\t".join(refused))
    return with_metadata(binding.lazy_state_dict(leaves), None, binding, "")


def _lazy(path: Path, name: str, leaf: Leaf) -> LazyArray:
    """One leaf of a checkpoint."""
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
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
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
