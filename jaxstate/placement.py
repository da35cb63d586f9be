"""From a numpy view to the leaf that takes a template leaf's place: its dtype, its sharding, its own memory.

The view may be mapped from a file and transposed; a sharded template makes each process copy only the
slices of its own devices. Nothing that is returned shares memory with the view.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def place(view: np.ndarray, template: Any) -> Any:
    """An array with the template's dtype and sharding, and this view's values.

    The template may be a jax or numpy array or a `jax.ShapeDtypeStruct`. Its shape and dtype must fit: see
    `narrows`.

    >>> view = np.arange(6.0, dtype="float32").reshape(2, 3).T
    >>> bool((place(view, jnp.zeros((3, 2))) == view).all())
    True
    """
    dtype = np.dtype(template.dtype)
    if isinstance(template, np.ndarray):
        return np.array(view, dtype=dtype, order="C")
    sharding = getattr(template, "sharding", None)
    if sharding is None or not getattr(template, "committed", True):
        return jnp.array(view, dtype=dtype)
    return jax.make_array_from_callback(
        view.shape, sharding, lambda index: np.array(view[index], dtype=dtype)
    )


def narrows(found: Any, wanted: Any) -> bool:
    """True if some value of the first dtype is none of the second.

    >>> narrows("float32", "bfloat16"), narrows("bfloat16", "float32"), narrows("int64", "int32")
    (True, False, True)
    """
    return not np.can_cast(np.dtype(found), np.dtype(wanted), casting="safe")


def owned(array: Any) -> np.ndarray:
    """A writable, contiguous numpy array in memory of its own, of anything array-like."""
    view = np.asarray(array)
    return np.array(view, order="C", copy=True)
