"""Checks an object as a whole, and makes of it the pickle that `torch.load(weights_only=True)` reads.

What stands around the pickle and the storages that it names is in `_torch_writer.py` and `_legacy_writer.py`.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from jaxstate.errors import FileError

from ._arrays import Leaf, at, leaf, plain
from ._dtypes import BY_TORCH, storage_itemsize
from ._machine import is_plain_key
from ._pickle_writer import MAX_INT_BYTES, StorageRef, TensorRef, dump
from ._records import Global, Opaque, Storage
from ._storages import Payload, Place, alone, places
from ._walk import spell, walk

_CONTAINERS = (dict, OrderedDict, Counter, list, tuple, set)
_SCALARS = (type(None), bool, int, float, complex, str, bytes, bytearray)

_AS_THEY_ARE = frozenset((*_CONTAINERS, *_SCALARS, Global, Opaque))

_REBUILDS = frozenset(
    {
        "torch.device",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_nested_tensor",
    }
)
"""Calls that weights_only allows and that need nothing but what the file holds."""

_CONSTANTS = frozenset(
    {f"torch.{name}" for name in (*BY_TORCH, "qint8", "quint8", "qint32", "quint4x2", "quint2x4")}
    | {
        f"torch.per_{name}"
        for name in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")
    }
    | {"torch.per_channel_affine_float_qparams"}
)


Leaves = Mapping[int, tuple[object, Leaf]]


def pickled(
    obj: object, check: Callable[[object, Leaf | None], None], name: str = "obj", rest: tuple = ()
) -> "Pickled":
    """The pickle of the object, checked as a whole.

    Args:
        obj: the object.
        check: refuses, by a FileError, what the format around the pickle cannot hold: called with each value
            and the array that it is.
        name: what errors call the object.
        rest: what the persistent id of a storage says beyond the number of its elements.

    Raises:
        FileError: something in the object that weights_only would refuse to read, with the path to it.
    """
    leaves: dict[int, tuple[object, Leaf]] = {}
    for value, path in walk(obj, name):
        try:
            found = _checked(value)
            check(value, found)
        except FileError as error:
            raise FileError(f"{spell(path, name)}: {error}") from error
        if found is not None:
            leaves.setdefault(id(value), (value, at(found, spell(path, name))))
    return Pickled(obj, leaves, rest)


class Pickled:
    """The pickle of one object, and the storages that it names.

    Args:
        obj: the object.
        leaves: its arrays, each beside the object that it was made of, by the id of that object.
        rest: what the persistent id of a storage says beyond the number of its elements.

    Attributes:
        pickle: the bytes of the pickle.
        payloads: the storages; the pickle calls them "0", "1", ..., in this order.
    """

    def __init__(self, obj: object, leaves: Leaves, rest: tuple = ()):
        self._leaves = leaves
        tied = {key: leaf for key, (_, leaf) in leaves.items() if leaf.memory is not None}
        self._places = dict(zip(tied, places(list(tied.values())), strict=True))
        self._tensors: dict[int, TensorRef] = {}
        self._storages: dict[int, StorageRef] = {}
        self._rest = rest
        self.payloads: list[Payload | Storage] = []
        self.pickle = dump(obj, self._resolve)

    def _resolve(self, value: object) -> object:
        """What the pickle says in the place of a value."""
        if type(value) in _AS_THEY_ARE:
            return value
        if id(value) in self._leaves:
            return self._tensor(id(value))
        if isinstance(value, Storage):
            return self._storage(value, value.kind, value.numel)
        return plain(value)

    def _tensor(self, key: int) -> TensorRef:
        leaf = self._leaves[key][1]
        if leaf.memory is None and not leaf.tied:
            return self._ref(leaf, alone(leaf))
        if key not in self._tensors:
            self._tensors[key] = self._ref(leaf, self._places.get(key) or alone(leaf))
        return self._tensors[key]

    def _ref(self, leaf: Leaf, place: Place) -> TensorRef:
        kind, itemsize = _UNTYPED, 1
        if leaf.dtype.storage:
            kind, itemsize = Global("torch", leaf.dtype.storage), leaf.dtype.itemsize
        storage = self._storage(place.payload, kind, place.payload.nbytes // itemsize)
        return TensorRef(storage, leaf.dtype, place.offset, leaf.shape, place.strides)

    def _storage(self, payload: Payload | Storage, kind: Global, numel: int) -> StorageRef:
        """One key for one payload, in the order in which the pickle names them."""
        if id(payload) not in self._storages:
            self._storages[id(payload)] = StorageRef(kind, str(len(self.payloads)), numel, self._rest)
            self.payloads.append(payload)
        return self._storages[id(payload)]


_UNTYPED = Global("torch.storage", "UntypedStorage")


def content(payload: Payload | Storage) -> np.ndarray:
    """The array whose bytes in C order are one storage."""
    return payload.data if isinstance(payload, Storage) else payload.fetch()


def _checked(value: object) -> Leaf | None:
    """The array that the value is, or None for another value that can be written."""
    kind = type(value)
    if kind in _CONTAINERS:
        _check_container(value)
    elif kind in _SCALARS:
        _check_scalar(value)
    elif isinstance(value, (Global, Opaque, Storage)):
        _check_record(value)
    else:
        return _checked_other(value)
    return None


def _checked_other(value: object) -> Leaf | None:
    found = leaf(value)
    if found is None and plain(value) is value:
        raise FileError(
            f"a {type(value).__module__}.{type(value).__qualname__} is not written, since "
            "torch.load(weights_only=True) would refuse it; store arrays, numbers, text, dicts, lists, tuples"
        )
    return found


def _check_container(value: object) -> None:
    if isinstance(value, dict):
        for key in value:
            _check_key(key)
    extra = set(getattr(value, "__dict__", ())) - {"_metadata", "__metadata__"}
    if extra:
        raise FileError(f"attributes that would be lost: {sorted(extra)}")


def _check_key(key: object) -> None:
    parts = key if type(key) is tuple else (key,)
    if not all(is_plain_key(plain(part)) for part in parts):
        raise FileError(f"a key of type {type(key).__name__}; keys are text or whole numbers")


def _check_scalar(value: object) -> None:
    if type(value) is int and value.bit_length() >= 8 * MAX_INT_BYTES:
        raise FileError(f"an int of {value.bit_length()} bits, which torch.load(weights_only=True) refuses")


def _check_record(value: Global | Opaque | Storage) -> None:
    if isinstance(value, Storage):
        allowed = storage_itemsize(value.kind.attribute) is not None
    elif isinstance(value, Global):
        allowed = value.name in _CONSTANTS or value.name in _REBUILDS
    else:
        plain_call = isinstance(value.function, Global) and value.name in _REBUILDS
        allowed = plain_call and value.state is None and not (value.items or value.elements)
    if not allowed:
        name = value.kind.name if isinstance(value, Storage) else value.name
        raise FileError(f"{name}, which torch.load(weights_only=True) refuses; take it out")
