"""Reads what `torch.save` writes since 1.6: a zip archive of one pickle and one entry for each storage.

All entries stand under one root, `R/data.pkl`, `R/data/0`, `R/byteorder`, `R/version`, where R is what the
first entry's name has before its first slash (torch's `caffe2/serialize/inline_container.cc` reads it so).
"""

import re
import sys
from collections.abc import Mapping

import numpy as np

from jaxstate.errors import FileError

from . import _zip
from ._emulate import Budget, build, construct
from ._machine import Meaning
from ._pickle import interpret
from ._tensors import Tensors
from ._walk import walk

MAX_PICKLE = 256 << 20
_MAX_SMALL = 4096
_KEY = re.compile(r"[0-9A-Za-z_.-]+")

_RELATIVES = (
    ("constants.pkl", "a TorchScript archive; save `torch.jit.load(path).state_dict()` with torch.save"),
    ("bytecode.pkl", "a TorchScript archive for mobile; save the state_dict of its model with torch.save"),
    (
        "archive_format",
        "an exported program (.pt2); save `torch.export.load(path).state_dict` with torch.save",
    ),
    (".data/extern_modules", "a torch.package archive; save the state_dict of its model with torch.save"),
)
"""Archives that have torch's layout and other contents: the entry that tells them, and what they are."""


def read(data: np.ndarray) -> object:
    """The object that the file holds; tensors are read-only views of `data`.

    Raises:
        FileError: damaged, hostile, or an archive of another kind.
    """
    entries = _rooted(_zip.entries(data))
    _check_kind(entries)
    swapped = _byteorder(data, entries) != sys.byteorder
    tensors = Tensors(lambda key: _record(data, entries, key), swapped, len(data))
    pickle = _pickle(data, entries)
    value = _interpreted(pickle, tensors)
    for _ in walk(value, "data.pkl"):
        pass
    return value


def _interpreted(pickle: bytes, tensors: Tensors) -> object:
    budget = Budget(16 * len(pickle) + (1 << 20))
    meaning = Meaning(construct(tensors.emulations(), budget), tensors.storage, build(budget))
    try:
        return interpret(pickle, meaning)[0]
    except FileError as error:
        raise FileError(f"data.pkl: {error}") from error


def _rooted(entries: Mapping[str, _zip.Entry]) -> Mapping[str, _zip.Entry]:
    """The entries by their names below the root."""
    if not entries:
        raise FileError("an empty zip archive")
    root = next(iter(entries)).partition("/")[0] + "/"
    outside = [name for name in entries if not name.startswith(root)]
    if outside:
        raise FileError(f"a zip archive that is not torch's: {outside[0][:200]!r} stands outside of {root!r}")
    return {name.removeprefix(root): entry for name, entry in entries.items()}


def _check_kind(entries: Mapping[str, _zip.Entry]) -> None:
    for name, kind in _RELATIVES:
        if name in entries:
            raise FileError(kind)
    for name in ("data.pkl", "version"):
        if name not in entries:
            raise FileError(f"a zip archive that is not torch's: it has no entry {name!r} below its root")
    for name in entries:
        if name.startswith("data/") and not _KEY.fullmatch(name.removeprefix("data/")):
            raise FileError(f"entry {name[:200]!r} is not the name of a storage")


def _pickle(data: np.ndarray, entries: Mapping[str, _zip.Entry]) -> bytes:
    return _zip.content(data, entries["data.pkl"], min(MAX_PICKLE, max(len(data), 1 << 20)))


def _byteorder(data: np.ndarray, entries: Mapping[str, _zip.Entry]) -> str:
    """torch writes this entry since 2.1; older files come from little-endian machines."""
    if "byteorder" not in entries:
        return "little"
    order = _zip.content(data, entries["byteorder"], _MAX_SMALL)
    if order not in (b"little", b"big"):
        raise FileError(f"entry 'byteorder' holds {order[:40]!r}, neither 'little' nor 'big'")
    return order.decode()


def _record(data: np.ndarray, entries: Mapping[str, _zip.Entry], key: str) -> np.ndarray:
    if f"data/{key}" not in entries:
        raise FileError(
            f"the pickle names storage {key[:200]!r}, and the archive has no entry data/{key[:200]}"
        )
    return _zip.stored(data, entries[f"data/{key}"])
