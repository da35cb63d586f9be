"""Writes the pickle of a torch file: protocol 2, with the opcodes that `torch.load(weights_only=True)` reads.

Those are listed in `torch/_weights_only_unpickler.py`. The values are plain ones and the records below,
which stand for tensors; what else an object may be is decided in `_torch_pickle.py`.
"""

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ._dtypes import Dtype
from ._records import Global, Opaque


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """A storage by the key of its entry in the archive, and what its persistent id says beyond that."""

    kind: Global
    key: str
    numel: int
    rest: tuple = ()


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A tensor: its storage, and how it lies there, in elements."""

    storage: StorageRef
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Code(bytes):
    """Bytes for the stream, as against a value of type bytes."""


@dataclass(frozen=True, eq=False, slots=True)
class _Put:
    """Remember what was just built as this value."""

    value: object


_MARK, _TUPLE, _TUPLE1, _REDUCE, _BUILD = (_Code(c) for c in (b"(", b"t", b"\x85", b"R", b"b"))
_APPENDS, _SETITEMS, _BINPERSID = (_Code(c) for c in (b"e", b"u", b"Q"))
_NO_ARGUMENTS = _Code(b")")

MAX_INT_BYTES = 255
"""The widest int that weights_only reads (LONG1)."""


def dump(root: object, resolve: Callable[[object], object]) -> bytes:
    """The pickle of `root`.

    Args:
        root: the object.
        resolve: gives for each object inside what to write in its place, often itself. One object that is
            found twice is written once, and read as one.

    >>> import pickle
    >>> pickle.loads(dump({"betas": (0.5, 2**70)}, lambda value: value))
    {'betas': (0.5, 1180591620717411303424)}
    """
    out = bytearray(b"\x80\x02")
    memo: dict[int, tuple[int, object]] = {}
    names: dict[str, Global] = {}
    todo: list[object] = [root]
    while todo:
        item = todo.pop()
        if type(item) is _Code:
            out += item
        elif type(item) is _Put:
            memo[id(item.value)] = len(memo), item.value
            out += _indexed(b"q", b"r", len(memo) - 1)
        else:
            value = resolve(item)
            value = names.setdefault(value.name, value) if type(value) is Global else value
            known = memo.get(id(value))
            todo.extend(
                [_Code(_indexed(b"h", b"j", known[0]))] if known else reversed(_PARTS[type(value)](value))
            )
    return bytes(out + b".")


def _indexed(short: bytes, long: bytes, index: int) -> bytes:
    return short + bytes([index]) if index < 256 else long + struct.pack("<I", index)


Parts = Sequence[object]


def _bool(value: bool) -> Parts:
    return [_Code(b"\x88" if value else b"\x89")]


def _int(value: int) -> Parts:
    if 0 <= value < 256:
        return [_Code(struct.pack("<cB", b"K", value))]
    if 0 <= value < 65536:
        return [_Code(struct.pack("<cH", b"M", value))]
    if -(2**31) <= value < 2**31:
        return [_Code(struct.pack("<ci", b"J", value))]
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return [_Code(b"\x8a" + bytes([len(raw)]) + raw)]


def _float(value: float) -> Parts:
    return [_Code(struct.pack(">cd", b"G", value))]


def _str(value: str) -> Parts:
    raw = value.encode("utf-8", "surrogatepass")
    return [_Code(struct.pack("<cI", b"X", len(raw)) + raw)]


def _call(function: Global, *args: object) -> list[object]:
    return [function, _MARK, *args, _TUPLE, _REDUCE]


def _bytes(value: bytes) -> Parts:
    return _call(_ENCODE, value.decode("latin-1"), "latin1")


def _bytearray(value: bytearray) -> Parts:
    return [*_call(_BYTEARRAY, value.decode("latin-1"), "latin-1"), _Put(value)]


def _complex(value: complex) -> Parts:
    return _call(_COMPLEX, value.real, value.imag)


def _tuple(value: tuple) -> Parts:
    return [_MARK, *value, _TUPLE, _Put(value)] if value else [_NO_ARGUMENTS]


def _list(value: list) -> Parts:
    return [_Code(b"]"), _Put(value), _MARK, *value, _APPENDS]


def _items(value: dict) -> list[object]:
    return [_MARK, *(part for item in value.items() for part in item), _SETITEMS]


def _dict(value: dict) -> Parts:
    return [_Code(b"}"), _Put(value), *_items(value)]


def _ordered_dict(value: OrderedDict) -> Parts:
    state = [{"_metadata": value._metadata}, _BUILD] if hasattr(value, "_metadata") else []  # pyright: ignore
    return [_ORDERED_DICT, _NO_ARGUMENTS, _REDUCE, _Put(value), *_items(value), *state]


def _counter(value: Counter) -> Parts:
    return [*_call(_COUNTER, dict(value)), _Put(value)]


def _set(value: set) -> Parts:
    # In an order that does not depend on the seed of str hashes.
    ordered = sorted(value, key=lambda item: (type(item).__name__, repr(item)))
    return [*_call(_SET, ordered), _Put(value)]


def _global(value: Global) -> Parts:
    module = "__builtin__" if value.module == "builtins" else value.module
    return [_Code(f"c{module}\n{value.attribute}\n".encode()), _Put(value)]


def _opaque(value: Opaque) -> Parts:
    state = [] if value.state is None else [value.state, _BUILD]
    return [value.function, value.args, _REDUCE, _Put(value), *state]


def _storage(value: StorageRef) -> Parts:
    return [_MARK, "storage", value.kind, value.key, "cpu", value.numel, *value.rest, _TUPLE, _BINPERSID]


def _tensor(value: TensorRef) -> Parts:
    hooks = (_ORDERED_DICT, _NO_ARGUMENTS, _REDUCE)
    geometry = (value.storage, value.offset, value.shape, value.strides, False, *hooks)
    if value.dtype.storage:
        return [*_call(_TENSOR, *geometry), _Put(value)]
    return [*_call(_TENSOR_OF_DTYPE, *geometry, Global("torch", value.dtype.torch)), _Put(value)]


_ENCODE = Global("_codecs", "encode")
_BYTEARRAY, _COMPLEX, _SET = (Global("builtins", name) for name in ("bytearray", "complex", "set"))
_ORDERED_DICT, _COUNTER = Global("collections", "OrderedDict"), Global("collections", "Counter")
_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_TENSOR_OF_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")

_PARTS: Mapping[type, Callable[..., Parts]] = MappingProxyType(
    {
        type(None): lambda value: [_Code(b"N")],
        bool: _bool,
        int: _int,
        float: _float,
        str: _str,
        bytes: _bytes,
        bytearray: _bytearray,
        complex: _complex,
        tuple: _tuple,
        list: _list,
        dict: _dict,
        OrderedDict: _ordered_dict,
        Counter: _counter,
        set: _set,
        Global: _global,
        Opaque: _opaque,
        StorageRef: _storage,
        TensorRef: _tensor,
    }
)
