"""The axes of a Rule's arrays: in which dimension each stands, and how long it is.

What is joined or padded is so along one axis, and not along a dimension, which may be merged of several.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from jaxstate.errors import BindingError
from jaxstate.layout import Side
from jaxstate.rules.rule import Rule
from jaxstate.template import holes


def array_dims(rule: Rule, in_torch: bool) -> Side:
    """The dimensions of the arrays themselves on one side, without the axes that live in names there.

    >>> array_dims(Rule("h.{l}.w", "h.w", "l i (n k) -> (n k) i", l=range(2)), in_torch=True)
    (('n', 'k'), ('i',))
    """
    name, other = (rule.key, rule.path) if in_torch else (rule.path, rule.key)
    side = rule.layout.right if in_torch else rule.layout.left
    return side[len([axis for axis in holes(name) if axis not in holes(other)]) :]


def lengths_of(rule: Rule, shape: Sequence[int] | None = None) -> dict[str, int]:
    """The length of every axis, where the leaves have this shape, or the one that the rule knows.

    Raises:
        BindingError: no shape is known.
        LayoutError: a shape that does not fit.

    >>> lengths_of(Rule("w", "w", "i (n k) -> (n k) i", n=2), (3, 8))
    {'n': 2, 'i': 3, 'k': 4}
    """
    shape = rule.shape if shape is None else shape
    if shape is None:
        raise BindingError(f"{rule!r} does not know its shape: Binding.of(leaves) tells it")
    values = dict(rule.names)
    inner = [len(values[axis]) for axis in holes(rule.path) if axis not in holes(rule.key)]
    return rule.layout.axes((*inner, *shape))


def resized(rule: Rule, axis: str, length: int | None, shape: Sequence[int] | None = None) -> Rule:
    """The rule with another length of an axis, or with none said.

    Args:
        shape: of its leaves, all other axes of which stay as they are; None where it is not known.

    >>> resized(Rule("w", "w", "i (n k) -> (n k) i", n=2), "n", 3, (5, 8)).shape
    (5, 12)
    """
    axes: dict[str, Any] = {**dict(rule.names), **dict(rule.sizes)}
    known: dict[str, Any] = dict(buffer=rule.buffer, dtype=rule.dtype)
    if length is None:
        axes.pop(axis, None)
    else:
        axes[axis] = length
    if shape is not None and length is not None:
        lengths = {**lengths_of(rule, shape), axis: length}
        known["shape"] = [prod(lengths[each] for each in dim) for dim in array_dims(rule, in_torch=False)]
    return Rule(rule.key, rule.path, rule.pattern, **known, **axes)
