"""A folder of `torch.distributed.checkpoint` by many writers: each writes parts of tensors, one the index.

The files are called as torch calls them, `__<rank>_0.distcp`, and `.metadata` comes last: until then nothing
in the folder is a checkpoint. Where each rank has metadata of its own, torch calls them `__<rank>.metadata`.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxstate.errors import FileError

from ._arrays import leaf
from ._atomic import replacing
from ._dcp_reader import METADATA
from ._dcp_writer import Chunk, index_of
from ._nesting import Path
from ._torch_writer import prepare
from ._zip_writer import ALIGNMENT


class Part(NamedTuple):
    """A part of a tensor: its name, where the part starts, and its values; or, without a start, an object."""

    name: str
    offset: tuple[int, ...] | None
    values: Any


def write_parts(folder: str, rank: int, parts: Iterable[Part]) -> bytes:
    """Write one process's parts, one in memory after the other; gives what `write_index` is to know.

    Raises:
        FileError: the folder cannot be written; a dtype that torch does not have.
    """
    name, rows = f"__{rank}_0.distcp", []
    try:
        with replacing(os.path.join(folder, name)) as file:
            for part in parts:
                file.write(bytes(-file.tell() % ALIGNMENT))
                start = file.tell()
                prepare(part.values, part.name).write(file)
                shape = None if part.offset is None else part.values.shape
                rows.append([part.name, part.offset, shape, name, start, file.tell() - start])
    except OSError as error:
        raise FileError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return json.dumps(rows).encode()


def write_index(
    folder: str,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    rows: Sequence[bytes],
    paths: Mapping[str, Path] | None = None,
    *,
    rank: int | None = None,
    save_id: str | None = None,
) -> None:
    """Write `.metadata`, with which the folder is a checkpoint.

    Args:
        folder: that of the parts.
        tensors: the dtype and shape of each.
        rows: what `write_parts` gave in each process.
        paths: where each name stands in nested dicts and lists; by default the names are one dict's.
        rank: of the process, if these are its own parts alone.
        save_id: what tells the parts of one save from those of another.

    Raises:
        FileError: the folder cannot be written.
    """
    chunks: dict[str, list[Chunk]] = {name: [] for name in tensors}
    objects: dict[str, Chunk] = {}
    for name, offset, shape, file, start, length in (row for text in rows for row in json.loads(text)):
        if offset is None:
            objects[name] = Chunk((), (), file, start, length)
        else:
            chunks[name].append(Chunk(tuple(offset), tuple(shape), file, start, length))
    found = {name: (leaf(np.empty(0, dtype)), shape) for name, (dtype, shape) in tensors.items()}
    dtypes = {name: (array.dtype.torch, shape) for name, (array, shape) in found.items() if array}
    name = METADATA if rank is None else f"__{rank}{METADATA}"
    try:
        with replacing(os.path.join(folder, name)) as file:
            file.write(index_of(dtypes, chunks, objects, paths, save_id))
    except OSError as error:
        raise FileError(f"{folder}: cannot be written: {error.strerror or error}") from error
