"""Tells which checkpoint a folder holds: of `torch.distributed.checkpoint`, or of Hugging Face.

A folder of Hugging Face may hold the same weights twice. The one that counts is the first of `_ORDER`, as it
is for `from_pretrained` of transformers; nothing else in the folder is looked at.
"""

import os
from collections.abc import Callable

from jaxstate.errors import FileError

from . import _dcp_ranks, _dcp_reader, _index, _rank_shards
from ._dcp_reader import METADATA
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
        FileError: no checkpoint, one that is damaged, or one of each kind.
    """
    names = _names(folder)
    hugging_face = _found(names)
    if METADATA in names and hugging_face:
        raise FileError(f"it holds two checkpoints, {METADATA} and {hugging_face}; take one out")
    if METADATA in names:
        return _dcp_reader.read(folder, mapped)
    if hugging_face:
        path = member(folder, hugging_face)
        return _index.read(path, read_file) if path.endswith(_index.SUFFIX) else read_file(path)
    if _dcp_ranks.metadata_in(names):
        return _dcp_ranks.read([folder], mapped)
    if parts := _rank_shards.files(names):
        return _rank_shards.read(folder, parts, mapped)
    raise FileError(_other(names))


def check_kind(folder: str, distributed: bool) -> None:
    """Refuse to write a checkpoint beside one of the other kind.

    Raises:
        FileError: the folder holds one of Hugging Face and is to hold one of torch's, or the other way round.
    """
    names = _names(folder) if os.path.isdir(folder) else []
    found = _found(names) if distributed else METADATA if METADATA in names else None
    if found:
        raise FileError(f"it holds a checkpoint of another kind, {found}; save into another folder")


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from error


def _found(names: list[str]) -> str | None:
    return next((name for name in _ORDER if name in names), None)


def _other(names: list[str]) -> str:
    """What to do about a folder that holds no checkpoint, or more than one."""
    indices = [name for name in names if name.endswith(_index.SUFFIX)]
    if indices:
        return f"a folder without model.safetensors; load one of these: {', '.join(indices[:8])}"
    if not names:
        return "a folder with nothing in it"
    return f"a folder; load one of the files in it: {_listing(names)}"


def _listing(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
