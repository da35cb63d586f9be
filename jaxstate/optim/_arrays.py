"""Arrays of one value, in the place of a leaf and as torch fills them."""

from typing import Any

import numpy as np


def full(like: Any, value: Any) -> np.ndarray:
    """A view of one value, with the shape and dtype of a leaf, which may be abstract; it takes no memory.

    >>> full(np.zeros((2, 3), "float16"), 0.5).strides
    (0, 0)
    """
    dtype = np.dtype(like.dtype)
    return np.broadcast_to(np.array(as_both_parts(value, dtype), dtype), like.shape)


def as_both_parts(value: Any, dtype: Any) -> Any:
    """A number as torch fills a buffer with it: the real and the imaginary part of a complex one alike.

    >>> as_both_parts(0.5, np.complex64)
    (0.5+0.5j)
    """
    return complex(value, value) if np.issubdtype(dtype, np.complexfloating) else value
