"""The door of `io`: `load` and `save`, which choose a format and name the file in every error."""

import os
from types import MappingProxyType
from typing import Any

from jaxstate.errors import FileError

from . import (
    _legacy_reader,
    _legacy_writer,
    _safetensors_reader,
    _safetensors_writer,
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


def load(path: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False) -> Any:
    """What torch.load(path) would give, with read-only numpy arrays in the place of tensors.

    Args:
        path: a file that `torch.save` (of any torch since 0.1.10), `torch.jit.save`, `torch.export.save` or
            safetensors wrote; its content decides which, not its name.
        mmap: view the file as it lies on disk; nothing is read before it is used. False reads it at once.
        verify: read all of it once and compare the checksums that archives have. The other formats have none:
            their sizes are compared in any case.

    Returns:
        The object in the file. Tensors that share memory in torch share it here. Of TorchScript and of
        torch.export, the state_dict; of safetensors, a dict in the order of the header. What has no
        counterpart in Python or numpy is an inert record: `Opaque`, `Global`, `Raw`, `Storage`; of a module
        or an optimizer that was pickled whole, `jaxstate.io.state_dict_of` makes its state_dict.

    Raises:
        FileError: missing, damaged, hostile, or of another format.

    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "net.pt")
    >>> save({"weight": np.eye(2), "step": 3}, path)
    >>> loaded = load(path)
    >>> loaded["step"], bool((loaded["weight"] == np.eye(2)).all())
    (3, True)
    """
    name = path_name(path)
    try:
        return _loaded(name, mmap, verify)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def _loaded(name: str, mmap: bool, verify: bool):
    if os.path.isdir(name):
        raise FileError(f"a folder; load one of the files in it: {_listing(name)}")
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


def save(obj, path: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Write what torch.save(obj, path) would, such that torch.load(path, weights_only=True) reads it.

    Args:
        obj: dicts, lists, tuples, numbers and text, with arrays of numpy, JAX or torch in them. It is not
            changed. Arrays that overlap in memory are one storage in the file, as tied weights are in torch;
            JAX arrays are values and never share one.
        path: where to. What stands there is replaced at once when all is written, and stays whole if not.
        format: "pt", "safetensors", or "legacy" for a torch before 1.6; by default safetensors where the name
            ends so, and "pt" elsewhere. A safetensors file holds a flat dict of arrays.

    Raises:
        FileError: something in `obj` that weights_only or safetensors cannot read back, with the path to it
            and before a byte is written; or the file cannot be written.

    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
    >>> save({"weight": np.eye(2)}, path)
    >>> load(path)["weight"].tolist() == np.eye(2).tolist()
    True
    """
    name = path_name(path)
    prepare = _WRITERS.get(format or _format(name))
    if prepare is None:
        raise FileError(f'format must be "pt", "legacy" or "safetensors", not {format!r}')
    try:
        _write(prepare(obj), name)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


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


def _listing(folder: str) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def path_name(path: str | os.PathLike[str]) -> str:
    """The path as text, if it is one."""
    try:
        name = os.fspath(path)
    except TypeError as error:
        raise FileError(f"a path is due, not a {type(path).__name__}") from error
    if not isinstance(name, str) or "\0" in name:
        raise FileError(f"a path is due as text, not {name!r}")
    return name
