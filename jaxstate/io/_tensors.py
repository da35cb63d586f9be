"""Makes numpy views of the tensors that a torch pickle describes; every number in it is checked first.

The functions by which torch pickles a tensor are in `torch/_utils.py`: `_rebuild_tensor_v2(storage, offset,
size, stride, requires_grad, hooks[, metadata])` for the dtypes that have a storage class of their own, and
`_rebuild_tensor_v3(..., hooks, dtype[, metadata])` for the others. Offsets and strides count elements.
"""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

import numpy as np

from jaxstate.errors import FileError

from ._dtypes import BY_STORAGE, BY_TORCH, BY_TORCHSCRIPT_STORAGE, Dtype, storage_itemsize
from ._emulate import EMULATIONS, Budget, Emulation
from ._records import Global, Opaque, Raw, Storage

MAX_DIMENSIONS = 64
MAX_EXPANSION = 64 << 20
"""Bytes to which a small storage may unfold by strides of 0, as in `torch.ones(1).expand(1000, 1000)`."""


class Tensors:
    """The tensors of one file.

    Args:
        record: the bytes of a storage, as a uint8 array, by its key.
        swapped: whether the file's byte order is not this machine's.
        size: of the file in bytes; no tensor may unfold to more, beyond MAX_EXPANSION.
    """

    def __init__(self, record: Callable[[str], np.ndarray], swapped: bool, size: int):
        self._record = record
        self._swapped = swapped
        self._largest = max(size, MAX_EXPANSION)
        self._copies = Budget(4 * size + MAX_EXPANSION)
        self._native: dict[tuple[str, str], np.ndarray] = {}
        self._rebuild: Mapping[str, Emulation] = MappingProxyType(
            {
                "torch._utils._rebuild_tensor": self._v1,
                "torch._utils._rebuild_tensor_v2": self._v2,
                "torch._utils._rebuild_tensor_v3": self._v3,
                "torch._utils._rebuild_parameter": _first_array,
                "torch._utils._rebuild_parameter_with_state": _first_array,
                "torch._utils._rebuild_device_tensor_from_numpy": _same_dtype,
                "torch._utils._rebuild_device_tensor_from_cpu_tensor": _same_dtype,
            }
        )

    def storage(self, pid: object) -> Storage | Opaque:
        """What the persistent id `("storage", class, key, location, numel)` names.

        On the device `meta` a storage has no values, whatever bytes stand under its key: it stays opaque.
        """
        if type(pid) is not tuple or len(pid) != 5:
            raise FileError("a persistent id that is not of a storage")
        word, kind, key, location, numel = pid
        types = type(word), type(kind), type(key), type(location), type(numel)
        if types != (str, Global, str, str, int) or word != "storage":
            raise FileError("a persistent id that is not of a storage")
        if location == "meta":
            return Opaque(kind, (key, location, numel))
        data = self._record(key)
        _check_numel(kind, key, numel, len(data))
        if self._swapped and kind.attribute == "QInt32Storage":
            raise FileError(f"storage {key!r}: {kind.name} in the other byte order is not read")
        return Storage(kind, key, numel, data)

    def emulations(self) -> Mapping[str, Emulation]:
        """The calls that make tensors, besides Python's and numpy's own."""
        from_type = {"torch._tensor._rebuild_from_type_v2": self._from_type}
        return MappingProxyType({**EMULATIONS, **self._rebuild, **from_type})

    def _v1(self, args: tuple, budget: Budget):
        return self._typed(args, None) if len(args) == 4 else None

    def _v2(self, args: tuple, budget: Budget):
        return self._typed(args[:4], (*args, None)[6]) if len(args) in (6, 7) else None

    def _v3(self, args: tuple, budget: Budget):
        if len(args) not in (7, 8) or not (isinstance(args[6], Global) and isinstance(args[0], Storage)):
            return None
        dtype = BY_TORCH.get(args[6].attribute) if args[6].module == "torch" else None
        return dtype and self.tensor(dtype, args[:4], (*args, None)[7])

    def _from_type(self, args: tuple, budget: Budget):
        # A plain tensor takes this form when it carries attributes in Python; a subclass stays opaque.
        if len(args) != 4 or not (isinstance(args[0], Global) and isinstance(args[1], Global)):
            return None
        rebuild = self._rebuild.get(args[0].name) if args[1].name in _PLAIN_TENSORS else None
        return rebuild(args[2], budget) if rebuild and type(args[2]) is tuple else None

    def _typed(self, place: tuple, metadata: object):
        name = place[0].kind.attribute if isinstance(place[0], Storage) else ""
        dtype = BY_STORAGE.get(name) or BY_TORCHSCRIPT_STORAGE.get(name)
        return dtype and self.tensor(dtype, place, metadata)

    def tensor(self, dtype: Dtype, place: tuple, metadata: object = None) -> np.ndarray | Raw:
        """The tensor at `place`: a Storage, and offset, shape and strides in elements."""
        storage, offset, size, stride = place
        _check_geometry(storage, dtype, offset, size, stride)
        self._check_expansion(storage, dtype, size)
        view = _view(self._bytes(storage, dtype), dtype.memory, offset, size, stride)
        if dtype.numpy is None:
            return _raw(view, dtype, metadata)
        return self._without_bits(view, metadata)

    def _bytes(self, storage: Storage, dtype: Dtype) -> np.ndarray:
        """The storage in this machine's byte order: one copy of it, so that what was tied stays tied."""
        if not self._swapped or dtype.itemsize == 1:
            return storage.data
        if dtype.numpy is None:
            raise FileError(f"storage {storage.key!r}: {dtype.torch} in the other byte order is not read")
        key = storage.key, dtype.torch
        if key not in self._native:
            self._copies.spend(len(storage.data))
            self._native[key] = _byteswapped(storage.data, dtype)
        return self._native[key]

    def _check_expansion(self, storage: Storage, dtype: Dtype, size: tuple[int, ...]) -> None:
        # numpy multiplies the other sizes of an empty array, too.
        if prod(n or 1 for n in size) >= 2**58 and 0 in size:
            raise FileError(f"storage {storage.key!r}: an empty tensor of shape {size}")
        if prod(size) * dtype.itemsize > self._largest:
            raise FileError(
                f"storage {storage.key!r}: a tensor of shape {size} unfolds {len(storage.data)} bytes "
                f"to {prod(size) * dtype.itemsize}, which is more than the file has"
            )

    def _without_bits(self, view: np.ndarray, metadata: object) -> np.ndarray:
        """The values themselves, where torch stored a mark "conjugated" or "negated" beside them."""
        conj, neg = _bits(metadata)
        if not (conj or neg):
            return view
        if view.dtype.kind not in ("c" if conj else "cfi"):
            raise FileError(f"a conjugated or negated tensor of dtype {view.dtype}")
        self._copies.spend(2 * view.nbytes)
        values = np.conjugate(view) if conj else view
        return _read_only(np.negative(values) if neg else values)


_PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


def _first_array(args: tuple, budget: Budget) -> object | None:
    return args[0] if args and isinstance(args[0], (np.ndarray, Raw)) else None


def _same_dtype(args: tuple, budget: Budget) -> object | None:
    array, dtype = args[:2] if len(args) == 4 else (None, None)
    row = BY_TORCH.get(dtype.attribute) if isinstance(dtype, Global) else None
    return array if row and isinstance(array, np.ndarray) and array.dtype == row.numpy else None


def _check_numel(kind: Global, key: str, numel: int, found: int) -> None:
    row = BY_TORCHSCRIPT_STORAGE.get(kind.attribute)
    itemsize = row.itemsize if row else storage_itemsize(kind.attribute)
    if itemsize is None or not 0 <= numel < 2**62 or not kind.module.startswith("torch"):
        raise FileError(f"storage {key!r} of class {kind.name[:200]} is not one of torch")
    # torch counts whole elements, so a few bytes may be left over.
    if not 0 <= found - numel * itemsize < itemsize:
        raise FileError(
            f"storage {key!r}: {numel} elements of {itemsize} bytes announced, {found} bytes found"
        )


def _check_geometry(storage: Storage, dtype: Dtype, offset, size, stride) -> None:
    if not (_are_sizes(size) and _are_sizes(stride) and len(size) == len(stride) and _are_sizes((offset,))):
        raise FileError(f"storage {storage.key!r}: a tensor without a proper offset, shape and strides")
    if 0 in size:
        return
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (last + 1) * dtype.itemsize > len(storage.data):
        raise FileError(
            f"storage {storage.key!r}: a tensor of shape {size}, strides {stride} and offset {offset} "
            f"ends at element {last} of {len(storage.data) // dtype.itemsize}"
        )


def _are_sizes(values: object) -> bool:
    """Whether this is a tuple of a few ints from 0 to 2**62."""
    if type(values) is not tuple or len(values) > MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _view(data: np.ndarray, dtype: np.dtype, offset: int, size, stride) -> np.ndarray:
    if 0 in size:
        return _read_only(np.empty(size, dtype))
    # A stride that is never taken may be any number; numpy takes those of 64 bits.
    steps = tuple(step * dtype.itemsize if step < 2**48 else dtype.itemsize for step in stride)
    return _read_only(np.ndarray(size, dtype, data, offset * dtype.itemsize, steps))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _byteswapped(data: np.ndarray, dtype: Dtype) -> np.ndarray:
    whole = data[: len(data) // dtype.itemsize * dtype.itemsize]
    part = dtype.itemsize // 2 if dtype.memory.kind == "c" else dtype.itemsize
    return whole.view(f"u{part}").byteswap().view(np.uint8)


def _raw(view: np.ndarray, dtype: Dtype, metadata: object) -> Raw:
    if any(_bits(metadata)):
        raise FileError(f"a conjugated or negated tensor of dtype {dtype.torch}")
    return Raw(dtype.torch, view.shape, view[..., None].view(np.uint8))


def _bits(metadata: object) -> tuple[bool, bool]:
    if metadata is None:
        return False, False
    if type(metadata) is not dict or not set(metadata) <= {"conj", "neg"}:
        raise FileError("a tensor with metadata other than `conj` and `neg`")
    return metadata.get("conj") is True, metadata.get("neg") is True
