"""A line through the parameters: points on it, how far out they are, and where a cubic has its minimum.

torch's step length is a Python number or a 0-d tensor, according to the branch that it came from, and is
written into the file as what it is. So the kind travels with the value, as Python's operators would have it.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Kind(IntEnum):
    """What torch has a step length as; of two, an operator's result is the greater."""

    ABSENT = -2  # there was no step yet
    NONE = -1  # a step without iterations wrote None
    INT = 0
    FLOAT = 1
    TENSOR = 2


class Length(NamedTuple):
    """How far along the line: a 0-d array and a Kind."""

    value: Any
    kind: Any


class Point(NamedTuple):
    """A point on a line: where, the loss there, its gradient, and the slope along the line."""

    t: Length
    f: Any
    g: Any
    gtd: Any


class Line(NamedTuple):
    """`x + t d` as a function of t.

    Args:
        start: the point at 0.
        d: (N,), the direction.
        evaluate: a Length to the Point there.
    """

    start: Point
    d: Any
    evaluate: Any


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """One of two trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def sorted_bounds(a: Point, b: Point) -> tuple[Length, Length]:
    """The lengths of two points, the smaller first."""
    rising = a.t.value <= b.t.value
    return choose(rising, a.t, b.t), choose(rising, b.t, a.t)


def cubic_minimum(a: Point, b: Point, low: Length, high: Length) -> Length:
    """Where the cubic with these two values and slopes is least, between two bounds.

    Nocedal and Wright, Numerical optimization (2006), equation 3.59. Where it has no minimum: halfway.
    """
    x1, x2 = a.t.value, b.t.value
    d1 = a.gtd + b.gtd - 3 * (a.f - b.f) / (x1 - x2)
    square = d1**2 - a.gtd * b.gtd
    d2 = jnp.sqrt(jnp.maximum(square, 0))
    right = x2 - (x2 - x1) * ((b.gtd + d2 - d1) / (b.gtd - a.gtd + 2 * d2))
    left = x1 - (x1 - x2) * ((a.gtd + d2 - d1) / (a.gtd - b.gtd + 2 * d2))
    least = Length(jnp.where(x1 <= x2, right, left).astype(x1.dtype), jnp.int32(Kind.TENSOR))
    halfway = Length((low.value + high.value) / 2, mixed(low, high))
    return choose(square >= 0, clamped(least, low, high), halfway)


def clamped(t: Length, low: Length, high: Length) -> Length:
    """`min(max(t, low), high)` as Python has it, which keeps the first of its arguments if one is a NaN."""
    t = choose(low.value > t.value, low, t)
    return choose(high.value < t.value, high, t)


def mixed(*lengths: Length) -> Any:
    """The kind of a sum of these with a Python float as a factor."""
    kind = jnp.int32(Kind.FLOAT)
    for length in lengths:
        kind = jnp.maximum(kind, length.kind)
    return kind
