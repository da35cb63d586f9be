"""From torch: a checkpoint from torch's arrays, however many, in little memory of this process.

Each leaf is laid out in a scratch file, block by block, and Orbax writes what is mapped from there. The file
stands beside the checkpoint, is as large, and has no name, so that it goes when this process does.
"""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import moved_in
from jaxstate.errors import CheckpointError, FileError
from jaxstate.io._shards import size_in_bytes
from jaxstate.lazy import Box
from jaxstate.orbax._engine import write
from jaxstate.orbax._save import Training, new, prepared, whole
from jaxstate.placement import ALIGNMENT
from jaxstate.tiles import fill


def from_torch(
    path: str | Path,
    state_dict: Mapping[str, Any],
    model: Any,
    *,
    binding: Binding | None = None,
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
    cast: bool = False,
    memory: int | str = "32MiB",
) -> None:
    """Write the checkpoint that `save(path, load_state_dict(model, state_dict))` would, in little memory.

    Args:
        path: a directory that does not exist yet. Beside it as much room is needed once more, meanwhile.
        state_dict: arrays by torch's keys, as `js.load` gives them: mapped, or lazy.
        model: the template; its leaves may be abstract, and no array is made of them.
        binding: needed where the model does not tell its layers.
        step, extra: as for `save`.
        cast: accept that values are rounded to the model's dtype.
        memory: the most that is held at once of what must be put together, of a stack or of chunks: a number
            of bytes, or text like "1GiB".

    Raises:
        StateDictError: a state_dict that does not fit, as `load_state_dict` says it.
        CheckpointError: the directory exists, or there is no room.

    >>> from jaxstate.binding import Binding, Rule
    >>> from jaxstate.orbax import state_dict
    >>> folder, binding = tempfile.mkdtemp(), Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> sd = {"fc.weight": np.eye(2, 3)}
    >>> from_torch(folder + "/c", sd, {"w": np.zeros((3, 2))}, binding=binding)
    >>> bool((state_dict(folder + "/c")["fc.weight"] == sd["fc.weight"]).all())
    True
    """
    if jax.process_count() > 1:
        raise CheckpointError("from_torch is for one process; several load_state_dict into shards, and save")
    path, block = new(path), _block(memory)
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Scratch(path.parent, [_size(leaf) for leaf in adapter_of(model).leaves(model).values()])

    def place(leaf: Any, template: Any) -> np.ndarray:
        array = room.take(template.shape, np.dtype(template.dtype))
        for box in blocks(array.shape, max(1, block // array.dtype.itemsize)):
            fill(array[(*box, ...)], leaf[box])
        return array

    def placed(found: Iterable[tuple[str, Any]], templates: Mapping[str, Any]) -> dict[str, Any]:
        return {path: place(leaf, templates[path]) for path, leaf in found}

    def is_parted(template: Any) -> bool:
        return True

    found = moved_in(model, state_dict, binding, placed, is_parted, cast=cast)
    write(path, prepared(Training(found, None, whole(step), binding, extra=extra), copy=False))


class Scratch:
    """Room for arrays in a file without a name, mapped; `take` gives it away piece by piece.

    Args:
        folder: on whose disk.
        sizes: the bytes of the arrays.

    Raises:
        CheckpointError: there is no room for them. It is claimed at once: a mapped file that finds the disk
            full when it is written ends the process.
    """

    def __init__(self, folder: Path, sizes: list[int]):
        size = max(1, sum(map(_padded, sizes)))
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                _claim(file.fileno(), size)
                self._bytes = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
        except OSError as error:
            raise CheckpointError(
                f"{folder} has no room for {size} bytes of scratch: {error.strerror}"
            ) from error
        self._start = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in the next piece."""
        size = prod(shape) * dtype.itemsize
        piece = self._bytes[self._start : self._start + size]
        self._start += _padded(size)
        return piece.view(dtype).reshape(shape)


def _claim(file: int, size: int) -> None:
    """Make a file so long; where the system can, on blocks of the disk that are its own from now on."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def blocks(shape: tuple[int, ...], limit: int) -> Iterator[Box]:
    """Boxes of at most so many elements that fill a shape, with sides as alike as can be.

    Rows of one side are columns of the other, so that flat boxes would read the file in crumbs.

    >>> [tuple((s.start, s.stop) for s in box) for box in blocks((4, 5), 12)]
    [((0, 4), (0, 3)), ((0, 4), (3, 5))]
    """
    sides = list(shape)
    while prod(sides) > limit:
        axis = sides.index(max(sides))
        sides[axis] = -(-sides[axis] // 2)
    starts = [range(0, n, max(1, side)) for n, side in zip(shape, sides, strict=True)]
    for cell in product(*starts):
        yield tuple(slice(a, min(a + s, n)) for a, s, n in zip(cell, sides, shape, strict=True))


def _block(memory: int | str) -> int:
    try:
        return size_in_bytes(memory)
    except FileError as error:
        raise CheckpointError(f'memory is a number of bytes or text like "1GiB", not {memory!r}') from error


def _size(leaf: Any) -> int:
    return prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
