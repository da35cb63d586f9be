"""Reads a checkpoint in several files by its index, `model.safetensors.index.json` and its kin.

The index is that of Hugging Face: `{"metadata": {...}, "weight_map": {key: file name}}`. It says where every
key is, and the files have to agree: all keys of the index are there, and no others.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from jaxstate.errors import FileError, quoted

from ._json import parsed
from ._mapping import file_bytes
from ._members import member

SUFFIX = ".index.json"
MAX_INDEX = 100_000_000
"""Bytes of an index, as many as safetensors allows for a header."""

_METADATA = "__metadata__"
_SHOWN = 10


def read(path: str, read_file: Callable[[str], object]) -> OrderedDict:
    """The entries of all files in one dict, in the order of the index.

    Its attribute `__metadata__` holds what the files' own agree on, and tells, as that of one safetensors
    file does, that the order of the entries is the format's and not a model's.

    Args:
        path: of the index; the files stand beside it.
        read_file: reads one of them.

    Raises:
        FileError: an index or a file that is damaged; keys that are missing, unexpected or there twice.
    """
    folder, where = os.path.dirname(path), weight_map(path)
    names = dict.fromkeys(where.values())
    paths = {name: member(folder, name) for name in names}
    if missing := [name for name, place in paths.items() if not os.path.exists(place)]:
        raise FileError(f"the index names files that are not there: {_listed(missing)}; fetch them")
    shards = {name: _shard(name, partial(read_file, place)) for name, place in paths.items()}
    _check_keys(where, shards)
    result = OrderedDict((key, shards[name][key]) for key, name in where.items())
    result.__metadata__ = _common(list(shards.values()))  # pyright: ignore[reportAttributeAccessIssue]
    return result


def weight_map(path: str) -> dict[str, str]:
    """The name of the file of each key.

    Raises:
        FileError: no index, or one with another thing than text in its map.
    """
    data = file_bytes(path, mapped=True)
    if len(data) > MAX_INDEX:
        raise FileError(f"an index of {len(data)} bytes; no more than {MAX_INDEX} are read")
    # Byte counts in the wild were computed by true division.
    found = parsed(bytes(data), "the index", floats=True).get("weight_map")
    if type(found) is not dict or not all(type(name) is str for name in found.values()):
        raise FileError("the index has no weight_map from keys to file names")
    return found


def _shard(name: str, read_file: Callable[[], object]) -> Mapping[str, object]:
    try:
        found = read_file()
    except FileError as error:
        raise FileError(f"{name}: {error}") from error
    if not isinstance(found, dict):
        raise FileError(f"{name}: holds a {type(found).__name__}, where a dict of arrays is due")
    return found


def _check_keys(where: Mapping[str, str], shards: Mapping[str, Mapping[str, object]]) -> None:
    missing = [f"{key} in {name}" for key, name in where.items() if key not in shards[name]]
    surplus = [
        f"{key} in {name}" for name, found in shards.items() for key in found if where.get(key) != name
    ]
    problems = [f"keys that the index names are not there: {_listed(missing)}"] if missing else []
    problems += [f"keys are there that the index has not or has elsewhere: {_listed(surplus)}"] * bool(
        surplus
    )
    if problems:
        raise FileError("; ".join(problems) + ". The files are not of one checkpoint: fetch all of it again")


def _common(shards: list[Mapping[str, object]]) -> dict[str, str]:
    first, *others = [getattr(found, _METADATA, {}) for found in shards] or [{}]
    return {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}


def _listed(names: list[str]) -> str:
    return quoted(name[:200] for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
