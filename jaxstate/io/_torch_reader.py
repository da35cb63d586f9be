"""Reads what `torch.save` writes since 1.6: a zip archive of one pickle and one entry for each storage."""

import re
from collections.abc import Callable

import numpy as np

from jaxstate.errors import FileError

from ._archive import Archive
from ._emulate import Budget, build, construct
from ._machine import Meaning
from ._pickle import interpret
from ._tensors import Tensors
from ._walk import walk

MAX_PICKLE = 256 << 20
_KEY = re.compile(r"[0-9A-Za-z_.-]+")


def read(archive: Archive) -> object:
    """The object that the archive holds; tensors are read-only views of its data.

    Raises:
        FileError: damaged or hostile.
    """
    for name in ("data.pkl", "version"):
        if name not in archive.entries:
            raise FileError(f"a zip archive that is not torch's: it has no entry {name!r} below its root")
    return unpickled(archive, "data.pkl", "data/")


def unpickled(archive: Archive, name: str, folder: str) -> object:
    """The object that one pickle of the archive holds, whose storages are the entries of one folder."""
    tensors = Tensors(_records(archive, folder), archive.swapped, len(archive.data))
    pickle = archive.content(name, min(MAX_PICKLE, max(len(archive.data), 1 << 20)))
    try:
        value = _interpreted(pickle, tensors)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error
    for _ in walk(value, name):
        pass
    return value


def _interpreted(pickle: bytes, tensors: Tensors) -> object:
    budget = Budget(16 * len(pickle) + (1 << 20))
    meaning = Meaning(construct(tensors.emulations(), budget), tensors.storage, build(budget))
    return interpret(pickle, meaning)[0]


def _records(archive: Archive, folder: str) -> Callable[[str], np.ndarray]:
    for name in archive.entries:
        if name.startswith(folder) and not _KEY.fullmatch(name.removeprefix(folder)):
            raise FileError(f"entry {name[:200]!r} is not the name of a storage")

    def record(key: str) -> np.ndarray:
        name = folder + key
        if name not in archive.entries:
            raise FileError(
                f"the pickle names storage {key[:200]!r}, and the archive has no entry {name[:200]}"
            )
        return archive.record(name)

    return record
