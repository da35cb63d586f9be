"""Double against Python's own floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.optim._double import Double, split

numbers = st.floats(1e-29, 1e30) | st.floats(-1e30, -1e-29) | st.just(0.0)
rates = st.floats(1e-9, 0.9, exclude_max=True)


@given(numbers)
def test_a_number_comes_back(x):
    parts = split(x, np.float32)
    assert float(Double(parts)) == x


@given(
    st.decimals(min_value="1e-40", max_value="1", allow_nan=False, places=None).map(
        lambda d: float(f"{d:.2e}")
    )
)
def test_a_short_number_comes_back_from_below_the_exact_range(x):
    assert x == 0 or float(Double(split(x, np.float32))) == x or x < 1e-37


@jax.jit
def _complement(x):
    return (1 - x).high


@jax.jit
def _decay(x, y):
    return (1 - x * y) * jnp.ones((), x.parts.dtype)


@jax.jit
def _bias_correction(x, t):
    return x.one_minus_power(t).high


@given(rates)
@settings(deadline=None)
def test_the_complement_is_rounded_once(x):
    assert float(_complement(Double.of(x))) == np.float32(1 - x)


@given(rates, rates)
@settings(deadline=None)
def test_one_minus_a_product_is_rounded_once(x, y):
    found, exact = np.float32(_decay(Double.of(x), Double.of(y))), 1 - x * y
    # Half a unit in the last place, and a little for numbers that lie between two floats.
    assert abs(float(found) - exact) <= 0.5001 * float(np.spacing(np.float32(exact)))


@given(st.floats(0.5, 0.99999), st.integers(1, 10**6))
@settings(deadline=None)
def test_bias_corrections_have_the_precision_of_the_dtype(b, t):
    found = float(_bias_correction(Double.of(b), jnp.int32(t)))
    exact = -np.expm1(t * np.log1p(-(1 - b)))
    assert found == pytest.approx(exact, rel=1e-6)


def test_plain_float32_would_not_do():
    plain = 1 - np.float32(0.999)
    assert abs(plain / (1 - 0.999) - 1) > 1e-5


def test_with_float64_a_number_is_one_part():
    with jax.enable_x64(True):
        x = Double.of(0.1)
        assert x.parts.dtype == jnp.float64 and x.parts.tolist() == [0.1, 0, 0]
        assert float(1 - x * Double.of(0.3)) == 1 - 0.1 * 0.3


@pytest.mark.parametrize("x", [float("inf"), 1e300])
def test_numbers_beyond_float32_are_infinite(x):
    assert float(Double.of(x)) == float("inf")
