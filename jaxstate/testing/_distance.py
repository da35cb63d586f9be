"""Distance: how far JAX's array is from torch's, in the measures that people ask for.

Judged is the largest difference over the scale, which is the largest magnitude in torch's array: one number
of the size of a rounding error where two programs are the same, whatever the units are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxstate.arrays.differences import is_real_float, steps
from jaxstate.arrays.foreign import as_numpy


@dataclass(frozen=True)
class Distance:
    """Two arrays of one shape, compared.

    Attributes:
        max_abs: the largest difference.
        relative: the same over the largest magnitude of torch's array.
        ulps: the largest number of floats that lie between two elements; of float32 if the dtypes differ.
        cosine: of the angle between both arrays as vectors.
        where: the index of the largest difference.
        theirs, ours: the elements there.
    """

    max_abs: float
    relative: float
    ulps: float
    cosine: float
    where: tuple[int, ...]
    theirs: float
    ours: float


def distance(theirs: Any, ours: Any) -> Distance:
    """Compare two arrays of one shape. Equal infinities and NaNs are no difference.

    >>> distance(np.float32([1, 2]), np.float32([1, 2.5])).relative
    0.25
    >>> distance(np.float32([np.nan]), np.float32([np.nan])).max_abs
    0.0
    """
    theirs, ours = as_numpy(theirs), as_numpy(ours)
    if theirs.shape != ours.shape:
        raise ValueError(f"arrays of shapes {theirs.shape} and {ours.shape} have no distance")
    if theirs.size == 0:
        return Distance(0.0, 0.0, 0.0, 1.0, (), np.nan, np.nan)
    wide_theirs, wide_ours = _wide(theirs), _wide(ours)
    apart = _apart(wide_theirs, wide_ours)
    where = np.unravel_index(int(np.argmax(apart)), apart.shape)
    return Distance(
        max_abs=float(apart[where]),
        relative=float(apart[where]) / (scale(theirs) or 1.0) if apart[where] else 0.0,
        ulps=float(np.max(_ulps(theirs, ours))),
        cosine=_cosine(wide_theirs.ravel(), wide_ours.ravel()),
        where=tuple(int(n) for n in where),
        theirs=wide_theirs[where].item(),
        ours=wide_ours[where].item(),
    )


def scale(array: np.ndarray) -> float:
    """The largest finite magnitude of an array; 0 of an array without one."""
    magnitudes = np.abs(_wide(array))
    return float(np.max(magnitudes[np.isfinite(magnitudes)], initial=0.0))


def kl_divergence(theirs: Any, ours: Any) -> float:
    """The mean Kullback-Leibler divergence, in nats, of JAX's distributions from torch's.

    Args:
        theirs, ours: logits of shape (..., classes), on any scale that softmax forgets.

    >>> logits = np.random.default_rng(0).normal(size=(3, 5))
    >>> kl_divergence(logits, logits + 7) < 1e-15
    True
    """
    p, q = _log_softmax(_wide(as_numpy(theirs))), _log_softmax(_wide(as_numpy(ours)))
    return float(np.mean(np.sum(np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q)), axis=-1)))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _apart(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(theirs - ours)
    same = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def _ulps(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    if theirs.dtype.kind == "c":
        return np.maximum(*(_ulps(part(theirs), part(ours)) for part in (np.real, np.imag)))
    one = theirs.dtype == ours.dtype and is_real_float(theirs.dtype)
    dtype = theirs.dtype if one else np.dtype(np.float32)
    apart = steps(np.ascontiguousarray(theirs, dtype), np.ascontiguousarray(ours, dtype))
    return np.where(_apart(_wide(theirs), _wide(ours)) == 0, 0, apart)


def _cosine(theirs: np.ndarray, ours: np.ndarray) -> float:
    norms = np.linalg.norm(theirs), np.linalg.norm(ours)
    if not all(norms):
        return float(norms[0] == norms[1])
    return float(np.vdot(theirs / norms[0], ours / norms[1]).real)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - np.max(x, axis=-1, keepdims=True)
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))
