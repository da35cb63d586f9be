"""Fusion hints: an entry of one side may be several of the other's, joined; so a Fused is proposed.

Sizes conclude nothing: which part comes first, or whether they alternate, a file does not tell. So it is only
said what would fit, where the entries stand in one module and are as long together.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxstate.errors import quoted
from jaxstate.rules.apart import apart
from jaxstate.rules.axes import array_dims
from jaxstate.rules.fused import Fused
from jaxstate.rules.rule import Rule

Shape = tuple[int, ...]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Proposal(NamedTuple):
    """An entry, the names of those that it may be, and the Rules to say so."""

    key: str
    others: list[str]
    parts: list[Rule]


def fusion_hints(
    rules: Sequence[Any], missing: Sequence[str], unexpected: Mapping[str, Shape | None]
) -> tuple[str, ...]:
    """A sentence for each entry that may hold several of the other side's; layers of a list share one.

    >>> rules = [Rule(f"attn.{p}.weight", p, "a b -> b a", shape=(3, n)) for p, n in [("q", 4), ("k", 2)]]
    >>> print(*fusion_hints(rules, ["attn.q.weight", "attn.k.weight"], {"attn.qk.weight": (6, 3)}))
    "attn.qk.weight" has the size of "attn.q.weight", "attn.k.weight" together; if these lie in it in this
    order, one behind the other and not in turns, say
    rules=[Fused([Rule("attn.qk.weight", "q", "a b -> b a"), Rule("attn.qk.weight", "k", "a b -> b a")], "b")]
    """
    lacking = set(missing) if unexpected else set()
    alone = [one for rule in rules if lacking and isinstance(rule, Rule) for one in apart(rule)]
    here = [rule for rule in alone if len(rule.keys) == 1 and rule.key in lacking and _axis(rule)]
    found = {p.key: p for p in (*_joined_there(here, unexpected), *_joined_here(here, unexpected))}
    return tuple(_sentence(found[keys[0]], keys) for keys in _lists(found))


def _joined_there(rules: Sequence[Rule], unexpected: Mapping[str, Shape | None]) -> Iterator[Proposal]:
    """Entries of the file that may be several of the model's."""
    for key, shape in unexpected.items():
        parts = [rule for rule in rules if _place(rule.key) == _place(key)]
        one_axis = len({_axis(rule) for rule in parts}) == 1
        if one_axis and _fit([rule.shapes[rule.key] for rule in parts], shape):
            yield Proposal(key, [rule.key for rule in parts], [_named(rule, key) for rule in parts])


def _joined_here(rules: Sequence[Rule], unexpected: Mapping[str, Shape | None]) -> Iterator[Proposal]:
    """Leaves that may be several entries of the file."""
    for rule in rules:
        others = {k: shape for k, shape in unexpected.items() if shape and _place(k) == _place(rule.key)}
        is_alone = array_dims(rule, in_torch=True)[0] == (_axis(rule),)
        if is_alone and _fit([*others.values()], rule.shapes[rule.key]):
            parts = [_named(rule, key, **{_axis(rule): shape[0]}) for key, shape in others.items()]
            yield Proposal(rule.key, [*others], parts)


def _place(key: str) -> tuple[str, str]:
    """The module around an entry's layer, and what the layer calls the entry."""
    layer, _, entry = key.rpartition(".")
    return layer.rpartition(".")[0], entry


def _axis(rule: Rule) -> str:
    """The slowest axis of torch's array, or "" if there is none."""
    dims = array_dims(rule, in_torch=True)
    return dims[0][0] if dims and dims[0] else ""


def _fit(parts: Sequence[Shape], whole: Shape | None) -> bool:
    """True for several arrays that make up this one, joined along the first dimension."""
    length = sum(shape[0] for shape in parts if shape)
    return len(parts) > 1 and {(length, *shape[1:]) for shape in parts} == {whole}


def _named(rule: Rule, key: str, **axes: Any) -> Rule:
    return Rule(key, rule.path, rule.pattern, buffer=rule.buffer, **{**dict(rule.sizes), **axes})


def _lists(keys: Iterable[str]) -> Iterator[list[str]]:
    """Keys that differ in their first number only."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(_NUMBER.sub("{l}", key, count=1), []).append(key)
    yield from groups.values()


def _sentence(proposal: Proposal, keys: Sequence[str]) -> str:
    """What to say of the first of these keys, and so of all."""
    more = f" (and {len(keys) - 1} more like it)" if len(keys) > 1 else ""
    fused = Fused([_of_all(part, keys) for part in proposal.parts], _axis(proposal.parts[0]))
    return (
        f'"{keys[0]}"{more} has the size of {quoted(proposal.others)} together; if these lie in it in this '
        f"order, one behind the other and not in turns, say rules=[{fused!r}]"
    )


def _of_all(part: Rule, keys: Sequence[str]) -> Rule:
    """The Rule of a part for all layers of a list, if its path counts them as its key does."""
    rows = [_NUMBER.findall(name)[:1] for name in (*keys, part.path)]
    if len(keys) == 1 or rows[-1] != rows[0]:
        return part
    key, path = (_NUMBER.sub("{l}", name, count=1) for name in (part.key, part.path))
    axes: dict[str, Any] = {**dict(part.sizes), "l": [int(row[0]) for row in rows[:-1]]}
    return Rule(key, path, part.pattern, buffer=part.buffer, **axes)
