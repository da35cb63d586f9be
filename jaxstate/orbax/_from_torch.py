"""From torch: a checkpoint from torch's arrays, however many, in little memory of this process.

Each leaf is laid out in a scratch file, block by block, and Orbax writes what is mapped from there. The file
stands beside the checkpoint, is as large, and has no name, so that it goes when this process does.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.arrays.lazy import Box
from jaxstate.arrays.placement import ALIGNMENT
from jaxstate.arrays.tiles import fill
from jaxstate.binding import Binding
from jaxstate.convert import bind, moved_in
from jaxstate.errors import CheckpointError, FileError
from jaxstate.io._shards import size_in_bytes
from jaxstate.optim._torch_dict.load_state_dict import moved_in as load_moments
from jaxstate.orbax._engine import write
from jaxstate.orbax._items import optimizer_leaves
from jaxstate.orbax._save import Training, new, prepared, whole


def from_torch(
    path: str | Path,
    state_dict: Mapping[str, Any],
    model: Any,
    opt_state: Any = None,
    *,
    osd: Mapping[str, Any] | None = None,
    optimizer: Any = None,
    label: Any = None,
    binding: Binding | None = None,
    step: int | None = None,
    scheduler: Any = None,
    rngs: Any = None,
    extra: Mapping[str, Any] | None = None,
    cast: bool = False,
    memory: int | str = "32MiB",
) -> None:
    """Write the checkpoint of a training that torch has saved, in little memory.

    It is what `save` would write of the model that `load_state_dict(model, state_dict)` makes, and of the
    optimizer's state that `js.optim.load_state_dict(opt_state, osd, binding)` makes.

    Args:
        path: a directory that does not exist yet. Beside it as much room is needed once more, meanwhile.
        state_dict: arrays by torch's keys, as `js.load` gives them: mapped, or lazy.
        model: the template; its leaves may be abstract, and no array is made of them.
        opt_state: the template of the optimizer's state, likewise: such as `jax.eval_shape(tx.init, params)`.
        osd: torch's dict of the optimizer, where there is an `opt_state`. LBFGS's vectors are put together as
            a whole.
        optimizer, label: as for `js.optim.load_state_dict`.
        binding: needed where the model does not tell its layers.
        step, scheduler, rngs, extra: as for `save`; the step is also that of counts that `osd` does not tell.
        cast: accept that values are rounded to the templates' dtypes.
        memory: the most that is held at once of what must be put together, of a stack or of chunks: a number
            of bytes, or text like "1GiB".

    Raises:
        StateDictError: a state_dict that does not fit, as `load_state_dict` says it.
        OptimizerError: an `osd` that does not fit, as `js.optim.load_state_dict` says it.
        CheckpointError: the directory exists, or there is no room; a template or a dict without the other.

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
    if (opt_state is None) != (osd is None):
        raise CheckpointError("opt_state= is the template of what osd= holds: pass both of them, or neither")
    path, step = new(path), whole(step)
    binding = bind(model) if binding is None else binding
    asked = {"optimizer": optimizer, "cast": cast, "label": label, "step": step}
    if osd is not None:  # what does not fit is said before anything is laid out
        load_moments(opt_state, osd, binding, _nowhere, _in_parts, **asked)
    place = _placing(_scratch(path, model, opt_state), _block(memory))

    def placed(leaves: Iterable[tuple[str, Any]], templates: Mapping[str, Any]) -> dict[str, Any]:
        return {path: place(leaf, templates[path]) for path, leaf in leaves}

    found = moved_in(model, state_dict, binding, placed, _in_parts, cast=cast)
    if osd is not None:
        opt_state = load_moments(opt_state, osd, binding, place, _in_parts, **asked)
    training = Training(found, opt_state, step, binding, scheduler, rngs, extra)
    write(path, prepared(training, copy=False))


def _scratch(path: Path, model: Any, opt_state: Any) -> "Scratch":
    """Room beside a checkpoint for all arrays of these templates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = [*adapter_of(model).leaves(model).values(), *optimizer_leaves(opt_state).values()]
    return Scratch(path.parent, [_size(leaf) for leaf in leaves if hasattr(leaf, "shape")])


def _placing(room: "Scratch", block: int) -> Callable[[Any, Any], np.ndarray]:
    """What lays a leaf out in the scratch, so many bytes at a time."""

    def place(leaf: Any, template: Any) -> np.ndarray:
        array = room.take(template.shape, np.dtype(template.dtype))
        for box in blocks(array.shape, max(1, block // array.dtype.itemsize)):
            fill(array[(*box, ...)], leaf[box])
        return array

    return place


def _nowhere(leaf: Any, template: Any) -> Any:
    return template


def _in_parts(template: Any) -> bool:
    return True


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
