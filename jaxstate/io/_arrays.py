"""Whatever holds numbers, seen as one thing on its way into a file: numpy, JAX, torch, or bytes kept raw.

Anything else with `shape`, `dtype` and `__array__` is a lazy array (`jaxstate/arrays/lazy.py`): its values
are asked for once, when they are written, and dropped. So are those of arrays on an accelerator.

JAX and torch are never imported here: an object of theirs can only exist where they are loaded already.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import FileError

from ._dtypes import BY_NUMPY, BY_TORCH, Dtype
from ._records import Global, Opaque, Raw


@dataclass(frozen=True, eq=False, slots=True)
class Leaf:
    """One array that is to be written.

    Attributes:
        dtype: its row in the table of dtypes.
        shape: its shape.
        fetch: gives the values in host memory, of `dtype.memory`; called once, when they are written.
        memory: the same array where it lies in memory that others may view, too, and None where it is a value
            of its own. torch updates tensors in place, so a JAX array, which is a value, must never come to
            share a storage with another.
        tied: whether the same object under two keys is one tensor, though it has no memory yet.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]
    memory: np.ndarray | None = None
    tied: bool = False


def leaf(value: object) -> Leaf | None:
    """The array that this object is, or None if it is none.

    Raises:
        FileError: an array that torch has no dtype for, or whose values cannot be had.
    """
    if isinstance(value, np.ndarray):
        return _from_numpy(value)
    if isinstance(value, Raw):
        return _from_raw(value)
    if _is_a(value, "torch", "Tensor"):
        return _from_torch(value)
    if _is_a(value, "jax", "Array"):
        return _from_jax(value)
    return _from_protocol(value) if _has_protocol(value) else None


def at(found: Leaf, place: str) -> Leaf:
    """The same leaf, whose fetching names the place in the object when it fails."""
    return found if found.memory is not None else replace(found, fetch=lambda: _fetched_at(found, place))


def _fetched_at(found: Leaf, place: str) -> np.ndarray:
    try:
        return found.fetch()
    except FileError as error:
        raise FileError(f"{place}: {error}") from error


def plain(value: object) -> object:
    """A numpy scalar as Python's number, a dtype or device of torch as a record; all else as it is.

    >>> plain(np.float32(0.5)), plain(np.int64(3)), plain("lr")
    (0.5, 3, 'lr')
    """
    if isinstance(value, np.generic):
        return _number(value)
    if _is_a(value, "torch", "dtype"):
        return Global(*str(value).rsplit(".", 1))
    if _is_a(value, "torch", "device"):
        return Opaque(Global("torch", "device"), tuple(str(value).split(":")[:1]) + _index(value))
    return tuple(value) if _is_a(value, "torch", "Size") else value  # pyright: ignore[reportArgumentType]


def _index(device) -> tuple[int, ...]:
    return () if device.index is None else (device.index,)


def _number(value: np.generic) -> object:
    number = value.item()
    if type(number) not in (bool, int, float, complex, str, bytes):
        raise FileError(f"a numpy scalar of dtype {value.dtype} has no counterpart in Python")
    return number


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether the value is of a class of a library that need not be there."""
    loaded = sys.modules.get(module)
    cls = getattr(loaded, name, None)
    return isinstance(cls, type) and isinstance(value, cls)


def _has_protocol(value: object) -> bool:
    return not isinstance(value, (np.generic, type)) and hasattr(value, "__array__")


def _row(dtype: object) -> Dtype:
    native = dtype.newbyteorder("=") if isinstance(dtype, np.dtype) and not dtype.isnative else dtype
    row = BY_NUMPY.get(native) if isinstance(native, np.dtype) else None
    if row is None:
        raise FileError(f"an array of dtype {dtype}, which torch cannot store; convert it first")
    return row


def _from_numpy(array: np.ndarray) -> Leaf:
    if type(array) not in (np.ndarray, np.memmap):
        raise FileError(f"a {type(array).__name__} is not a plain array; convert it with numpy.array")
    row = _row(array.dtype)
    if not array.dtype.isnative:
        return Leaf(row, array.shape, lambda: array.astype(row.memory))
    view = array.view(np.ndarray)
    return Leaf(row, array.shape, lambda: view, None if _belongs_to_jax(view) else view)


def _belongs_to_jax(array: np.ndarray) -> bool:
    """Whether this is numpy's view of a JAX array, as `numpy.asarray(x)` gives."""
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    return _is_a(owner, "jax", "Array")


def _from_raw(raw: Raw) -> Leaf:
    row = BY_TORCH.get(raw.dtype)
    if row is None:
        raise FileError(f"a tensor of dtype {raw.dtype}, which torch does not have")
    if raw.data.dtype != np.uint8 or raw.data.shape != (*raw.shape, row.itemsize):
        raise FileError(
            f"a Raw record of shape {raw.shape} and dtype {raw.dtype} with data of {raw.data.shape}"
        )
    view = raw.data.view(row.memory)[..., 0]
    return Leaf(row, raw.shape, lambda: view, view)


def _from_jax(array) -> Leaf:
    if _is_a(array, "jax.core", "Tracer"):
        raise FileError("a value that is being traced; save outside of jax.jit and its kin")
    if array.is_deleted():
        raise FileError("an array that was deleted or donated")
    if not array.is_fully_addressable:
        raise FileError("an array with parts on other hosts; jaxstate.sharded.save writes models of such")
    return Leaf(_row(array.dtype), array.shape, lambda: np.asarray(_unkept(array)))


def _unkept(array):
    """The same buffers as another array: one that was read keeps its copy in host memory."""
    parts = [shard.data for shard in array.addressable_shards]
    return sys.modules["jax"].make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def _from_protocol(value) -> Leaf:
    if isinstance(getattr(value, "shape", None), tuple) and isinstance(
        getattr(value, "dtype", None), np.dtype
    ):
        row = _row(value.dtype)
        tied = isinstance(value, LazyArray) and value.tied
        return Leaf(row, value.shape, lambda: _made(value, row), tied=tied)
    array = _read(value)
    return Leaf(_row(array.dtype), array.shape, lambda: array)


def _made(value, row: Dtype) -> np.ndarray:
    array = _read(value)
    if array.shape != value.shape or array.dtype != value.dtype:
        raise FileError(
            f"a {type(value).__name__} announced shape {value.shape} and dtype {value.dtype}, and gave "
            f"shape {array.shape} and dtype {array.dtype}"
        )
    return array.astype(row.memory, copy=False)


def _read(value) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:
        raise FileError(f"a {type(value).__name__} that numpy cannot read: {error}") from error


def _from_torch(tensor) -> Leaf:
    row = BY_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if row is None or str(tensor.layout) != "torch.strided" or tensor.is_nested or tensor.is_meta:
        raise FileError(
            f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}: write it with torch.save"
        )
    values = tensor.detach()
    if values.is_conj() or values.is_neg():
        values = values.resolve_conj().resolve_neg()
    shape = tuple(values.shape)
    if values.device.type != "cpu":
        return Leaf(row, shape, lambda: _viewed(values.cpu(), row))
    view = _viewed(values, row)
    return Leaf(row, shape, lambda: view, view)


def _viewed(tensor, row: Dtype) -> np.ndarray:
    """A CPU tensor as numpy sees it. Its bits pass as ints, since torch gives numpy no bfloat16."""
    torch = sys.modules["torch"]
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
    return tensor.view(bits[row.itemsize]).numpy().view(row.memory)
