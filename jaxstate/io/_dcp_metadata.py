"""Reads `.metadata`, the index of a checkpoint of `torch.distributed.checkpoint`, without unpickling it.

It is a pickle of `Metadata` (`torch/distributed/checkpoint/metadata.py`), whose dataclasses our interpreter
gives as inert records. What they say becomes plain values here, each checked: which entries there are, how
each tensor is cut into chunks, and in which bytes of which file a chunk or a value lies.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeGuard

import numpy as np

from jaxstate.errors import FileError

from ._dtypes import BY_TORCH, Dtype
from ._emulate import EMULATIONS, Budget, build, construct
from ._machine import Meaning
from ._pickle import interpret
from ._records import Global, Opaque
from ._walk import walk

MAX_METADATA = 256 << 20
MAX_DIMENSIONS = 64

_MODULE = "torch.distributed.checkpoint"
_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        f"{_MODULE}.metadata.Metadata": ("state_dict_metadata", "planner_data", "storage_data"),
        f"{_MODULE}.metadata.TensorStorageMetadata": ("properties", "size", "chunks"),
        f"{_MODULE}.metadata.BytesStorageMetadata": (),
        f"{_MODULE}.metadata.ChunkStorageMetadata": ("offsets", "sizes"),
        f"{_MODULE}.metadata.TensorProperties": ("dtype",),
        f"{_MODULE}.metadata.StorageMeta": ("checkpoint_id", "save_id", "load_id", "modules"),
        f"{_MODULE}.metadata.MetadataIndex": ("fqn", "offset", "index"),
        f"{_MODULE}.filesystem._StorageInfo": ("relative_path", "offset", "length", "transform_descriptors"),
    }
)
"""The dataclasses, and their fields in the order of their constructors."""


class Span(NamedTuple):
    """Where in the folder one chunk or value lies."""

    file: str
    start: int
    length: int


class Piece(NamedTuple):
    """One chunk of a tensor; an empty one may have no place in any file."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    span: Span | None


class Tensor(NamedTuple):
    """One tensor, and the chunks that it is cut into."""

    dtype: Dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Contents(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        entries: each tensor, and the place of each other value, by its flat name.
        paths: where each stands in the nested object, by its flat name; None where the object is flat. The
            steps are not checked.
        save_id: what tells one save from another; torch makes one for each rank.
    """

    entries: dict[str, Tensor | Span]
    paths: Mapping[str, tuple] | None
    save_id: str | None = None


def parse(data: np.ndarray) -> Contents:
    """The contents that `.metadata` states.

    Raises:
        FileError: damaged, hostile, of another version, or its parts contradict each other.
    """
    state = _record(_interpreted(data), "Metadata")
    version = state.get("version")
    if version is not None and not (type(version) is str and version.startswith("1.")):
        raise FileError(f"a checkpoint of version {str(version)[:40]}; versions 1 and before it are read")
    places = _places(state.get("storage_data"))
    described = _dict(state.get("state_dict_metadata"), "state_dict_metadata")
    entries = {name: _entry(name, record, places) for name, record in described.items()}
    if places:
        raise FileError(f"it gives places to chunks that no tensor has, such as {next(iter(places))}")
    return Contents(entries, _paths(state.get("planner_data")), _save_id(state.get("storage_meta")))


def _interpreted(data: np.ndarray) -> object:
    if len(data) > MAX_METADATA:
        raise FileError(f"it has {len(data)} bytes; no more than {MAX_METADATA} are read")
    budget = Budget(16 * len(data) + (1 << 20))
    meaning = Meaning(construct(EMULATIONS, budget), _no_storage, build(budget))
    value, _ = interpret(bytes(data), meaning)
    for _ in walk(value, "it"):
        pass
    return value


def _no_storage(pid: object) -> object:
    raise FileError("the pickle names a storage, where only descriptions are due")


def _record(value: object, name: str) -> dict[str, object]:
    """The fields of an instance of the dataclass of this name."""
    kind = value.name if isinstance(value, Opaque) else type(value).__name__
    if not isinstance(value, Opaque) or kind not in _FIELDS or kind.rpartition(".")[2] != name:
        raise FileError(f"a {kind[:200]} stands where a {name} is due")
    fields: dict[str, object] = dict(zip(_FIELDS[kind], value.args, strict=False))
    if type(value.state) is dict:
        fields |= {key: item for key, item in value.state.items() if type(key) is str}
    elif type(value.state) is tuple:
        fields |= zip(_FIELDS[kind], value.state, strict=False)
    return fields


def _dict(value: object, what: str) -> dict[str, object]:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise FileError(f"its {what} is not a dict with text as keys")
    return value


_Places = dict[tuple[str, tuple[int, ...] | None], Span]


def _places(value: object) -> _Places:
    if type(value) is not dict:
        raise FileError("its storage_data is not a dict")
    places: _Places = {}
    for key, record in value.items():
        index = _record(key, "MetadataIndex")
        name, offset = index.get("fqn"), index.get("offset")
        if type(name) is not str or not (offset is None or _is_sizes(offset)):
            raise FileError("a MetadataIndex has no proper name or offset")
        if (name, offset) in places:
            raise FileError(f'entry "{name[:200]}" has two places for one chunk, at {offset}')
        places[name, offset] = _span(name, record)
    return places


def _span(name: str, record: object) -> Span:
    info = _record(record, "_StorageInfo")
    if info.get("transform_descriptors"):
        raise FileError(
            f'entry "{name[:200]}" is transformed ({str(info["transform_descriptors"])[:80]}), such as '
            "compressed; save it again without extensions"
        )
    file, span = info.get("relative_path"), (info.get("offset"), info.get("length"))
    if type(file) is not str or not _is_sizes(span):
        raise FileError(f'entry "{name[:200]}" has no proper file, offset or length')
    return Span(file, *span)


def _entry(name: str, record: object, places: _Places) -> Tensor | Span:
    if isinstance(record, Opaque) and record.name.endswith(".BytesStorageMetadata"):
        _record(record, "BytesStorageMetadata")
        if (name, None) not in places:
            raise FileError(f'entry "{name[:200]}" has no place in any file')
        return places.pop((name, None))
    fields = _record(record, "TensorStorageMetadata")
    shape, chunks = fields.get("size"), fields.get("chunks")
    if not _is_sizes(shape) or type(chunks) is not list:
        raise FileError(f'entry "{name[:200]}" has no proper size or chunks')
    boxes = [_box(name, len(shape), chunk) for chunk in chunks]
    spans = {offset: places.pop((name, offset), None) for offset, _ in boxes}
    pieces = tuple(Piece(offset, inner, spans[offset]) for offset, inner in boxes)
    if lost := [piece.offset for piece in pieces if piece.span is None and 0 not in piece.shape]:
        raise FileError(f'entry "{name[:200]}": the chunk at {lost[0]} has no place in any file')
    return Tensor(_dtype(name, fields.get("properties")), shape, pieces)


def _box(name: str, ndim: int, chunk: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    fields = _record(chunk, "ChunkStorageMetadata")
    offset, shape = fields.get("offsets"), fields.get("sizes")
    if not (_is_sizes(offset) and _is_sizes(shape) and len(offset) == len(shape) == ndim):
        raise FileError(f'entry "{name[:200]}" has a chunk without a proper offset and size')
    return offset, shape


def _dtype(name: str, properties: object) -> Dtype:
    dtype = _record(properties, "TensorProperties").get("dtype")
    row = BY_TORCH.get(dtype.attribute) if isinstance(dtype, Global) and dtype.module == "torch" else None
    if row is None:
        raise FileError(f'entry "{name[:200]}" is of no dtype that torch has')
    return row


def _save_id(value: object) -> str | None:
    known = isinstance(value, Opaque) and value.name.endswith(".StorageMeta")
    found = _record(value, "StorageMeta").get("save_id") if known else None
    return found if type(found) is str else None


def _is_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    if type(values) is not tuple or len(values) > MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _paths(value: object) -> Mapping[str, tuple] | None:
    if value is None:
        return None
    paths = _dict(value, "planner_data")
    if not all(type(path) is tuple for path in paths.values()):
        raise FileError("its planner_data is not a map from names to paths")
    return paths  # pyright: ignore[reportReturnType]
