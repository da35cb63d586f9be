"""Arrays of other libraries as numpy arrays, recognised without importing the library."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxstate.arrays.lazy import LazyArray

_NO_NUMPY = {"torch.bfloat16": ("int16", ml_dtypes.bfloat16)} | {
    f"torch.{name}": ("uint8", getattr(ml_dtypes, name))
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
}


def as_numpy(array: Any) -> np.ndarray:
    """The values of a numpy array, a jax array or a torch tensor, of any dtype, as a numpy array.

    Memory is shared where the library allows it.

    >>> as_numpy([1.0, 2.0])
    array([1., 2.])
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return np.asarray(array)
    tensor = array.detach().cpu().resolve_conj().resolve_neg()
    if (known := _NO_NUMPY.get(str(tensor.dtype))) is None:
        return tensor.numpy()
    integer, dtype = known
    return tensor.contiguous().view(getattr(torch, integer)).numpy().view(dtype)


def as_array(value: Any) -> np.ndarray | None:
    """The same of an array or a tensor; None of anything else.

    >>> as_array("adam") is None
    True
    """
    torch = sys.modules.get("torch")
    kinds = (np.ndarray, np.generic, jax.Array, LazyArray, *([torch.Tensor] if torch else []))
    return as_numpy(value) if isinstance(value, kinds) else None


def without_tensors(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same entries, torch tensors among them as numpy arrays that share their memory."""
    torch = sys.modules.get("torch")
    tensors = {key for key, array in arrays.items() if torch and isinstance(array, torch.Tensor)}
    return {key: as_numpy(v) if key in tensors else v for key, v in arrays.items()} if tensors else arrays


def dtype_of(array: Any) -> np.dtype:
    """The numpy dtype of an array's elements, without touching them.

    >>> dtype_of(np.zeros(0, "float16"))
    dtype('float16')
    """
    if isinstance(array.dtype, np.dtype):
        return array.dtype
    name = str(array.dtype)
    return np.dtype(_NO_NUMPY[name][1] if name in _NO_NUMPY else name.removeprefix("torch."))
