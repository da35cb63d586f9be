"""Arrays of a file: numpy's, jax's or torch's, and what of them a state may keep.

torch is never imported. Where a tensor can exist, torch has been imported already.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np


def as_numpy(array: Any) -> np.ndarray | None:
    """The array as numpy sees it, perhaps sharing its memory; None if it is no array.

    >>> as_numpy("adam") is None
    True
    """
    if isinstance(array, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(array)
    return _tensor(array) if is_tensor(array) else None


def is_tensor(array: Any) -> bool:
    """True for a torch.Tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _tensor(tensor: Any) -> np.ndarray:
    torch = sys.modules["torch"]
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        # numpy has no bfloat16 of its own, so the bits go through as integers.
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def is_narrowed(found: Any, kept: Any) -> bool:
    """True if values of one dtype are not all values of the other.

    >>> is_narrowed(np.float64, np.float32), is_narrowed(ml_dtypes.bfloat16, np.float32)
    (True, False)
    """
    try:
        return np.promote_types(found, kept) != np.dtype(kept)
    except TypeError:
        return True


def place(array: np.ndarray, like: Any) -> jax.Array:
    """A copy of an array with the dtype and the sharding of a leaf, which may be abstract."""
    # The copy is ours alone: jax may keep pointing at it, and torch would update its own in place.
    return jax.device_put(np.array(array, like.dtype, order="C"), _sharding(like))


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
