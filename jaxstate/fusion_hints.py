"""Fusion hints: an entry that the model lacks may be those that the file lacks, joined: a Fused is proposed.

Sizes conclude nothing: which part comes first, a file does not tell. So it is only said what would fit, where
the entries stand in one module and are as long together.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxstate.apart import apart
from jaxstate.axes import array_dims
from jaxstate.errors import quoted
from jaxstate.fused import Fused
from jaxstate.rule import Rule

Shape = tuple[int, ...]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def fusion_hints(
    rules: Sequence[Any], missing: Sequence[str], unexpected: Mapping[str, Shape | None]
) -> tuple[str, ...]:
    """A sentence for each entry of the file that may hold several of the model's; layers of a list share one.

    >>> rules = [Rule(f"attn.{p}.weight", p, "a b -> b a", shape=(3, n)) for p, n in [("q", 4), ("k", 2)]]
    >>> print(*fusion_hints(rules, ["attn.q.weight", "attn.k.weight"], {"attn.qk.weight": (6, 3)}))
    "attn.qk.weight" has the size of "attn.q.weight", "attn.k.weight" together; if it is these in this order,
    say rules=[Fused([Rule("attn.qk.weight", "q", "a b -> b a"),
                      Rule("attn.qk.weight", "k", "a b -> b a")], "b")]
    """
    lacking = set(missing) if unexpected else set()
    alone = [one for rule in rules if lacking and isinstance(rule, Rule) for one in apart(rule)]
    parts: dict[tuple[str, str], list[Rule]] = {}
    for rule in alone:
        if len(rule.keys) == 1 and rule.key in lacking:
            parts.setdefault(_place(rule.key), []).append(rule)
    found = [(key, parts.get(_place(key), []), shape) for key, shape in unexpected.items()]
    fitting = {key: row for key, row, shape in found if len(row) > 1 and _fit(row, shape)}
    return tuple(_sentence(keys, fitting[keys[0]]) for keys in _lists(fitting))


def _place(key: str) -> tuple[str, str]:
    """The module around an entry's layer, and what the layer calls the entry."""
    layer, _, entry = key.rpartition(".")
    return layer.rpartition(".")[0], entry


def _fit(parts: Sequence[Rule], shape: Shape | None) -> bool:
    shapes = [part.shapes[part.key] for part in parts]
    lengths = sum(own[0] if own else 0 for own in shapes)
    axes = {array_dims(part, in_torch=True)[0][:1] for part in parts if all(shapes)}
    return len(axes) == 1 and () not in axes and {(lengths, *own[1:]) for own in shapes} == {shape}


def _lists(keys: Mapping[str, Any]) -> Iterator[list[str]]:
    """Keys that differ in their first number only."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(_NUMBER.sub("{l}", key, count=1), []).append(key)
    yield from groups.values()


def _sentence(keys: Sequence[str], parts: Sequence[Rule]) -> str:
    """What to say of the first of these keys, and so of all."""
    axis, more = (
        array_dims(parts[0], in_torch=True)[0][0],
        f" (and {len(keys) - 1} more like it)" * (len(keys) > 1),
    )
    size = f"has the size of {quoted(part.key for part in parts)} together"
    fused = Fused([_of_all(part, keys) for part in parts], axis)
    return f'"{keys[0]}"{more} {size}; if it is these in this order, say rules=[{fused!r}]'


def _of_all(part: Rule, keys: Sequence[str]) -> Rule:
    """The Rule of a part for all layers of a list, if its path counts them as its key does."""
    axes: dict[str, Any] = dict(part.sizes)
    numbers = [[int(n) for n in _NUMBER.findall(name)[:1]] for name in (*keys, part.path)]
    if len(keys) == 1 or numbers[-1] != numbers[0]:
        return Rule(keys[0], part.path, part.pattern, buffer=part.buffer, **axes)
    key, path = (_NUMBER.sub("{l}", name, count=1) for name in (keys[0], part.path))
    row = tuple(n for number in numbers[:-1] for n in number)
    return Rule(key, path, part.pattern, buffer=part.buffer, l=row, **axes)
