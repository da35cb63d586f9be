"""Double: a Python float inside a compiled program, also where programs know no float64.

torch keeps hyper-parameters as Python floats, computes with them in double, and rounds to the array's dtype
only where number and array meet: `1 - beta2` of a float32 beta2 is off by one part in 10^5. So a number
travels as the unevaluated sum of three float32 (one float64, where jax has it), operators between numbers
keep at least the first two of them right, and an operator between a number and an array rounds first.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxstate.optim._zero import Zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Double:
    """A number as an array leaf, so that another value needs no compilation.

    Args:
        parts: (..., 3), of falling size, whose sum is the number; operators between numbers broadcast.

    >>> float(Double.of(0.999)) == 0.999
    True
    >>> float((1 - Double.of(0.999)) * jnp.ones(())) == float(np.float32(1 - 0.999))
    True
    """

    parts: Any

    # NumPy arrays would otherwise try to multiply element by element.
    __array_ufunc__ = None

    @classmethod
    def of(cls, number: Any, dtype: Any = None) -> "Double":
        """A number: exactly if it is Python's, and of a jax scalar as much as its dtype holds."""
        dtype = np.dtype(dtype or jnp.result_type(float))
        if isinstance(number, jax.Array):
            return _pair(jnp.asarray(number, dtype), jnp.zeros(jnp.shape(number), dtype))
        return cls(jnp.asarray(split(float(number), dtype)))

    @property
    def high(self) -> Any:
        """The number, rounded to the parts' dtype."""
        return self.parts[..., 0]

    @property
    def low(self) -> Any:
        """What the rounding has left off."""
        return self.parts[..., 1] + self.parts[..., 2]

    def __float__(self) -> float:
        """The shortest decimal that has these parts: the float itself, unless it is below 1e-29 or so."""
        parts = np.asarray(self.parts)
        total = float(parts[0]) + float(parts[1]) + float(parts[2])
        decimals = (float(f"{total:.{digits}e}") for digits in range(17))
        return next((x for x in decimals if np.array_equal(split(x, parts.dtype), parts)), total)

    def __neg__(self) -> "Double":
        return Double(-self.parts)

    def __rsub__(self, number: float) -> "Double":
        # The rounding of a sum is itself a float (Knuth, TAOCP 4.2.2), so none of it is lost.
        total = rounded(number - self.high)
        taken = total - number
        error = (number - (total - taken)) + (-self.high - taken)
        return _normal(total, error - self.low)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Zero):
            return other
        if not isinstance(other, Double):
            return self._at(other) * other
        a, b = _halves(self.high), _halves(other.high)
        rest = a[0] * b[1] + a[1] * b[0] + a[1] * b[1] + self.high * other.low + self.low * other.high
        return _normal(a[0] * b[0], rest)

    def __truediv__(self, other: Any) -> Any:
        if not isinstance(other, Double):
            return self._at(other) / other
        quotient = self.high / other.high
        return _pair(quotient, jnp.zeros_like(quotient))

    def __rtruediv__(self, array: Any) -> Any:
        return array / self._at(array)

    def __radd__(self, other: Any) -> Any:
        return other - -self if isinstance(other, (int, float)) else other + self._at(other)

    def sqrt(self) -> "Double":
        """The square root, to the first part."""
        return _pair(jnp.sqrt(self.high), jnp.zeros_like(self.high))

    def one_minus_power(self, t: Any) -> "Double":
        """`1 - self**t` to the first part, without the cancellation that a power of a rounded base brings.

        >>> x = Double.of(0.9999).one_minus_power(jnp.int32(3))
        >>> abs(float(x) / (1 - 0.9999**3) - 1) < 5e-7
        True
        """
        t = t.astype(self.high.dtype)
        if self.high.dtype == jnp.float64:
            # torch's own cancellation: it shows in the fourteenth digit.
            power = 1 - lax.pow(self.high, t)
        else:
            power = -jnp.expm1(t * jnp.log1p(-(1 - self).high))
        return _pair(power, jnp.zeros_like(power))

    def _at(self, array: Any) -> Any:
        return self.high.astype(array.dtype)


def rounded(x: Any) -> Any:
    """The value as the dtype holds it, before anything is done with it.

    A compiler knows better otherwise: it fuses a product and a sum and rounds once, and finds that
    `(1 - x) - 1` is `-x`. It does not see through a choice.
    """
    return jnp.where(x == x, x, jnp.nan)


def split(number: float, dtype: Any) -> np.ndarray:
    """Three numbers of a dtype, of falling size, whose sum is a float.

    >>> split(0.1, np.float32).astype(np.float64).sum() == 0.1
    np.True_
    """
    parts = []
    with np.errstate(over="ignore"):
        for _ in range(3):
            parts.append(np.dtype(dtype).type(number))
            number = number - float(parts[-1]) if math.isfinite(parts[-1]) else 0.0
    return np.array(parts)


def _halves(x: Any) -> tuple[Any, Any]:
    """Two numbers of half the bits whose sum is x: products of halves are exact, in float32."""
    if x.dtype == jnp.float64:
        return x, jnp.zeros_like(x)
    upper = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=11)
    return upper, x - upper


def _normal(large: Any, small: Any) -> Double:
    total = large + small
    return _pair(total, small - (total - large))


def _pair(high: Any, low: Any) -> Double:
    return Double(jnp.stack([high, low, jnp.zeros_like(high)], axis=-1))
