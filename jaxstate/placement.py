"""From a numpy view to the leaf that takes a template leaf's place: its dtype, its sharding, its own memory.

The view may be mapped from a file and transposed; it is copied once, into memory that JAX can take as it
is. A sharded template makes each process copy only the slices of its own devices. Nothing that is returned
shares memory with the view.
"""

from typing import Any

import jax
import numpy as np

from jaxstate.tiles import fill

ALIGNMENT = 64  # bytes; JAX on the CPU takes over an array that starts there, and copies any other


def place(view: np.ndarray, template: Any) -> Any:
    """An array with the template's dtype and sharding, and this view's values.

    The template may be a jax or numpy array or a `jax.ShapeDtypeStruct`. Its shape and dtype must fit: see
    `narrows`.

    >>> view = np.arange(6.0, dtype="float32").reshape(2, 3).T
    >>> bool((place(view, jax.numpy.zeros((3, 2))) == view).all())
    True
    """
    dtype = np.dtype(template.dtype)
    if isinstance(template, np.ndarray):
        return fresh(view, dtype)
    sharding = getattr(template, "sharding", None)
    if sharding is None or not getattr(template, "committed", True):
        return jax.device_put(fill(_aligned(view.shape, dtype), view))
    return jax.make_array_from_callback(
        view.shape, sharding, lambda index: fill(_aligned(view[index].shape, dtype), view[index])
    )


def fresh(view: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A writable, contiguous copy of a view, in memory of its own.

    >>> view = np.arange(6.0).reshape(2, 3).T
    >>> copy = fresh(view)
    >>> bool((copy == view).all()), copy.flags.c_contiguous, copy.flags.owndata
    (True, True, True)
    """
    return fill(np.empty(view.shape, dtype or view.dtype), view)


def narrows(found: Any, wanted: Any) -> bool:
    """True if some value of the first dtype is none of the second.

    >>> narrows("float32", "bfloat16"), narrows("bfloat16", "float32"), narrows("int64", "int32")
    (True, False, True)
    """
    return not np.can_cast(np.dtype(found), np.dtype(wanted), casting="safe")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
