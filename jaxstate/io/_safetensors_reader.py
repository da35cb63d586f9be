"""Reads safetensors: a length, a JSON header, and the tensors' bytes behind it, without a copy.

The format is https://huggingface.co/docs/safetensors/index#format; the checks are those of its reference
implementation (`safetensors/src/tensor.rs`), and beyond these a key that stands twice is refused.
"""

import struct
from collections import OrderedDict
from math import prod
from typing import TypeGuard

import numpy as np

from jaxstate.errors import FileError

from ._dtypes import BY_SAFETENSORS, PACKED_BITS
from ._json import parsed
from ._recognise import MAX_HEADER
from ._records import Raw

METADATA = "__metadata__"


_PLACES = "DCP_SHARDING_INFO"
"""The key in the metadata under which torch.distributed.checkpoint tells where parts of tensors belong."""


def read(data: np.ndarray) -> OrderedDict:
    """The tensors by name, in the order of the header's keys; read-only views of `data`.

    The header's `__metadata__`, empty where it has none, becomes the attribute `__metadata__` of the result,
    in the way in which torch gives a state_dict its `_metadata`; `save` writes it back. The attribute also
    tells that the order of the entries is the format's, which sorts them, and not a model's.

    Raises:
        FileError: the header is damaged, the tensors do not tile the rest of the file exactly, or some are
            parts of tensors.
    """
    result = tensors(data)
    parts = [name for name, place in offsets(result.__metadata__).items() if any(place)]  # pyright: ignore
    if parts:
        raise FileError(f'it holds one rank\'s part of "{parts[0][:200]}"; load the folder with those of all')
    return result


def offsets(metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Where in whole tensors those of the file begin, for those of which it says so.

    >>> offsets({"DCP_SHARDING_INFO": '{"w": {"saved_offsets": [3, 0]}}'})
    {'w': (3, 0)}
    """
    if _PLACES not in metadata:
        return {}
    places = parsed(metadata[_PLACES].encode(errors="replace"), _PLACES)
    found = {
        key: place.get("saved_offsets") if type(place) is dict else None for key, place in places.items()
    }
    if not all(_is_sizes(place) for place in found.values()):
        raise FileError(f"{_PLACES} is not a map from names to offsets")
    return {key: tuple(place) for key, place in found.items()}  # pyright: ignore[reportArgumentType]


def tensors(data: np.ndarray) -> OrderedDict:
    """What `read` gives, where tensors may be parts."""
    header, start = _header(data)
    result = OrderedDict()
    result.__metadata__ = _metadata(header.pop(METADATA, {}))  # pyright: ignore[reportAttributeAccessIssue]
    spans = {name: _span(name, entry) for name, entry in header.items()}
    _check_tiling(spans, len(data) - start)
    for name, entry in header.items():
        first, last = spans[name]
        result[name] = _tensor(name, entry, data[start + first : start + last])
    return result


def _header(data: np.ndarray) -> tuple[dict, int]:
    if len(data) < 8:
        raise FileError("a safetensors file has at least 8 bytes")
    (length,) = struct.unpack("<Q", bytes(data[:8]))
    if length > min(MAX_HEADER, len(data) - 8):
        raise FileError(
            f"the header of {length} bytes does not fit a file of {len(data)}; the file is cut off"
        )
    return _parsed(bytes(data[8 : 8 + length])), 8 + length


def _parsed(text: bytes) -> dict:
    if text[:1] != b"{":
        raise FileError("the header is not a JSON object")
    return parsed(text, "the header")


def _metadata(value: object) -> dict[str, str]:
    if type(value) is not dict or not all(type(text) is str for text in value.values()):
        raise FileError(f"{METADATA} is not a map from text to text")
    return value


def _span(name: str, entry: object) -> tuple[int, int]:
    fields = entry if type(entry) is dict else {}
    offsets, shape = fields.get("data_offsets"), fields.get("shape")
    if not (
        _is_sizes(offsets) and len(offsets) == 2 and _is_sizes(shape) and type(fields.get("dtype")) is str
    ):
        raise FileError(f"entry {name[:200]!r} lacks a proper dtype, shape or data_offsets")
    first, last = offsets
    bits = _bits(name, fields["dtype"]) * prod(shape)
    if (last - first) * 8 != bits:
        raise FileError(
            f"entry {name[:200]!r}: {fields['dtype']} of shape {shape} has {bits} bits, its offsets are for "
            f"{last - first} bytes"
        )
    return first, last


def _is_sizes(values: object) -> TypeGuard[list[int]]:
    return (
        type(values) is list and len(values) <= 64 and all(type(v) is int and 0 <= v < 2**63 for v in values)
    )


def _bits(name: str, dtype: str) -> int:
    row = BY_SAFETENSORS.get(dtype)
    bits = PACKED_BITS.get(dtype) or (row and 8 * row.itemsize)
    if not bits:
        raise FileError(f"entry {name[:200]!r} is of the unknown dtype {dtype[:40]!r}")
    return bits


def _check_tiling(spans: dict[str, tuple[int, int]], size: int) -> None:
    end = 0
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if first != end:
            raise FileError(
                f"entry {name[:200]!r} starts at byte {first} of the data, not at {end}: a hole or an overlap"
            )
        end = last
    if end != size:
        raise FileError(f"the header describes {end} bytes of data, the file has {size}; fetch it again")


def _tensor(name: str, entry: dict, data: np.ndarray) -> np.ndarray | Raw:
    row, shape = BY_SAFETENSORS.get(entry["dtype"]), tuple(entry["shape"])
    if prod(n or 1 for n in shape) >= 2**58:
        raise FileError(f"entry {name[:200]!r}: an empty tensor of shape {shape}")
    if row is None:
        return Raw(entry["dtype"], shape, data)
    if row.numpy is None:
        return _paired(name, row.torch, shape, data)
    return _native(data, row.numpy).reshape(shape)


def _paired(name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> Raw:
    """Two 4-bit floats a byte: torch counts the bytes, where the header counts the numbers."""
    if not shape or shape[-1] % 2:
        raise FileError(f"entry {name[:200]!r}: F4 of shape {shape}, whose last axis is not even")
    halved = (*shape[:-1], shape[-1] // 2)
    return Raw(dtype, halved, data.reshape(*halved, 1))


def _native(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The file is little-endian; elsewhere the array is a copy."""
    stored = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
    view = np.ndarray((len(data) // dtype.itemsize,), stored, data)
    view.flags.writeable = False
    return view if view.dtype.isnative else view.astype(dtype)
