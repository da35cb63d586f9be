"""Folder: a checkpoint of several files, of which only those are read that its tool is known to write."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxstate import io
from jaxstate.containers._roles import Contents, Part, Roles, none_told
from jaxstate.errors import FileError

_MAX_JSON = 64 << 20
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.safetensors|\.bin)")
_MODEL = re.compile(
    r"(model|pytorch_model|adapter_model|diffusion_pytorch_model)(_\d+|\.\w+)?\.(safetensors|bin)(\.index\.json)?"
)
_FSDP = re.compile(r"pytorch_model_fsdp(_\d+)?(\.bin)?")


class FolderTool(NamedTuple):
    """What the folders of a tool look like.

    Attributes:
        name: of the tool.
        evidence: what in the names of the files tells that this tool wrote them; "" if it did not.
        roles: the role of each file.
        reads: True of the other files to read; the rest stay paths.
        told: parts that lie deeper.
    """

    name: str
    evidence: Callable[[frozenset[str]], str]
    roles: Callable[[Sequence[str]], Roles]
    reads: Callable[[str], Any]
    told: Callable[[Contents], Sequence[Part]] = none_told


def names_in(folder: str) -> tuple[str, ...]:
    """The names in a folder, in order.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return tuple(sorted(os.listdir(folder)))
    except OSError as error:
        raise FileError(f"{folder}: cannot be read: {error.strerror or error}") from error


def contents_of(
    folder: str, names: Sequence[str], tool: FolderTool, asked: Iterable[str], mmap: bool
) -> Contents:
    """What stands in each file; a path where it is not read. Shards belong to their index."""
    known = set(tool.roles(names)) | set(asked)
    shards = {name for name in names if _is_indexed(name, names)}
    return {
        name: read(os.path.join(folder, name), mmap)
        if name in known or tool.reads(name)
        else Path(folder, name)
        for name in names
        if name not in shards
    }


def read(path: str, mmap: bool) -> Any:
    """One file of a folder, or one folder of sharded tensors."""
    if path.endswith(".json") and not path.endswith(".index.json"):
        return read_json(path)
    value = io.load(path, mmap=mmap)
    # Accelerate writes a sharded model as {"model": ...}, its optimizer as {"optimizer": ...}.
    nested = os.path.isdir(path) and isinstance(value, Mapping) and list(value) in (["model"], ["optimizer"])
    return next(iter(value.values())) if nested else value


def read_json(path: str) -> Any:
    """Raises FileError for what is no JSON text, or too much of it."""
    try:
        if os.path.getsize(path) > _MAX_JSON:
            raise FileError(f"{path}: {os.path.getsize(path)} bytes of JSON, where {_MAX_JSON} are allowed")
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: cannot be read as JSON: {str(error)[:200]}") from error


def models_in(names: Iterable[str]) -> Roles:
    """The role of each file that holds a model's weights, as Hugging Face names them.

    >>> models_in(["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
    {'model.safetensors.index.json': 'model'}
    """
    return {name: "model" for name in names if _MODEL.fullmatch(name) or _FSDP.fullmatch(name)}


def _is_indexed(name: str, names: Sequence[str]) -> bool:
    shard = _SHARD.fullmatch(name)
    return bool(shard) and f"{shard[1]}{shard[2]}.index.json" in names
