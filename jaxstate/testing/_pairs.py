"""Pairs: which torch module is which JAX module, as the Binding of their leaves says.

Two modules are one if the keys below the one are those of the leaves below the other. Where several modules
in each other hold the same leaves, as an RNN and its cell do, the outermost known layer of JAX's is the
innermost of torch's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxstate.binding import Binding
from jaxstate.rules.apart import apart
from jaxstate.rules.declared import Sum, Tied
from jaxstate.rules.rule import Rule
from jaxstate.testing._calls import Module


@dataclass(frozen=True)
class Pair:
    """A torch module and the JAX module of the same leaves.

    Attributes:
        name: torch's dotted name.
        module: JAX's.
        is_layer: False for what holds other pairs: an attention's block, the model itself.
    """

    name: str
    module: Module
    is_layer: bool


def pairs_of(binding: Binding, torch_names: Sequence[str], modules: Sequence[Module]) -> list[Pair]:
    """Every pair that the Binding tells. Modules without leaves, as activations, have none.

    Args:
        torch_names: of torch's modules, outer ones first.
        modules: JAX's.
    """
    leaves = leaves_by_key(binding)
    below = {name: _below(leaves, name) for name in torch_names}
    bound = {path for paths in leaves.values() for path in paths}
    tied = {key for rule in binding.rules if isinstance(rule, Tied) for key in rule.keys}
    owned = {key: paths for key, paths in leaves.items() if key not in tied}
    theirs = _chains({name: paths for name, paths in below.items() if _whole(owned, name, paths)})
    ours = _chains({module.path: module.leaves & bound for module in modules})
    by_path = {module.path: module for module in modules}
    chains = [(theirs[k], [by_path[p] for p in ours[k]]) for k in theirs if k in ours]
    found = [pair for outer, inner in chains for pair in _matched(outer, inner)]
    return _layers(found)


def pairs_by_name(entries: Iterable[str], modules: Sequence[Module], told: Sequence[Pair]) -> Iterator[Pair]:
    """Pairs of the same name, and of those that a Binding told what they leave.

    A Binding that its author wrote may be what is wrong, and names that are the same on both sides are more
    likely right.

    Args:
        entries: torch's keys.
    """
    owners = {key.rpartition(".")[0] for key in entries}
    named = {m.path: m for m in modules if m.path in owners and m.leaves}
    yield from (Pair(name, module, True) for name, module in named.items())
    yield from (pair for pair in told if pair.name not in named and pair.module.path not in named)


def leaves_by_key(binding: Binding) -> dict[str, frozenset[str]]:
    """For each torch key the paths of the leaves that its elements are in."""
    rules = [part for rule in binding.rules for part in (rule.parts if isinstance(rule, Sum) else [rule])]
    found = {key: paths for rule in rules if not isinstance(rule, Tied) for key, paths in _edges(rule)}
    ties = [pair for rule in rules if isinstance(rule, Tied) for pair in rule.pairs]
    return found | {key: found[to] for key, to in ties if to in found}


def order_of(binding: Binding | None, name: str, length: int) -> np.ndarray | None:
    """For each element of a vector that torch's module reads, its place in JAX's, where these differ.

    Where an image is flattened, the rows of the next layer's kernel are in another order.

    Args:
        name: of the torch module, with a `weight` of shape (outputs, length) or (length,).
    """
    rules = [r for r in binding.rules if r.keys == (f"{name}.weight",)] if binding and name else []
    rule = rules[0] if rules and isinstance(rules[0], Rule) and rules[0].shape else None
    if rule is None or len(rule.paths) != 1:
        return None
    shape = rule.shapes[rule.key]
    if shape[-1] != length or len(shape) > 2:
        return None
    numbers = np.broadcast_to(np.arange(length), shape)
    places = rule.leaves({rule.key: numbers})[rule.path]
    places = places.reshape(length, -1)[:, 0] if len(shape) == 2 else places.reshape(-1)
    return None if np.array_equal(places, np.arange(length)) else np.argsort(places)


def _edges(rule: Any) -> Iterator[tuple[str, frozenset[str]]]:
    for family in apart(rule):
        yield from ((key, frozenset(family.paths)) for key in family.keys)


def _below(leaves: Mapping[str, frozenset[str]], name: str) -> frozenset[str]:
    prefix = f"{name}." if name else ""
    return frozenset(path for key, paths in leaves.items() if key.startswith(prefix) for path in paths)


def _whole(leaves: Mapping[str, frozenset[str]], name: str, paths: frozenset[str]) -> bool:
    """False for one layer of a stack: its leaves hold other modules' keys too."""
    prefix = f"{name}." if name else ""
    return bool(paths) and not any(own & paths for key, own in leaves.items() if not key.startswith(prefix))


def _chains(leaves: Mapping[str, frozenset[str]]) -> dict[frozenset[str], list[str]]:
    """The modules that hold the same leaves, from the outside in."""
    chains: dict[frozenset[str], list[str]] = {}
    for name in sorted(leaves, key=lambda name: name.count(".") + bool(name)):
        if leaves[name]:
            chains.setdefault(leaves[name], []).append(name)
    return chains


def _matched(theirs: list[str], ours: list[Module]) -> Iterator[Pair]:
    layer = next((n for n, module in enumerate(ours) if module.is_layer), len(ours) - 1)
    yield Pair(theirs[-1], ours[layer], True)
    if len(theirs) - 1 == layer:
        yield from (Pair(name, module, False) for name, module in zip(theirs[:-1], ours[:layer], strict=True))


def _layers(pairs: list[Pair]) -> list[Pair]:
    """A pair that holds other pairs is no layer, unless JAX's library says so."""

    def holds_others(pair: Pair) -> bool:
        return any(other.module.leaves < pair.module.leaves for other in pairs)

    kept = [Pair(p.name, p.module, p.is_layer and (p.module.is_layer or not holds_others(p))) for p in pairs]
    inside = [p.module.leaves for p in kept if p.is_layer and p.module.is_layer]
    return [p for p in kept if not any(p.module.leaves < leaves for leaves in inside)]
