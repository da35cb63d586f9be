"""How far two arrays are apart: absolutely, relatively, and in units of the last place.

Any dtype of torch, safetensors or ml_dtypes. Long arrays are read in pieces, so that beside the arrays
themselves next to no memory is needed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

PIECE = 1 << 20  # elements that are compared at once


class Difference(NamedTuple):
    """How far two arrays of one shape are apart; False if no element differs.

    Attributes:
        count: how many elements differ. Two NaNs do not; 0.0 and -0.0 do not.
        max_abs: the largest `|a - b|`; infinite where one of the two is NaN, or both are
            infinite with opposite signs.
        max_rel: the largest `|a - b| / max(|a|, |b|)`, which lies between 0 and 2.
        max_ulps: the largest number of steps from one value to the other through the values that the dtype
            can hold; None where the dtypes differ or are no real floats.
        where: the index of the element behind `max_abs`; None if nothing differs.
    """

    count: int
    max_abs: float
    max_rel: float
    max_ulps: int | None
    where: tuple[int, ...] | None

    def __bool__(self) -> bool:
        return self.count > 0


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """How far two arrays of one shape are apart.

    Raises:
        ValueError: two shapes.

    >>> one = np.ones(3, "float32")
    >>> difference(one, one) == Difference(0, 0.0, 0.0, 0, None)
    True
    >>> difference(one, np.nextafter(one, np.float32(2))).max_ulps
    1
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}")
    exact = 0 if a.dtype == b.dtype and is_real_float(a.dtype) else None
    total = Difference(0, 0.0, 0.0, exact, None)
    for start, x, y in _pieces(a, b):
        total = _joined(total, _piece_difference(x, y, start, a.shape, exact is not None))
    return total


def _pieces(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    x, y = a.reshape(-1), b.reshape(-1)
    for start in range(0, x.size, PIECE):
        yield start, x[start : start + PIECE], y[start : start + PIECE]


def _piece_difference(x: np.ndarray, y: np.ndarray, start: int, shape: Any, ulps: bool) -> Difference:
    one, other = _wide(x), _wide(y)
    differs = ~((one == other) | (np.isnan(one) & np.isnan(other)))
    if not differs.any():
        return Difference(0, 0.0, 0.0, 0 if ulps else None, None)
    places = np.flatnonzero(differs)
    absolute, relative = _distances(one[places], other[places])
    where = np.unravel_index(start + int(places[np.argmax(absolute)]), shape)
    apart = int(steps(x[places], y[places]).max()) if ulps else None
    indices = tuple(int(n) for n in where)
    return Difference(places.size, float(absolute.max()), float(relative.max()), apart, indices)


def _joined(a: Difference, b: Difference) -> Difference:
    further = b if b and (not a or b.max_abs > a.max_abs) else a
    ulps = None if a.max_ulps is None or b.max_ulps is None else max(a.max_ulps, b.max_ulps)
    return Difference(a.count + b.count, further.max_abs, max(a.max_rel, b.max_rel), ulps, further.where)


def _wide(x: np.ndarray) -> np.ndarray:
    """The values in a type that holds them all: integers of 64 bits pass as long doubles do."""
    if np.issubdtype(x.dtype, np.complexfloating):
        return x.astype(np.complex128)
    return x.astype(np.longdouble if x.dtype.kind in "iu" and x.dtype.itemsize == 8 else np.float64)


def _distances(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", over="ignore"):
        absolute = np.abs(x - y)
        scale = np.maximum(np.abs(x), np.abs(y))
        relative = np.where(np.isfinite(scale), absolute / np.where(scale == 0, 1, scale), np.inf)
    return np.where(np.isnan(absolute), np.inf, absolute), relative


def is_real_float(dtype: np.dtype) -> bool:
    """True of numpy's floats and of ml_dtypes' that have a sign.

    >>> is_real_float(np.dtype("float16")), is_real_float(np.dtype("complex64"))
    (True, False)
    """
    # e8m0 is a bare exponent and has no sign; its bits count up as its values do, as those of integers.
    return (dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))) and "e8m0" not in dtype.name


def steps(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Steps between floats of one dtype through the values that it can hold, through zero if signs differ.

    >>> steps(np.float32([1, -0.0]), np.nextafter(np.float32([1, 0]), np.float32(2))).tolist()
    [1, 1]
    """
    negative_x, size_x = _sign_and_rank(x)
    negative_y, size_y = _sign_and_rank(y)
    apart = np.where(size_x > size_y, size_x - size_y, size_y - size_x)
    return np.where(negative_x == negative_y, apart, size_x + size_y)


def _sign_and_rank(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IEEE formats and their kin order the bits below the sign as they order the magnitudes."""
    bits = x.view(f"uint{8 * x.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (ml_dtypes.finfo(x.dtype).bits - 1))
    return (bits & sign) != 0, bits & (sign - np.uint64(1))
