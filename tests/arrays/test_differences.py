"""How far arrays are apart, with numpy and exact arithmetic as the judges."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxstate.arrays import differences
from jaxstate.arrays.differences import Difference, difference

FLOATS = ("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize("name", FLOATS)
def test_ulps_count_the_values_between(name):
    dtype = dtype_of(name)
    bits = ml_dtypes.finfo(dtype).bits
    every = np.arange(min(1 << bits, 1 << 16), dtype=f"uint{bits}").view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.unique(every[np.isfinite(every.astype("float64"))].astype("float64"))
    for low, high in [(0, 1), (3, 17), (0, len(finite) - 1), (len(finite) // 2 - 1, len(finite) // 2 + 2)]:
        a, b = (finite[[n]].astype(dtype) for n in (low, high))
        assert difference(a, b).max_ulps == high - low
        assert difference(b, a).max_ulps == high - low


@given(hnp.arrays("float64", (4, 3), elements=st.floats(-1e6, 1e6)), st.integers(0, 11), st.floats(0.5, 2))
def test_absolute_relative_and_where(a, n, change):
    b = a.copy()
    index = np.unravel_index(n, a.shape)
    b[index] += change
    x, y = Fraction(a[index]), Fraction(b[index])
    found = difference(a, b)
    assert found.count == 1 and found.where == index
    assert found.max_abs == pytest.approx(float(abs(x - y)), rel=1e-12)
    assert found.max_rel == pytest.approx(float(abs(x - y) / max(abs(x), abs(y))), rel=1e-12)


def test_pieces_are_joined(monkeypatch):
    a = np.random.default_rng(3).normal(size=(7, 5)).astype("float32")
    b = a + np.random.default_rng(4).normal(size=a.shape).astype("float32") * 1e-3
    b[2] = a[2]
    whole = difference(a, b)
    monkeypatch.setattr(differences, "PIECE", 4)
    assert difference(a, b) == whole
    assert difference(a.T, b.T)[:4] == whole[:4]


def test_nans_infinities_and_zeros():
    nan, inf = np.nan, np.inf
    assert not difference(np.array([nan, 0.0, inf]), np.array([nan, -0.0, inf]))
    assert difference(np.array([nan]), np.array([1.0])).max_abs == inf
    assert difference(np.array([inf]), np.array([-inf])).max_abs == inf
    assert difference(np.array([inf]), np.array([1.0])).max_rel == inf


def test_integers_of_64_bits_are_told_apart():
    a = np.array([2**62, -5], "int64")
    assert difference(a, a + np.array([1, 0])) == Difference(
        1, 1.0, float(np.longdouble(1) / (2**62 + 1)), None, (0,)
    )


@pytest.mark.parametrize("name", ["bool", "int4", "uint4", "complex64", "float8_e8m0fnu", "int8"])
def test_other_dtypes_have_no_ulps(name):
    a = np.array([0, 1, 1]).astype(dtype_of(name))
    b = np.array([1, 1, 1]).astype(dtype_of(name))
    expected = 0 if (a == b).all() else 1
    found = difference(a, b)
    assert found.max_ulps is None and found.count == expected


def test_two_dtypes_are_compared_as_values():
    a = np.array([0.5, 1.25], "float32")
    assert not difference(a, a.astype(ml_dtypes.bfloat16))
    assert difference(np.array([1.001], "float32"), np.array([1.0], ml_dtypes.bfloat16)).max_ulps is None


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(1, 2\)"):
        difference(np.zeros(2), np.zeros((1, 2)))
