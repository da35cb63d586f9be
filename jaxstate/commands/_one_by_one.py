"""An object whose arrays are made one at a time, when they are written; what shares memory stays shared.

This is how `convert` rounds, and how its progress bar knows which array has been asked for.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from jaxstate.errors import FileError
from jaxstate.lazy import LazyArray

Array = np.ndarray | LazyArray


def recast(obj: Any, dtype: np.dtype) -> Any:
    """The same dicts, lists and tuples, with every array of real floats in this dtype.

    Arrays that share memory are rounded at once, every other one when its values are asked for.

    Raises:
        FileError: then; a finite number that is beyond the dtype.

    >>> found = recast({"w": np.float32([0.5, 1.5]), "n": np.int64([3])}, np.dtype("float16"))
    >>> np.asarray(found["w"]).dtype, found["n"].dtype
    (dtype('float16'), dtype('int64'))
    """
    shared, rounded = _sharing(obj), {}

    def cast(array: Array) -> Array:
        if not _is_float(array.dtype) or array.dtype == dtype:
            return array
        if id(array) not in shared:
            return LazyArray(array.shape, dtype, lambda: _rounded(array, dtype))
        if _place(array) not in rounded:
            rounded[_place(array)] = _rounded(array, dtype)
        return rounded[_place(array)]

    return _mapped(obj, cast)


def announced(obj: Any, ask: Callable[[int], Any]) -> Any:
    """The same object, which says how many bytes each array has when its values are asked for."""
    shared = _sharing(obj)

    def announce(array: Array) -> Array:
        if id(array) in shared:
            return array
        return LazyArray(array.shape, array.dtype, lambda: (ask(array.nbytes), array)[1])

    return _mapped(obj, announce)


def _rounded(array: Array, dtype: np.dtype) -> np.ndarray:
    values = np.asarray(array)
    with np.errstate(over="ignore"):
        new = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(new)
    if lost.any():
        raise FileError(f"{values[lost][0]} is beyond {dtype}; take a dtype of a wider range")
    return new


def _sharing(obj: Any) -> set[int]:
    """The ids of arrays whose memory another array of the object uses, too."""
    arrays = list(_arrays(obj))
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(a), id(a)) for a in arrays if isinstance(a, np.ndarray) and a.size
    )
    found = {key for key, count in Counter(map(id, arrays)).items() if count > 1}
    reach = 0, 0
    for span, following in pairwise([*spans, (np.inf, np.inf, 0)]):
        reach = max(reach, (span[1], span[2]))
        if following[0] < reach[0]:
            found |= {reach[1], following[2], span[2]}
    return found


def _arrays(obj: Any) -> Iterator[Array]:
    if isinstance(obj, dict | list | tuple):
        for child in obj.values() if isinstance(obj, dict) else obj:
            yield from _arrays(child)
    elif isinstance(obj, Array):
        yield obj


def _mapped(obj: Any, change: Callable[[Array], Array]) -> Any:
    if isinstance(obj, dict):
        new = type(obj)((key, _mapped(value, change)) for key, value in obj.items())
        vars(new).update(vars(obj)) if isinstance(obj, OrderedDict) else None
        return new
    if isinstance(obj, list | tuple):
        return type(obj)(_mapped(value, change) for value in obj)
    return change(obj) if isinstance(obj, Array) else obj


def _place(array: Array) -> Any:
    if isinstance(array, LazyArray):
        return id(array)
    return array.ctypes.data, array.shape, array.strides


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))
