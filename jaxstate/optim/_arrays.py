"""Arrays of one value, in the place of a leaf and as torch fills them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def full(like: Any, value: Any) -> jax.Array:
    """An array of one value, with the shape, dtype and sharding of a leaf, which may be abstract."""
    return jnp.full(like.shape, as_both_parts(value, like.dtype), like.dtype, device=_sharding(like))


def as_both_parts(value: Any, dtype: Any) -> Any:
    """A number as torch fills a buffer with it: the real and the imaginary part of a complex one alike.

    >>> as_both_parts(0.5, np.complex64)
    (0.5+0.5j)
    """
    return complex(value, value) if np.issubdtype(dtype, np.complexfloating) else value


def _sharding(like: Any) -> Any:
    return getattr(like, "sharding", None) if getattr(like, "committed", True) else None
