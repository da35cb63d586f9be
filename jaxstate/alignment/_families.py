"""Families: siblings whose names differ in a number only, as the layers of a list; and how well two fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from jaxstate.alignment._tree import Node
from jaxstate.alignment._words import common_words, excluded, family, numbers, words

NEVER = -1e6
SAME = 1e4  # names that are equal outweigh any ending, and a part that is equal any number of words
PART = 1e2


@dataclass(frozen=True)
class Family:
    """Nodes in the order of their numbers; one node alone is a family as well.

    Attributes:
        name: their name below the module that they are in, numbers left out.
        nodes: the members.
        names: their names below that module.
    """

    name: str
    nodes: tuple[Node, ...]
    names: tuple[str, ...]

    @property
    def varying(self) -> tuple[tuple[int, ...], ...]:
        """The columns of numbers that tell the members apart."""
        columns = zip(*(numbers(name) for name in self.names), strict=True)
        return tuple(tuple(column) for column in columns if len(set(column)) > 1)

    @property
    def in_order(self) -> bool:
        """True if the state_dict has the members in the order of their numbers."""
        places = [node.position for node in self.nodes]
        return places == sorted(places)


def families(nodes: Sequence[Node], base: str) -> list[Family]:
    """Nodes below a module as families, in order of appearance."""
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(family(node.relative(base)), []).append(node)
    return [_family(name, group, base) for name, group in groups.items()]


def singles(nodes: Sequence[Node], base: str) -> list[Family]:
    """Every node as a family of its own."""
    return [_family(family(node.relative(base)), [node], base) for node in nodes]


def _family(name: str, nodes: Sequence[Node], base: str) -> Family:
    ordered = sorted(nodes, key=lambda node: numbers(node.relative(base)))
    return Family(name, tuple(ordered), tuple(node.relative(base) for node in ordered))


def score(left: Family, right: Family, ordered: bool) -> float:
    """How much of their names two families have in common; NEVER if they cannot be one.

    Args:
        ordered: True if the order of the file means something.
    """
    if excluded(left.name, right.name) or not counted_alike(left, right, ordered) or _renamed(left, right):
        return NEVER
    if left.names == right.names:
        return SAME
    return PART * len(common_ending(left, right)) + len(common_words(left.name, right.name))


def common_ending(left: Family, right: Family) -> list[str]:
    """The parts that both names end in, without those that say nothing: "norm", a number."""
    names = (f.name if len(f.nodes) > 1 else f.names[0] for f in (left, right))
    parts = zip(*(name.split(".")[::-1] for name in names), strict=False)
    return [ours for ours, _ in takewhile(lambda both: both[0] == both[1], parts) if words(ours)]


def _renamed(left: Family, right: Family) -> bool:
    """True for "norm1" and "norm2": there the number is a part of the name, in "layers.1" it is a place."""
    if len(left.nodes) > 1 or left.name != right.name:
        return False
    parts = zip(left.names[0].split("."), right.names[0].split("."), strict=True)
    return any(ours != theirs and not ours.isdigit() for ours, theirs in parts)


def counted_alike(left: Family, right: Family, ordered: bool) -> bool:
    """True if the numbers of both run alike: 0, 1, 2 and 1, 2, 3, or 0, 2, 4 of a Sequential.

    Lists that start elsewhere, as layers 6 to 11 of a longer one, must be in the order of their numbers,
    and not go by one name: then their numbers contradict each other.
    """
    ours, theirs = left.varying, right.varying
    if len(left.nodes) != len(right.nodes) or len(ours) != len(theirs):
        return False
    if ours and _varying_ranks(ours) != _varying_ranks(theirs):
        return False
    starts = [(min(a), min(b)) for a, b in zip(ours, theirs, strict=True)]
    if all(a == b or {a, b} == {0, 1} for a, b in starts):
        return True
    return left.name != right.name and ordered and left.in_order and right.in_order


def _varying_ranks(columns: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[sorted(set(column)).index(n) for n in column] for column in columns]
