"""Tells which checkpoint a folder holds: of `torch.distributed.checkpoint`, or of Hugging Face.

A folder of Hugging Face may hold the same weights twice. The one that counts is the first of `_ORDER`, as it
is for `from_pretrained` of transformers; nothing else in the folder is looked at.
"""

import os
from collections.abc import Callable

from jaxstate.errors import FileError

from . import _dcp_reader, _index
from ._members import member

_ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read(folder: str, read_file: Callable[[str], object], mapped: bool) -> object:
    """The checkpoint in the folder.

    Args:
        read_file: reads one torch or safetensors file.
        mapped: whether arrays may be views of the files.

    Raises:
        FileError: no checkpoint, or one that is damaged.
    """
    names = sorted(os.listdir(folder))
    if _dcp_reader.METADATA in names:
        return _dcp_reader.read(folder, mapped)
    for name in _ORDER:
        if name in names:
            path = member(folder, name)
            return _index.read(path, read_file) if name.endswith(_index.SUFFIX) else read_file(path)
    raise FileError(_other(names))


def _other(names: list[str]) -> str:
    """What to do about a folder that holds no checkpoint, or more than one."""
    if any(name.endswith(".metadata") for name in names):
        return (
            "a folder of torch.distributed.checkpoint in which every rank has its own metadata; gather it: "
            "load it with as many ranks, and save it with collectives"
        )
    indices = [name for name in names if name.endswith(_index.SUFFIX)]
    if indices:
        return f"a folder without model.safetensors; load one of these: {', '.join(indices[:8])}"
    return f"a folder; load one of the files in it: {_listing(names)}"


def _listing(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
