"""Alignment: which key of a file each key of a model is, where the two use different names, and what says so.

Nothing is settled by a shape alone, nor by the order alone. A pair of layers rests on their kinds of entries
and shapes, and then on their names: equal, with a word in common, or with numbers that run alike in both
lists; on being the only one with its shapes in a module that was paired already, if the order of
registration agrees. Whatever another pairing would fit as well is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, NamedTuple

from jaxstate.alignment._pairing import Decision, Open, pair
from jaxstate.alignment._patterns import patterns
from jaxstate.alignment._tree import Shape, split, tree
from jaxstate.alignment._words import excluded, family, numbers
from jaxstate.binding import Binding, array_shape, is_ordered
from jaxstate.comparison import Comparison
from jaxstate.errors import StateDictError, quoted
from jaxstate.rules.declared import Tied, TorchOnly
from jaxstate.table import html_table, table

COLUMNS = ("model", "file", "shape", "evidence")


class Pair(NamedTuple):
    """A key of the model and the file's key of the same entry; what says so beside kind and shape."""

    key: str
    file_key: str
    shape: Shape
    evidence: tuple[str, ...]


class Ambiguous(NamedTuple):
    """Layers of the model, layers of the file that each may be, and why that is not known."""

    names: tuple[str, ...]
    file_names: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Alignment:
    """Pairs of keys with their evidence; true if it is complete.

    Attributes:
        pairs: what is known, in the model's order.
        ambiguous: what another pairing would fit as well.
        missing_keys: the model's that no key of the file is known to be.
        unexpected_keys: the file's likewise.

    >>> pairs = [Pair(f"layers_{n}.weight", f"h.{n}.weight", (2, 3), ("numbers",)) for n in range(2)]
    >>> bool(Alignment(tuple(pairs))), bool(Alignment(tuple(pairs), missing_keys=("head.weight",)))
    (True, False)
    >>> Alignment(tuple(pairs)).rename
    {'layers_{i}': 'h.{i}'}
    """

    pairs: tuple[Pair, ...]
    ambiguous: tuple[Ambiguous, ...] = ()
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not (self.ambiguous or self.missing_keys or self.unexpected_keys)

    @cached_property
    def rename(self) -> dict[str, str]:
        """The pairs as `js.bind(model, rename=...)` takes them."""
        return patterns({pair.key: pair.file_key for pair in self.pairs})

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """A line for each pair, and for each key without one."""
        known = [(p.key, p.file_key, str(p.shape), ", ".join(p.evidence)) for p in self.pairs]
        return [
            *known,
            *((key, "?", "", "missing in the file") for key in self.missing_keys),
            *(("?", key, "", "unexpected in the file") for key in self.unexpected_keys),
        ]

    def __str__(self) -> str:
        lines = [table(COLUMNS, self.rows), *self.problems]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, self.rows) + "".join(f"<p>{escape(line)}</p>" for line in self.problems)

    __repr__ = __str__

    @property
    def problems(self) -> list[str]:
        """A sentence for each ambiguity, with the `rename=` to paste; the layers of one list share one."""
        groups: dict[Any, list[Ambiguous]] = {}
        for one in self.ambiguous:
            like = tuple(family(name) for name in (*one.names, *one.file_names))
            groups.setdefault((like, one.why), []).append(one)
        return [_sentence(group) for group in groups.values()]


def align(binding: Binding, state_dict: Mapping[str, Any]) -> Alignment:
    """Find the keys of a file that a model's keys are, by kinds, shapes, modules, numbers and words.

    Args:
        binding: the model's, in its own names.
        state_dict: the file's arrays; of a safetensors file, whose order tells nothing, names alone.

    Raises:
        BindingError: a Binding that does not know its leaves' shapes.

    >>> import numpy as np
    >>> from jaxstate.rules.rule import Rule
    >>> rules = [Rule(f"layers_{n}.q.weight", f"{n}", "i o -> o i", shape=(2, 2)) for n in range(2)]
    >>> file = {f"h.{n}.attn.query.weight": np.zeros((2, 2)) for n in range(2)}
    >>> align(Binding(rules), file).rename
    {'layers_{i}.q': 'h.{i}.attn.query'}
    """
    found = {key: shape for key, array in state_dict.items() if (shape := array_shape(array)) is not None}
    ordered = is_ordered(state_dict)
    ties = {key for rule in binding.rules if isinstance(rule, Tied) for key in rule.keys}
    whole, part = (_aligned(binding, found, ordered, without) for without in (frozenset(), ties))
    best = whole if whole or not ties or len(whole.pairs) > len(part.pairs) else part
    strange = tuple(key for key in state_dict if key not in found)
    return Alignment(best.pairs, best.ambiguous, best.missing_keys, (*best.unexpected_keys, *strange))


def aligned(binding: Binding, state_dict: Mapping[str, Any]) -> Binding:
    """The binding in the file's names: as it is where they are its own, else by an alignment.

    Raises:
        StateDictError: what is missing and unexpected, and what is ambiguous, with the `rename=` to paste.
    """
    comparison = binding.compare(state_dict)
    if not (comparison.missing_keys and comparison.unexpected_keys):
        return binding
    alignment = align(binding, state_dict)
    if not alignment:
        raise _error(alignment, comparison)
    return binding.renamed(alignment.rename)


def _error(alignment: Alignment, comparison: Comparison) -> StateDictError:
    """What was not paired; a key that both sides have so is one whose shapes differ."""
    missing, unexpected = alignment.missing_keys, alignment.unexpected_keys
    sizes = [m for m in comparison.mismatched if m.key in missing and m.key in unexpected]
    both = {mismatch.key for mismatch in sizes}
    problems = [*Comparison(mismatched=tuple(sizes)).error().problems, *alignment.problems, *comparison.hints]
    if alignment.pairs:
        problems.append(f"{len(alignment.pairs)} others are paired: js.align(model, state_dict) shows how.")
    return StateDictError(
        "the model", [k for k in missing if k not in both], [k for k in unexpected if k not in both], problems
    )


def _aligned(binding: Binding, found: Mapping[str, Shape], ordered: bool, ties: Any) -> Alignment:
    """The alignment of a binding without these tied keys, which a file need not have."""
    free = {key for rule in binding.rules if isinstance(rule, TorchOnly) for key in rule.keys}
    names = {key.rpartition(".")[2] for key in free}
    shapes = {key: shape for key, shape in binding.shapes.items() if key not in ties}
    extra = {key for key in found if key.rpartition(".")[2] in names}
    ours, theirs = tree(shapes, free, _said(binding)), tree(found, extra)
    answers = list(pair(ours, theirs, ordered)) if ours.children and theirs.children else []
    pairs = [
        Pair(key, answer.right.entries[kind], shapes[key], answer.evidence)
        for answer in answers
        if isinstance(answer, Decision)
        for kind, key in answer.left.entries.items()
    ]
    pairs, crossed = _uncontradicted(pairs, found)
    pairs += _followers(pairs, free & set(shapes), extra)
    opened = [_ambiguous(answer) for answer in answers if isinstance(answer, Open)]
    known, taken = {p.key for p in pairs}, {p.file_key for p in pairs}
    place = {key: n for n, key in enumerate(binding.keys)}
    return Alignment(
        tuple(sorted(pairs, key=lambda p: place[p.key])),
        (*opened, *crossed),
        tuple(key for key in shapes if key not in known and key not in free),
        tuple(key for key in found if key not in taken),
    )


def _said(binding: Binding) -> frozenset[str]:
    """Keys of layers that the model calls otherwise: it was said in a Rule, or in `rename=`."""
    own = [(rule.keys, {part for path in rule.paths for part in path.split(".")}) for rule in binding.rules]
    last = lambda key: split(key)[0].rpartition(".")[2]  # noqa: E731
    return frozenset(key for keys, parts in own for key in keys if parts and last(key) not in parts | {""})


def _uncontradicted(pairs: Sequence[Pair], found: Mapping[str, Shape]) -> tuple[list[Pair], list[Ambiguous]]:
    """The pairs whose names do not speak against them, and the others.

    Another name is refused for a key that the file has itself, unless the two count differently there.
    """
    counts = [_counts(p.key for p in pairs), _counts(found)]
    named = {p for p in pairs if p.key != p.file_key and p.key in found}
    taken = {p for p in named if counts[0][family(p.key)] == counts[1].get(family(p.key))}
    opposed = {p for p in pairs if excluded(p.key, p.file_key)} - taken
    reasons = [
        (taken, "its shapes are those, but the file has an entry of its own name"),
        (opposed, "their shapes agree, but the names exclude each other"),
    ]
    odd = [Ambiguous((p.key,), (p.file_key,), why) for group, why in reasons for p in pairs if p in group]
    return [p for p in pairs if p not in taken | opposed], odd


def _counts(keys: Any) -> dict[str, set[tuple[int, ...]]]:
    counts: dict[str, set[tuple[int, ...]]] = {}
    for key in keys:
        counts.setdefault(family(key), set()).add(numbers(key))
    return counts


def _followers(pairs: Sequence[Pair], free: set[str], extra: set[str]) -> list[Pair]:
    """Entries that only torch has go with the module they are in: counters, frequencies."""
    modules = {p.key.rpartition(".")[0]: p.file_key.rpartition(".")[0] for p in pairs}
    wanted = {}
    for key in free:
        module, dot, name = key.rpartition(".")
        wanted[key] = modules.get(module, module) + dot + name
    return [Pair(key, to, (), ("module",)) for key, to in wanted.items() if to in extra]


def _ambiguous(answer: Open) -> Ambiguous:
    return Ambiguous(tuple(n.name for n in answer.left), tuple(n.name for n in answer.right), answer.why)


def _sentence(group: Sequence[Ambiguous]) -> str:
    first = group[0]
    more = f" (and {len(group) - 1} more like it)" if len(group) > 1 else ""
    choice = {a: b for one in group for a, b in zip(one.names, one.file_names, strict=False)}
    lines = ", ".join(f'"{ours}": "{theirs}"' for ours, theirs in patterns(choice).items())
    return (
        f"{quoted(first.names)} may be {quoted(first.file_names)}{more}: {first.why}. "
        f"Paste what is right, here one way of them: rename={{{lines}}}"
    )
