"""Apart: a rule whose keys and paths share a hole is many rules at once; here they are taken apart.

What remains of each are keys and leaves that belong together, whole or not at all.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from jaxstate.rules.fused import Fused
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Rule
from jaxstate.template import fill, holes

Bijection = Rule | Fused


def apart(rule: Any) -> list[Any]:
    """One rule for each value of the holes that key and path share, and itself where there are none.

    >>> apart(Rule("h.{l}.weight", "{l}.kernel", "i o -> o i", l=range(2)))
    [Rule("h.0.weight", "0.kernel", "i o -> o i"), Rule("h.1.weight", "1.kernel", "i o -> o i")]
    """
    match rule:
        case Fused():
            return [Fused(row, rule.axis) for row in zip(*map(_apart, rule.parts), strict=True)]
        case Padded():
            return [replace(rule, rule=one) for one in _apart(rule.rule)]
        case Rule():
            return _apart(rule)
    return [rule]


def _apart(rule: Rule) -> list[Rule]:
    values = dict(rule.names)
    shared = [axis for axis in holes(rule.key) if axis in holes(rule.path)]
    rest = {axis: row for axis, row in values.items() if axis not in shared}
    if not shared:
        return [rule]
    rows = [dict(zip(shared, row, strict=True)) for row in product(*(values[axis] for axis in shared))]
    return [_at(rule, row, rest) for row in rows]


def _at(rule: Rule, row: Mapping[str, Any], rest: Mapping[str, Any]) -> Rule:
    axes: dict[str, Any] = {**rest, **dict(rule.sizes)}
    names = fill(rule.key, row), fill(rule.path, row)
    return Rule(*names, rule.pattern, buffer=rule.buffer, shape=rule.shape, dtype=rule.dtype, **axes)
