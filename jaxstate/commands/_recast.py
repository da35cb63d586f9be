"""All floats of an object in another dtype, rounded one array at a time, when they are written."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxstate.lazy import LazyArray


def recast(obj: Any, dtype: np.dtype) -> Any:
    """The same dicts, lists and tuples, with every array of real floats in this dtype.

    Arrays that share memory go on sharing it, so they are rounded at once; every other one when it is
    asked for.

    >>> found = recast({"w": np.float32([0.5, 1.5]), "n": np.int64([3])}, np.dtype("float16"))
    >>> np.asarray(found["w"]).dtype, found["n"].dtype
    (dtype('float16'), dtype('int64'))
    """
    shared = Counter(_memory(array) for array in _arrays(obj))
    rounded: dict[Any, np.ndarray] = {}

    def cast(array: Any) -> Any:
        if not _is_float(array.dtype) or array.dtype == dtype:
            return array
        if shared[_memory(array)] == 1:
            return LazyArray(array.shape, dtype, lambda: np.asarray(array).astype(dtype))
        whole = rounded.setdefault(_memory(array), np.asarray(array).astype(dtype))
        return whole

    return _mapped(obj, cast)


def _arrays(obj: Any) -> Iterator[Any]:
    if isinstance(obj, dict | list | tuple):
        for child in obj.values() if isinstance(obj, dict) else obj:
            yield from _arrays(child)
    elif isinstance(obj, np.ndarray | LazyArray):
        yield obj


def _mapped(obj: Any, change: Any) -> Any:
    if isinstance(obj, dict):
        new = OrderedDict((key, _mapped(value, change)) for key, value in obj.items())
        vars(new).update(getattr(obj, "__dict__", {}))
        return new if isinstance(obj, OrderedDict) else dict(new)
    if isinstance(obj, list | tuple):
        return type(obj)(_mapped(value, change) for value in obj)
    return change(obj) if isinstance(obj, np.ndarray | LazyArray) else obj


def _memory(array: Any) -> Any:
    if isinstance(array, LazyArray):
        return id(array)
    return array.ctypes.data, array.shape, array.strides


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))
