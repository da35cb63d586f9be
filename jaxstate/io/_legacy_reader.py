"""Reads what `torch.save` wrote before 1.6, and writes today by `_use_new_zipfile_serialization=False`.

A stream of pickles without a directory (`torch/serialization.py`, `_legacy_save`): a magic number, a version,
facts of the machine, the object, the list of its storages; then each storage, the count of its elements in
64 bits and its bytes. Numbers are little-endian on every machine, whatever the third pickle says.
"""

import struct
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from jaxstate.errors import FileError

from ._dtypes import storage_itemsize
from ._emulate import EMULATIONS, Budget, build, construct
from ._machine import Meaning
from ._pickle import interpret
from ._records import Global, Opaque, Storage
from ._tensors import Tensors
from ._torch_reader import MAX_PICKLE
from ._walk import walk

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001

Named = dict[str, tuple[Global, int]]
"""The class and the number of elements of each storage, by its key."""


def read(data: np.ndarray) -> object:
    """The object that the stream holds; tensors are read-only views of `data`, of any alignment.

    Raises:
        FileError: damaged, hostile, or with bytes behind its end.
    """
    start = _behind_header(data)
    # The storages stand behind the pickle that names them: it is read once for their sizes, once for them.
    pickle, named = _pickle_at(data, start, _named)
    records = _records(data, named, start + len(pickle))
    tensors = Tensors(records.__getitem__, sys.byteorder != "little", len(data))
    value, _ = interpret(pickle, _meaning(tensors.emulations(), _finding(tensors), len(pickle)))
    for _ in walk(value, "obj"):
        pass
    return value


T = TypeVar("T")


def _pickle_at(data: np.ndarray, start: int, read: Callable[[bytes], tuple[T, int]]) -> tuple[bytes, T]:
    """The bytes of the pickle at `start`, whose end only reading it tells, and what `read` makes of it.

    It is tried with more and more of the file, since most of that is not the pickle.
    """
    size = _WINDOW
    while True:
        window = bytes(data[start : start + size])
        try:
            value, end = read(window)
            return window[:end], value
        except FileError:
            if size >= min(len(data) - start, MAX_PICKLE):
                raise
            size *= 8


_WINDOW = 1 << 18


def _meaning(emulations: Mapping, persistent: Callable[[object], object], size: int) -> Meaning:
    budget = Budget(16 * size + (1 << 20))
    return Meaning(construct(emulations, budget), persistent, build(budget))


def _plain(pickle: bytes) -> tuple[object, int]:
    """What a pickle that calls for nothing holds, and its end."""
    return interpret(pickle, Meaning(Opaque, lambda pid: None, lambda made, state: made))


def _named(pickle: bytes) -> tuple[Named, int]:
    """The storages that a pickle names, and its end."""
    named: Named = {}
    _, end = interpret(pickle, _meaning(EMULATIONS, _noting(named), len(pickle)))
    return named, end


def _behind_header(data: np.ndarray) -> int:
    position, facts = 0, []
    for _ in range(3):
        pickle, value = _pickle_at(data, position, _plain)
        position += len(pickle)
        facts.append(value)
    if type(facts[0]) is not int or facts[0] != MAGIC or type(facts[2]) is not dict:
        raise FileError("the file begins like one from before torch 1.6 and goes on otherwise")
    if type(facts[1]) is not int or facts[1] != VERSION:
        raise FileError(
            f"a torch file from before 1.6 of another version than {VERSION}, which alone is read"
        )
    return position


def _noting(named: Named) -> Callable[[object], object]:
    """The meaning of a persistent id while the storages are not yet found."""

    def note(pid: object) -> object:
        cls = _module_class(pid)
        if cls is not None:
            return cls
        _, kind, key, _, numel, _ = _checked(pid)
        before, count = named.setdefault(key, (kind, numel))
        if (before.attribute, count) != (kind.attribute, numel) and (count or numel):
            raise FileError(
                f"storage {key[:200]!r} is {before.name} of {count} and {kind.name} of {numel} elements"
            )
        return Opaque(kind)

    return note


def _finding(tensors: Tensors) -> Callable[[object], object]:
    """The meaning of a persistent id once the storages are found."""

    def find(pid: object) -> object:
        cls = _module_class(pid)
        if cls is not None:
            return cls
        checked = _checked(pid)
        whole = tensors.storage(checked[:5])
        return whole if checked[5] is None or isinstance(whole, Opaque) else _part(whole, checked[5])

    return find


def _module_class(pid: object) -> Global | None:
    """Of `("module", class, file, source)`, by which a pickled module names its class, the class."""
    if type(pid) is tuple and len(pid) == 4 and type(pid[0]) is str and pid[0] == "module":
        return pid[1] if isinstance(pid[1], Global) else None
    return None


def _checked(pid: object) -> tuple:
    """The persistent id `("storage", class, key, location, numel, view)`, if it is one."""
    if type(pid) is not tuple or len(pid) != 6:
        raise FileError("a persistent id that is not of a storage")
    types = tuple(map(type, pid[:5]))
    if types != (str, Global, str, str, int) or pid[0] != "storage":
        raise FileError("a persistent id that is not of a storage")
    if storage_itemsize(pid[1].attribute) is None or not 0 <= pid[4] < 2**62:
        raise FileError(f"storage {pid[2][:200]!r} of class {pid[1].name[:200]} is not one of torch")
    return pid


def _part(whole: Storage, view: object) -> Storage:
    """The part `(key, offset, numel)` of a storage: before 0.4, a storage could be a view of another."""
    proper = type(view) is tuple and len(view) == 3 and type(view[1]) is int and type(view[2]) is int
    if not proper or not (0 <= view[1] <= whole.numel and 0 <= view[2] <= whole.numel - view[1]):  # pyright: ignore
        raise FileError(f"storage {whole.key[:200]!r}: a view of it that it does not hold")
    _, offset, numel = view  # pyright: ignore[reportGeneralTypeIssues]
    itemsize = storage_itemsize(whole.kind.attribute) or 1
    data = whole.data[offset * itemsize : (offset + numel) * itemsize]
    return Storage(whole.kind, whole.key, numel, data)


def _records(data: np.ndarray, named: Named, position: int) -> Mapping[str, np.ndarray]:
    """The bytes of each storage, in the order of the list that the file gives of them."""
    pickle, keys = _pickle_at(data, position, _plain)
    position += len(pickle)
    _check_keys(keys, named)
    records = {}
    for key in keys:  # pyright: ignore[reportGeneralTypeIssues]
        kind, numel = named[key]
        start, position = position + 8, position + 8 + numel * (storage_itemsize(kind.attribute) or 1)
        if position > len(data):
            raise FileError(f"the file ends in the middle of storage {key[:200]!r}; fetch it again")
        (found,) = struct.unpack("<q", bytes(data[start - 8 : start]))
        if found != numel:
            raise FileError(f"storage {key[:200]!r}: {numel} elements announced, {found} found")
        records[key] = data[start:position]
    if position != len(data):
        raise FileError(f"the last storage ends at byte {position}, the file at {len(data)}")
    return records


def _check_keys(keys: object, named: Named) -> None:
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise FileError("the list of storages is not a list of names")
    odd = sorted(set(keys) ^ set(named)) or [key for key, count in Counter(keys).items() if count > 1]
    if odd:
        raise FileError(
            f"storage {odd[0][:200]!r} must be named by the object and stand in the file, once each"
        )
