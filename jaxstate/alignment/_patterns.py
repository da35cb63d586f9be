"""From pairs of names to a few patterns: `layers_0 -> h.0, layers_1 -> h.1` is `layers_{i} -> h.{i}`."""

import re
from collections.abc import Mapping, Sequence

from jaxstate.alignment._words import family, numbers
from jaxstate.errors import BindingError
from jaxstate.renaming import Renaming

_HOLES = "ijklmnpq"


def patterns(pairs: Mapping[str, str]) -> dict[str, str]:
    """The `rename=` that gives each key of a model the file's, as short as it comes.

    >>> patterns({"fc_0.weight": "h.0.lin.weight", "fc_1.weight": "h.1.lin.weight", "b": "b"})
    {'fc_{i}': 'h.{i}.lin'}
    """
    modules = dict(_module(ours, theirs) for ours, theirs in pairs.items())
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for names in modules.items():
        groups.setdefault((family(names[0]), family(names[1])), []).append(names)
    short = dict(pattern for group in groups.values() for pattern in _general(group))
    changed = {old: new for old, new in short.items() if old != new}
    for rename in (changed, short, modules):
        if _says(rename, pairs):
            return rename
    return dict(pairs)


def _module(ours: str, theirs: str) -> tuple[str, str]:
    """Both names without the parts that they end in alike, as long as something is left."""
    a, b = ours.split("."), theirs.split(".")
    if len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        return ".".join(a[:-1]), ".".join(b[:-1])
    return ours, theirs


def _general(group: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """One pattern for names that differ in their numbers only, if each number stands on both sides."""
    ours, theirs = ([numbers(name) for name in side] for side in zip(*group, strict=True))
    columns = [list(zip(*side, strict=True)) for side in (ours, theirs)]
    varying = [[n for n, column in enumerate(side) if len(set(column)) > 1] for side in columns]
    where = {p: [q for q in varying[1] if columns[1][q] == columns[0][p]] for p in varying[0]}
    if any(len(found) != 1 for found in where.values()) or len(varying[1]) != len(where):
        return group
    if len({found[0] for found in where.values()}) != len(where):
        return group
    hole = {p: _HOLES[n % len(_HOLES)] for n, p in enumerate(where)}
    return [(_filled(group[0][0], hole), _filled(group[0][1], {q[0]: hole[p] for p, q in where.items()}))]


def _filled(name: str, hole: Mapping[int, str]) -> str:
    count = iter(range(len(name)))
    return re.sub(r"\d+", lambda m: f"{{{hole[n]}}}" if (n := next(count)) in hole else m[0], name)


def _says(rename: Mapping[str, str], pairs: Mapping[str, str]) -> bool:
    try:
        renaming = Renaming(rename)
        return all(renaming(ours) == theirs for ours, theirs in pairs.items())
    except BindingError:
        return False
