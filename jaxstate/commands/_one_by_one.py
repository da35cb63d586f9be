"""An object whose arrays are made one at a time, when they are written; what shares memory stays shared.

This is how `convert` rounds, and how its progress bar knows which array has been asked for.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxstate.arrays.lazy import LazyArray, from_parts
from jaxstate.errors import FileError

Array = np.ndarray | LazyArray


def recast(obj: Any, dtype: np.dtype) -> Any:
    """The same dicts, lists and tuples, with every array of real floats in this dtype.

    What is one array in memory stays one; views of a part of another become arrays of their own.

    Raises:
        FileError: when it is made; a finite number that is beyond the dtype.

    >>> found = recast({"w": np.float32([0.5, 1.5]), "n": np.int64([3])}, np.dtype("float16"))
    >>> np.asarray(found["w"]).dtype, found["n"].dtype
    (dtype('float16'), dtype('int64'))
    """

    def cast(array: Array) -> Array:
        if not _is_float(array.dtype) or array.dtype == dtype:
            return array
        return from_parts(array.shape, dtype, lambda box: _rounded(array[box], dtype), tied=True)

    return _mapped(obj, _once(cast))


def announced(obj: Any, ask: Callable[[int], Any]) -> Any:
    """The same object, which says how many bytes an array, or a part of it, has when these are asked for."""
    overlapping = _overlapping(obj)

    def announce(array: Array) -> Array:
        if _place(array) in overlapping:  # a view of a part of another array, and written as such
            return array
        return from_parts(array.shape, array.dtype, lambda box: _asked(array[box], ask), tied=True)

    return _mapped(obj, _once(announce))


def _asked(part: Any, ask: Callable[[int], Any]) -> Any:
    ask(part.nbytes)
    return part


def _once(change: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function, which makes one array of what is one array in memory."""
    made: dict[Any, Array] = {}

    def changed(array: Array) -> Array:
        if _place(array) not in made:
            made[_place(array)] = change(array)
        return made[_place(array)]

    return changed


def _rounded(array: Array, dtype: np.dtype) -> np.ndarray:
    values = np.asarray(array)
    with np.errstate(over="ignore"):
        new = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(new)
    if lost.any():
        raise FileError(f"{values[lost][0]} is beyond {dtype}; take a dtype of a wider range")
    return new


def _overlapping(obj: Any) -> set[Any]:
    """The places of arrays that lie in part where another lies."""
    places = {_place(array): array for array in _arrays(obj) if isinstance(array, np.ndarray) and array.size}
    bounds = {place: np.lib.array_utils.byte_bounds(array) for place, array in places.items()}
    found, reach, last = set(), 0, None
    for place, (start, stop) in sorted(bounds.items(), key=lambda item: item[1]):
        if start < reach:
            found |= {place, last}
        if stop > reach:
            reach, last = stop, place
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
    if isinstance(array, LazyArray) or not array.size:
        return id(array)
    return array.ctypes.data, array.shape, array.strides, array.dtype.str


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))
