"""The names of element types: torch's, its storages', safetensors' and numpy's, one row each.

No other file of `io` spells a dtype. A row without a numpy dtype is a type that numpy cannot compute
with; its elements travel as bytes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import ml_dtypes
import numpy as np


class Dtype(NamedTuple):
    """One element type under all its names.

    Attributes:
        torch: torch's name, `float32` for `torch.float32`.
        storage: the class that torch pickles as the type of the storage, such as `FloatStorage`. None where
            torch pickles an `UntypedStorage` and names the dtype beside it (every dtype since 2.1).
        numpy: the dtype of the arrays, or None.
        itemsize: bytes an element.
        safetensors: the name in a safetensors header, or None where that format has none.
    """

    torch: str
    storage: str | None
    numpy: np.dtype | None
    itemsize: int
    safetensors: str | None

    @property
    def memory(self) -> np.dtype:
        """The dtype of the elements in memory: numpy's own, or so many bytes without a meaning."""
        return np.dtype(f"V{self.itemsize}") if self.numpy is None else self.numpy


def _numeric(torch: str, storage: str | None, numpy, safetensors: str | None) -> Dtype:
    dtype = np.dtype(numpy)
    return Dtype(torch, storage, dtype, dtype.itemsize, safetensors)


DTYPES = (
    _numeric("float64", "DoubleStorage", np.float64, "F64"),
    _numeric("float32", "FloatStorage", np.float32, "F32"),
    _numeric("float16", "HalfStorage", np.float16, "F16"),
    _numeric("bfloat16", "BFloat16Storage", ml_dtypes.bfloat16, "BF16"),
    _numeric("int64", "LongStorage", np.int64, "I64"),
    _numeric("int32", "IntStorage", np.int32, "I32"),
    _numeric("int16", "ShortStorage", np.int16, "I16"),
    _numeric("int8", "CharStorage", np.int8, "I8"),
    _numeric("uint8", "ByteStorage", np.uint8, "U8"),
    _numeric("bool", "BoolStorage", np.bool_, "BOOL"),
    _numeric("complex64", "ComplexFloatStorage", np.complex64, "C64"),
    _numeric("complex128", "ComplexDoubleStorage", np.complex128, None),
    _numeric("uint16", None, np.uint16, "U16"),
    _numeric("uint32", None, np.uint32, "U32"),
    _numeric("uint64", None, np.uint64, "U64"),
    _numeric("float8_e4m3fn", None, ml_dtypes.float8_e4m3fn, "F8_E4M3"),
    _numeric("float8_e4m3fnuz", None, ml_dtypes.float8_e4m3fnuz, "F8_E4M3FNUZ"),
    _numeric("float8_e5m2", None, ml_dtypes.float8_e5m2, "F8_E5M2"),
    _numeric("float8_e5m2fnuz", None, ml_dtypes.float8_e5m2fnuz, "F8_E5M2FNUZ"),
    _numeric("float8_e8m0fnu", None, ml_dtypes.float8_e8m0fnu, "F8_E8M0"),
    Dtype("complex32", None, None, 4, None),
    Dtype("float4_e2m1fn_x2", None, None, 1, "F4"),
    Dtype("bits8", None, None, 1, None),
    Dtype("bits1x8", None, None, 1, None),
    Dtype("bits2x4", None, None, 1, None),
    Dtype("bits4x2", None, None, 1, None),
    Dtype("bits16", None, None, 2, None),
)

BY_TORCH: Mapping[str, Dtype] = MappingProxyType({row.torch: row for row in DTYPES})
BY_STORAGE: Mapping[str, Dtype] = MappingProxyType({row.storage: row for row in DTYPES if row.storage})
_IN_TORCHSCRIPT = {
    "complex32": "ComplexHalfStorage",
    **{f"uint{bits}": f"UInt{bits}Storage" for bits in (16, 32, 64)},
}

BY_TORCHSCRIPT_STORAGE: Mapping[str, Dtype] = MappingProxyType(
    {
        _IN_TORCHSCRIPT.get(row.torch, f"{row.torch.capitalize()}Storage"): row
        for row in DTYPES
        if not row.storage
    }
)
"""The storages that C++ names in TorchScript, for dtypes whose storage has no class in Python."""

BY_NUMPY: Mapping[np.dtype, Dtype] = MappingProxyType(
    {row.numpy: row for row in DTYPES if row.numpy is not None}
)
BY_SAFETENSORS: Mapping[str, Dtype] = MappingProxyType(
    {row.safetensors: row for row in DTYPES if row.safetensors}
)

QUANTIZED_STORAGES: Mapping[str, int] = MappingProxyType(
    {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1}
)

PACKED_BITS: Mapping[str, int] = MappingProxyType({"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6})
"""Element types of safetensors that are narrower than a byte, and their width in bits."""


BY_EXPORT: Mapping[int, str] = MappingProxyType(
    {
        **dict(enumerate("uint8 int8 int16 int32 int64 float16 float32 float64 complex32".split(), 1)),
        **dict(enumerate("complex64 complex128 bool bfloat16".split(), 10)),
        **dict(enumerate("uint16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz".split(), 28)),
        **dict(enumerate("float8_e8m0fnu uint32 uint64".split(), 33)),
    }
)
"""torch's names by the numbers that torch.export writes (`torch/_export/serde/schema.py`, `ScalarType`)."""


def storage_itemsize(name: str) -> int | None:
    """Bytes an element of the storage class of this name, or None if Python has no such class.

    >>> storage_itemsize("BFloat16Storage"), storage_itemsize("UntypedStorage"), storage_itemsize("Storage")
    (2, 1, None)
    """
    if name == "UntypedStorage":
        return 1
    row = BY_STORAGE.get(name)
    return row.itemsize if row else QUANTIZED_STORAGES.get(name)
