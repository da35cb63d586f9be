"""Pair two trees of modules from the top down: what holds the same layers may be the same module.

At each pair of modules their children are compared. A child that holds layers which no child on the other
side holds gives way to its own children, since the two sides need not nest alike. Children that hold the
same layers are told apart by numbers and words. What only a shape would tell must stand in order, and what
another pairing would fit as well is left open.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from jaxstate.alignment._assignment import best
from jaxstate.alignment._families import NEVER, SAME, Family, common_ending, families, score, singles
from jaxstate.alignment._tree import Node
from jaxstate.alignment._words import common_words, family, numbers, words


@dataclass(frozen=True)
class Decision:
    """Two nodes that are one thing, and what says so besides their layers."""

    left: Node
    right: Node
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Open:
    """Nodes of which it is not known which is which."""

    left: tuple[Node, ...]
    right: tuple[Node, ...]
    why: str


def pair(left: Node, right: Node, ordered: bool) -> Iterator[Decision | Open]:
    """Every pair of layers below two modules, and what stays open.

    Args:
        left: the model.
        right: the file.
        ordered: True if the order of the file's keys is that of registration.
    """
    left, right = _unwrapped(left), _unwrapped(right)
    rows, columns = _level(_parts(left), _parts(right))
    found = [
        answer
        for profile in dict.fromkeys(row.profile for row in rows)
        if (others := [c for c in columns if c.profile == profile])
        for answer in _tell([r for r in rows if r.profile == profile], others, left, right, ordered)
    ]
    decisions = _numbered([a for a in found if isinstance(a, Decision)], rows, columns, left, right)
    yield from (answer for answer in found if isinstance(answer, Open))
    for decision in decisions:
        alone = len(rows) == len(columns) == 1
        most = bool(decision.left.children) and 2 * decision.left.size > left.size
        evident = ("alone",) if alone else ("most layers",) if most else ()
        yield from _below(_told_by_shapes(decision, decisions, ordered, evident), ordered)


def _below(answer: Decision | Open, ordered: bool) -> Iterator[Decision | Open]:
    if isinstance(answer, Open) or answer.left.entries:
        yield answer
        return
    for part in pair(answer.left, answer.right, ordered):
        if isinstance(part, Decision):
            evidence = tuple(dict.fromkeys((*answer.evidence, *part.evidence)))
            part = Decision(part.left, part.right, evidence)
        yield part


def _unwrapped(node: Node) -> Node:
    """The first module below that holds more than one thing: a wrapper's name tells nothing."""
    while len(node.children) == 1 and node.children[0].children:
        node = node.children[0]
    return node


def _parts(node: Node) -> tuple[Node, ...]:
    return node.children or (node,)


def _level(left: Sequence[Node], right: Sequence[Node]) -> tuple[Sequence[Node], Sequence[Node]]:
    """The nearest nodes below on which both sides agree: how many there are that hold the same layers.

    Of nodes that find no counterpart the largest give way first, so that one may appear below them.
    """
    while True:
        ours, theirs = (Counter(node.profile for node in side) for side in (left, right))
        lone = {profile for profile in ours | theirs if not (ours[profile] and theirs[profile])}
        uneven = {profile for profile in ours | theirs if ours[profile] != theirs[profile]}
        modules = [node for node in chain(left, right) if node.children]
        waiting = [n for n in modules if n.profile in lone] or [n for n in modules if n.profile in uneven]
        if not waiting:
            return left, right
        size = max(node.size for node in waiting)
        opened = {node.profile for node in waiting if node.size == size}
        left, right = _opened(left, opened), _opened(right, opened)


def _opened(nodes: Sequence[Node], profiles: set) -> list[Node]:
    return [part for node in nodes for part in (_parts(node) if node.profile in profiles else (node,))]


def _tell(
    rows: Sequence[Node], columns: Sequence[Node], left: Node, right: Node, ordered: bool
) -> Iterator[Decision | Open]:
    """Pair nodes that hold the same layers: lists with lists, and if that does not come out, one by one."""
    for grouped in (families, singles):
        ours, theirs = grouped(rows, left.name), grouped(columns, right.name)
        scores = [[score(one, other, ordered) for other in theirs] for one in ours]
        certain, others = best(scores)
        if all(scores[i][j] > NEVER for i, j in [*certain, *others]):
            break
    for i, j in certain:
        if scores[i][j] > NEVER:
            yield from _members(ours[i], theirs[j], _evidence(ours[i], theirs[j], _stands_out(i, j, scores)))
    doubtful = [(i, j) for i, j in others if scores[i][j] > NEVER]
    if doubtful:
        yield Open(
            tuple(node for i, _ in doubtful for node in ours[i].nodes),
            _candidates(doubtful, scores, theirs, {j for _, j in certain}),
            "nothing in their names tells which is which",
        )


def _candidates(
    doubtful: Sequence[tuple[int, int]],
    scores: Sequence[Sequence[float]],
    theirs: Sequence[Family],
    taken: set[int],
) -> tuple[Node, ...]:
    """What the doubtful ones may be as well: all that is left and fits one of them no worse."""
    free = [j for j in range(len(theirs)) if j not in taken]
    fits = [j for j in free if any(scores[i][j] >= scores[i][k] for i, k in doubtful)]
    return tuple(node for j in fits for node in theirs[j].nodes)


def _members(one: Family, other: Family, evidence: tuple[str, ...]) -> Iterator[Decision]:
    for left, right in zip(one.nodes, other.nodes, strict=True):
        yield Decision(left, right, evidence)


def _evidence(one: Family, other: Family, stands_out: bool) -> tuple[str, ...]:
    """What the names say. Common words count if they are all of one name, or if no other pair has as many:
    the word in "cls_token" and "mask_token" is none."""
    if one.names == other.names or common_ending(one, other):
        return ("said",) if all(node.said for node in one.nodes) else ("name",)
    ours, theirs = words(one.name), words(other.name)
    common = common_words(one.name, other.name)
    told = common and (stands_out or common in (ours, theirs))
    return (f"words: {' '.join(sorted(common))}",) if told else ()


def _stands_out(i: int, j: int, scores: Sequence[Sequence[float]]) -> bool:
    """True if a pair's score is above all others of its row and its column, names that are equal left out."""
    same = [(a, b) for a, row in enumerate(scores) for b, value in enumerate(row) if value >= SAME]
    rows, columns = ({pair[side] for pair in same} for side in (0, 1))
    others = [scores[i][b] for b in range(len(scores[0])) if b != j and b not in columns]
    others += [scores[a][j] for a in range(len(scores)) if a != i and a not in rows]
    return bool(others) and scores[i][j] > max(others)


def _numbered(
    decisions: Sequence[Decision], rows: Sequence[Node], columns: Sequence[Node], left: Node, right: Node
) -> list[Decision]:
    """Decisions, with numbers as evidence where whole lists are paired in the order of their numbers."""
    of = lambda node, base: family(node.relative(base.name))  # noqa: E731
    sizes = [Counter(of(node, base) for node in side) for side, base in ((rows, left), (columns, right))]
    groups: dict[tuple[str, str], list[Decision]] = {}
    for d in decisions:
        groups.setdefault((of(d.left, left), of(d.right, right)), []).append(d)
    counted = {
        id(d)
        for (ours, theirs), group in groups.items()
        if len(group) == sizes[0][ours] == sizes[1][theirs] > 1 and _rise_together(group)
        for d in group
    }
    add = lambda d: (*d.evidence, "numbers") if id(d) in counted else d.evidence  # noqa: E731
    return [Decision(d.left, d.right, add(d)) for d in decisions]


def _rise_together(group: Sequence[Decision]) -> bool:
    here = sorted(group, key=lambda d: numbers(d.left.name))
    there = sorted(group, key=lambda d: numbers(d.right.name))
    return here == there


def _told_by_shapes(
    decision: Decision, siblings: Sequence[Decision], ordered: bool, evident: tuple[str, ...]
) -> Decision | Open:
    """A pair that only its shapes tell needs more: to be evident, or in one order with its siblings.

    Where siblings have one name in model and file, another name is no other word for the same thing.
    """
    if evidence := decision.evidence or evident:
        return Decision(decision.left, decision.right, evidence)
    others = [d for d in siblings if d is not decision]
    turned = [_side(d.left, decision.left) != _side(d.right, decision.right) for d in others]
    named = any("name" in d.evidence for d in others)
    if ordered and others and not named and not any(turned):
        return Decision(decision.left, decision.right, ("order",))
    why = "no order says more"
    if ordered and others:
        why = "they stand elsewhere" if any(turned) else "their neighbours go by one name where these do not"
    return Open((decision.left,), (decision.right,), f"only their shapes agree, and {why}")


def _side(one: Node, other: Node) -> tuple[bool, bool]:
    """Where one node stands to another: before it, behind it, around it."""
    return one.position < other.position, one.last < other.position
