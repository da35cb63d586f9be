"""Writes a state_dict into a folder as Hugging Face does: one safetensors file, or several and an index.

The split is that of huggingface_hub's `split_state_dict_into_shards_factory`: keys in order, a new file when
the next would not fit, and a file of its own for a tensor that is larger than the limit.
"""

import json
import os
import re
from collections.abc import Mapping

from jaxstate.errors import FileError

from . import _index
from ._folder_writer import write_file, write_folder
from ._safetensors_writer import Archive, checked
from ._storages import alone

WHOLE = "model.safetensors"
INDEX = WHOLE + _index.SUFFIX

_UNITS = {"B": 1} | {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}
_UNITS |= {f"{p}IB": 1024**n for n, p in enumerate("KMGT", 1)}


def save(obj: object, folder: str, max_shard_size: int | str) -> None:
    """Write the arrays of a flat dict into a folder; see `jaxstate.save`.

    Raises:
        FileError: as the writer of one safetensors file; no proper size; a folder that cannot be written.
    """
    limit = size_in_bytes(max_shard_size)
    leaves, metadata = checked(obj)
    sizes = {key: alone(leaf).payload.nbytes for key, leaf in leaves.items()}
    groups = split(sizes, limit)
    archives = {
        name: Archive({key: leaves[key] for key in group}, metadata)
        for name, group in zip(_names(len(groups)), groups, strict=True)
    }
    if len(archives) == 1:
        write_file(folder, WHOLE, archives[WHOLE].write, stale=[INDEX, *_old_files(folder)])
        return
    where = {key: name for name, group in zip(archives, groups, strict=True) for key in group}
    write_folder(
        folder,
        {name: archive.write for name, archive in archives.items()},
        (INDEX, lambda names: index_content({key: names[where[key]] for key in leaves}, sum(sizes.values()))),
        stale=_old_files(folder),
        preferred=WHOLE,
    )


def size_in_bytes(size: int | str) -> int:
    """A number of bytes, or text with a unit: GB counts in thousands, GiB in 1024s.

    >>> size_in_bytes("5GB"), size_in_bytes("1.5 KiB"), size_in_bytes(300)
    (5000000000, 1536, 300)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", size) if type(size) is str else None
    unit = _UNITS.get(found[2].upper()) if found else None
    count = int(float(found[1]) * unit) if found and unit else size
    if type(count) is not int or count <= 0:
        raise FileError(f'max_shard_size is a number of bytes or text like "5GB" or "500MiB", not {size!r}')
    return count


def split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The keys of each file.

    >>> split({"a": 3, "b": 2, "c": 9, "d": 1, "e": 4}, 5)
    [['c'], ['a', 'b'], ['d', 'e']]
    """
    groups: list[list[str]] = []
    group: list[str] = []
    room = limit
    for key, size in sizes.items():
        if size > limit:
            groups.append([key])
            continue
        if size > room:
            groups.append(group)
            group, room = [], limit
        group.append(key)
        room -= size
    return [*groups, group] if group or not groups else groups


def _names(count: int) -> list[str]:
    if count == 1:
        return [WHOLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def index_content(where: Mapping[str, str], size: int) -> bytes:
    """The index; its keys in the order of the dict, which the files of a split do not keep."""
    content = {"metadata": {"total_size": size}, "weight_map": dict(where)}
    return (json.dumps(content, indent=2) + "\n").encode()


def _old_files(folder: str) -> list[str]:
    """The files of the checkpoint that stands there, as far as its index can be read."""
    try:
        return list(_index.weight_map(os.path.join(folder, INDEX)).values())
    except FileError:
        return []
