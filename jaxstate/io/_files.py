"""The door of `io`: `load` and `save`, which choose a format and name the file in every error."""

import os
from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxstate.errors import FileError

from . import (
    _dcp_ranks,
    _dcp_writer,
    _folders,
    _index,
    _legacy_reader,
    _legacy_writer,
    _safetensors_reader,
    _safetensors_writer,
    _shards,
    _torch_writer,
    _torch_zip,
    _zip,
)
from ._atomic import replacing
from ._mapping import file_bytes
from ._recognise import LEGACY, SAFETENSORS, TORCH, recognise

_READERS = MappingProxyType(
    {TORCH: _torch_zip.read, LEGACY: _legacy_reader.read, SAFETENSORS: _safetensors_reader.read}
)
_WRITERS = MappingProxyType(
    {
        "pt": _torch_writer.prepare,
        "legacy": _legacy_writer.prepare,
        "safetensors": _safetensors_writer.prepare,
    }
)


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    mmap: bool = True,
    verify: bool = False,
) -> Any:
    """What torch.load(path) would give, with read-only numpy arrays in the place of tensors.

    Args:
        path: a file that `torch.save` (of any torch since 0.1.10), `torch.jit.save`, `torch.export.save` or
            safetensors wrote; its content decides which, not its name. Or the `*.index.json` of a checkpoint
            in several such files, or a folder: of Hugging Face, in which `model.safetensors` counts before
            its index, and either before `pytorch_model.bin`; or of `torch.distributed.checkpoint`. Or several
            folders, in which each host has written its own part (`jaxstate.sharded.save(shared=False)`).
        mmap: view the file as it lies on disk; nothing is read before it is used. False reads it at once.
        verify: read all of it once and compare the checksums that archives have. The other formats have none:
            their sizes are compared in any case.

    Returns:
        The object in the file. Tensors that share memory in torch share it here. Of TorchScript and of
        torch.export, the state_dict; of safetensors, a dict in the order of the header. What has no
        counterpart in Python or numpy is an inert record: `Opaque`, `Global`, `Raw`, `Storage`; of a module
        or an optimizer that was pickled whole, `jaxstate.io.state_dict_of` makes its state_dict. Several
        files with an index give one dict in the order of the index. Of `torch.distributed.checkpoint`, the
        nested object; a tensor in several chunks is a `jaxstate.LazyArray`, of which an index reads no more
        than it asks for; where the folders of hosts are missing, what it asks for may be missing too, and
        that raises FileError then. Where each rank has metadata of its own, a value or a whole tensor that is
        not the same in all is a record of what each has, `PerRank`.

    Raises:
        FileError: missing, damaged, hostile, or of another format; files that do not fit their index.

    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "net.pt")
    >>> save({"weight": np.eye(2), "step": 3}, path)
    >>> loaded = load(path)
    >>> loaded["step"], bool((loaded["weight"] == np.eye(2)).all())
    (3, True)
    """
    if isinstance(path, list | tuple) and path:
        return _loaded_together([path_name(one) for one in path], mmap)
    name = path_name(path)
    try:
        return _loaded(name, mmap, verify)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def _loaded_together(names: Sequence[str], mmap: bool):
    try:
        return _dcp_ranks.read(names, mmap)
    except FileError as error:
        raise FileError(f"{', '.join(names)}: {error}") from error


def _loaded(name: str, mmap: bool, verify: bool):
    read_file = partial(_loaded_file, mmap=mmap, verify=verify)
    if os.path.isdir(name):
        return _folders.read(name, read_file, mmap)
    return _index.read(name, read_file) if name.endswith(_index.SUFFIX) else read_file(name)


def _loaded_file(name: str, mmap: bool, verify: bool):
    data = file_bytes(name, mmap)
    format, what = recognise(data)
    if format is None:
        raise FileError(what)
    if verify and format == TORCH:
        _zip.verify(data)
    return _READERS[format](data)


def format_of(path: str | os.PathLike[str]) -> str:
    """Which format a file has, by its first bytes: "pt", "legacy" or "safetensors"; "folder" of a folder.

    Raises:
        FileError: missing, or of another format.
    """
    name = path_name(path)
    try:
        if os.path.isdir(name):
            return "folder"
        format, what = recognise(file_bytes(name, True))
        if format is None:
            raise FileError(what)
        return format
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def save(
    obj,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write what torch.save(obj, path) would, such that torch.load(path, weights_only=True) reads it.

    Args:
        obj: dicts, lists, tuples, numbers and text, with arrays of numpy, JAX or torch in them, or with
            anything that has `shape`, `dtype` and `__array__`, such as `jaxstate.LazyArray`: it is made when
            it is written, and one at a time is in memory. The object is not changed. Arrays that overlap in
            memory are one storage in the file, as tied weights are in torch; JAX arrays are values and never
            share one.
        path: where to. What stands there is replaced at once when all is written, and stays whole if not.
        format: "pt", "safetensors", "dcp", or "legacy" for a torch before 1.6; by default safetensors where
            the name ends so or `max_shard_size` is given, and "pt" elsewhere. A safetensors file holds a flat
            dict of arrays. "dcp" is a folder of `torch.distributed.checkpoint`: nested dicts and lists with
            text as keys, without the `_metadata` of a state_dict. An optimizer's ids pass, and its names
            (`optim.state_dict(..., keys="fqn")`), which torch's `set_optimizer_state_dict` asks for.
        max_shard_size: makes `path` a folder as Hugging Face writes it: `model.safetensors`, or, where a file
            would be larger than this, several and an index. Bytes, or text such as "5GB" or "500MiB".

    Raises:
        FileError: something in `obj` that weights_only or the format cannot read back, with the path to it
            and before a byte is written; or the file cannot be written.

    >>> import numpy as np, tempfile, os
    >>> folder = tempfile.mkdtemp()
    >>> save({"weight": np.eye(2), "bias": np.ones(2)}, folder, max_shard_size=32)
    >>> sorted(os.listdir(folder))[1:]
    ['model-00002-of-00002.safetensors', 'model.safetensors.index.json']
    >>> load(folder)["weight"].tolist() == np.eye(2).tolist()
    True
    """
    name = path_name(path)
    try:
        _saver(format, name, max_shard_size)(obj, name)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def _saver(format: str | None, name: str, max_shard_size: int | str | None):
    """What writes an object under a name."""
    if max_shard_size is not None:
        if format not in (None, "safetensors"):
            raise FileError(f'max_shard_size is for safetensors, not for format="{format}"')
        _folders.check_kind(name, distributed=False)
        return partial(_shards.save, max_shard_size=max_shard_size)
    if format == "dcp":
        _folders.check_kind(name, distributed=True)
        return _dcp_writer.save
    prepare = _WRITERS.get(_format(name) if format is None else str(format))
    if prepare is None:
        raise FileError(f'format must be "pt", "legacy", "safetensors" or "dcp", not {format!r}')
    return lambda obj, name: _write(prepare(obj), name)


def _format(name: str) -> str:
    return "safetensors" if name.endswith(".safetensors") else "pt"


def _write(
    archive: _torch_writer.Archive | _legacy_writer.Stream | _safetensors_writer.Archive, name: str
) -> None:
    try:
        with replacing(name) as file:
            archive.write(file)
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}") from error


def path_name(path: Any) -> str:
    """The path as text, if it is one."""
    try:
        name = os.fspath(path)
    except TypeError as error:
        raise FileError(f"a path is due, not a {type(path).__name__}") from error
    if not isinstance(name, str) or "\0" in name:
        raise FileError(f"a path is due as text, not {name!r}")
    return name
