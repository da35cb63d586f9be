"""Writes a folder that `torch.distributed.checkpoint.load` reads: one `.distcp` file, and `.metadata`.

Every tensor is one chunk. What the classes in `.metadata` are called and made of is in
`torch/distributed/checkpoint/metadata.py`; the pickle calls their constructors, which have not changed since
torch 2.0, and sets the fields that are newer.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import BinaryIO, NamedTuple

from jaxstate.errors import FileError

from ._arrays import Leaf, leaf
from ._dcp_reader import METADATA, contents_of, files_of
from ._folder_writer import write_folder
from ._nesting import EMPTY, Path, flat
from ._pickle_writer import dump
from ._records import Global, Opaque
from ._torch_writer import Archive, prepare
from ._walk import linked, spell
from ._zip_writer import ALIGNMENT

VERSION = "1.0.0"

_MODULE = "torch.distributed.checkpoint"


class Chunk(NamedTuple):
    """A part of a tensor: where it starts, its shape, and the bytes of the file that it is in."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


class _Item(NamedTuple):
    """One entry: the torch file that holds it, and the array that it is, if it is one."""

    archive: Archive
    array: Leaf | None


def save(obj: object, folder: str) -> None:
    """Write nested dicts and lists into a folder; see `jaxstate.save`.

    Raises:
        FileError: what the format cannot give back, with the path to it; a folder that cannot be written.
    """
    items, paths = _items(obj)
    spans: dict[str, tuple[int, int]] = {}
    name = _free_name(folder)
    write_folder(
        folder,
        {name: lambda file: _write(file, items, spans)},
        (METADATA, lambda names: _metadata(items, paths, spans, names[name])),
        stale=_old_files(folder),
    )


def _items(obj: object) -> tuple[dict[str, _Item], dict[str, Path]]:
    """The entries by their flat names, and the paths by theirs; those of empty dicts have no entry."""
    items: dict[str, _Item] = {}
    paths: dict[str, Path] = {}
    for path, value in flat(obj):
        hollow = path[-1] is EMPTY
        name = ".".join(map(str, path[:-1] if hollow else path))
        if name in paths:
            raise FileError(f'two entries are "{name[:200]}" when steps are joined by dots; rename one')
        paths[name] = path
        if not hollow:
            items[name] = _item(value, spell(linked(path)))
    return items, paths


def _item(value: object, place: str) -> _Item:
    archive, array = prepare(value, place), leaf(value)
    if array is not None and array.dtype.torch.startswith("bits"):
        raise FileError(f"{place}: an array of dtype {array.dtype.torch}, which torch's own load fails at")
    return _Item(archive, array)


def _write(file: BinaryIO, items: Mapping[str, _Item], spans: dict[str, tuple[int, int]]) -> None:
    """Write each entry behind the last, aligned, so that its tensor can be viewed where it lies."""
    for name, item in items.items():
        file.write(bytes(-file.tell() % ALIGNMENT))
        start = file.tell()
        item.archive.write(file)
        spans[name] = start, file.tell() - start


def _free_name(folder: str) -> str:
    names = (f"__0_{number}.distcp" for number in count())
    return next(name for name in names if not os.path.lexists(os.path.join(folder, name)))


def _old_files(folder: str) -> list[str]:
    """The files of the checkpoint that stands there, as far as it can be read."""
    try:
        return files_of(contents_of(folder))
    except FileError:
        return []


def _metadata(
    items: Mapping[str, _Item],
    paths: Mapping[str, Path],
    spans: Mapping[str, tuple[int, int]],
    file: str,
) -> bytes:
    described = {name: _described(item.array) for name, item in items.items()}
    places = {
        _named("metadata.MetadataIndex", name, _origin(item)): _named(
            "filesystem._StorageInfo", file, *spans[name]
        )
        for name, item in items.items()
    }
    return _dumped(described, paths, places)


def index_of(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    chunks: Mapping[str, Sequence[Chunk]],
    objects: Mapping[str, Chunk] = {},
    paths: Mapping[str, Path] | None = None,
    save_id: str | None = None,
) -> bytes:
    """The `.metadata` of tensors and objects by their flat names.

    Args:
        tensors: torch's name of the dtype, and the shape, of each.
        chunks: those of each tensor.
        objects: the place of each that is no tensor.
        paths: where each name stands in nested dicts and lists; by default the names are one dict's.
        save_id: what tells the parts of one save from those of another.
    """
    described = {name: _tensor(*found, chunks[name]) for name, found in tensors.items()}
    described |= {name: _named("metadata.BytesStorageMetadata") for name in objects}
    rows = [(name, _size(chunk.offset), chunk) for name, row in chunks.items() for chunk in row]
    rows += [(name, None, chunk) for name, chunk in objects.items()]
    places = {
        _named("metadata.MetadataIndex", name, offset): _named(
            "filesystem._StorageInfo", chunk.file, chunk.start, chunk.length
        )
        for name, offset, chunk in rows
    }
    paths = {name: (name,) for name in described} if paths is None else paths
    return _dumped(described, paths, places, save_id)


def _dumped(
    described: Mapping[str, Opaque],
    paths: Mapping[str, Path],
    places: Mapping[Opaque, Opaque],
    save_id: str | None = None,
) -> bytes:
    meta = None if save_id is None else _named("metadata.StorageMeta", None, save_id, None, [])
    newer = {"planner_data": paths, "storage_data": places, "storage_meta": meta, "version": VERSION}
    root = Opaque(Global(f"{_MODULE}.metadata", "Metadata"), (described,), newer)
    return dump(root, lambda value: value)


def _described(array: Leaf | None) -> Opaque:
    if array is None:
        return _named("metadata.BytesStorageMetadata")
    whole = Chunk((0,) * len(array.shape), array.shape, "", 0, 0)
    return _tensor(array.dtype.torch, array.shape, [whole])


def _tensor(dtype: str, shape: tuple[int, ...], chunks: Sequence[Chunk]) -> Opaque:
    properties = _named("metadata.TensorProperties", Global("torch", dtype))
    parts = [_named("metadata.ChunkStorageMetadata", _size(c.offset), _size(c.shape)) for c in chunks]
    return _named("metadata.TensorStorageMetadata", properties, _size(shape), parts)


def _origin(item: _Item) -> Opaque | None:
    return None if item.array is None else _size((0,) * len(item.array.shape))


def _named(name: str, *args: object) -> Opaque:
    module, _, attribute = name.rpartition(".")
    return Opaque(Global(f"{_MODULE}.{module}", attribute), args)


def _size(shape: tuple[int, ...]) -> Opaque:
    return Opaque(Global("torch", "Size"), (tuple(shape),))
