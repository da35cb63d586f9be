"""Binding: the ordered rules of one model, and so a bijection between its leaves and a state_dict.

The order is that in which torch registers its parameters, so it also fixes an optimizer's integer ids. A
Binding knows nothing of modules, files or optimizers: it moves flat dictionaries, `{path: leaf}` on JAX's
side and `{key: array}` on torch's, and whatever is shaped like the parameters moves the same way.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from jaxstate.arrays.foreign import without_tensors
from jaxstate.arrays.lazy import Made
from jaxstate.comparison import Comparison
from jaxstate.errors import BindingError, Mismatch, near_names, quoted
from jaxstate.renaming import Renaming
from jaxstate.rules.blocks import Blocks
from jaxstate.rules.declared import JaxOnly, Sum, Tied, TorchOnly
from jaxstate.rules.fused import Fused
from jaxstate.rules.fusion_hints import fusion_hints
from jaxstate.rules.given import given_rules
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Arrays, Rule
from jaxstate.rules.rule_json import rule_from_json, rule_to_json
from jaxstate.rules.running import Running
from jaxstate.rules.size_hints import size_hints
from jaxstate.rules.spectral import Spectral
from jaxstate.rules.ties import agreeing, disagreeing
from jaxstate.table import html_table, table
from jaxstate.template import registration_order
from jaxstate.versions import versions_of

COLUMNS = ("torch key", "path", "layout", "shape", "dtype")

AnyRule = Rule | Fused | Tied | TorchOnly | JaxOnly | Sum | Padded | Spectral | Running | Blocks


@dataclass(frozen=True, repr=False, eq=False)
class Binding:
    """Pair every leaf of a model with torch's key for it.

    Args:
        rules: Rule, Fused, Padded, Tied, TorchOnly, JaxOnly and Sum, in torch's order of registration.
        order: torch's keys in another order, if a file is known to have one.
        metadata: torch's `_metadata`: `{module: {"version": int}}`, if a file is known to have it.
        warnings: sentences on what differs from the original beside the weights (`bind(original=...)`).

    Raises:
        BindingError: what is no rule, a key or a path that two rules claim, a tie to a key that no rule
            writes, an order that is not a permutation of the keys.

    >>> import numpy as np
    >>> weight, bias = Rule("fc.weight", "fc.kernel", "i o -> o i"), Rule("fc.bias", "fc.bias", "o -> o")
    >>> binding = Binding((weight, bias))
    >>> leaves = {"fc.kernel": np.ones((2, 3)), "fc.bias": np.ones(3)}
    >>> {key: array.shape for key, array in binding.state_dict(leaves).items()}
    {'fc.weight': (3, 2), 'fc.bias': (3,)}
    """

    rules: tuple[AnyRule, ...]
    order: tuple[str, ...] = ()
    metadata: Mapping[str, Mapping[str, int]] | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rules", given_rules(self.rules, "Binding"))
        problems = [
            *_claimed_twice("key", self.rules, lambda rule: rule.keys),
            *_claimed_twice("path", self.rules, lambda rule: rule.paths),
            *_loose_ties(self.rules),
        ]
        if problems:
            raise BindingError("the rules are no bijection:\n\t" + "\n\t".join(problems))
        if self.order and sorted(self.order) != sorted(_keys_in_order(self.rules)):
            raise BindingError("the order of a Binding is a permutation of its keys")

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every torch key, in torch's order."""
        return self.order or _keys_in_order(self.rules)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every leaf's path."""
        return tuple(path for rule in self.rules for path in rule.paths)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """torch's shape for every key. Raises BindingError while leaves' shapes are not known."""
        shapes = {key: shape for rule in self.rules for key, shape in rule.shapes.items()}
        return {key: shapes[self._tied.get(key, key)] for key in self.keys}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The keys that an optimizer has ids for, in order: no buffers, and tied arrays once.

        A tied array goes by the key that is registered first, as in `Module.named_parameters`.
        """
        trainable = {key for rule in self.rules for key in rule.trainable}
        first: dict[str, str] = {}
        for key in self.keys:
            if (target := self._tied.get(key, key)) in trainable:
                first.setdefault(target, key)
        return tuple(first.values())

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        """torch's arrays of these leaves, in torch's order; tied keys hold one and the same array.

        Raises BindingError for leaves that are missing, or that no rule names.
        """
        self._check_leaves(leaves)
        return self.in_order({k: x for rule in self.rules for k, x in rule.state_dict(leaves).items()})

    def lazy_state_dict(self, leaves: Arrays) -> dict[str, Any]:
        """The same arrays; those that bijections make are read from the leaves when they are asked for."""
        return self.in_order(dict(self.each_array(leaves)))

    def each_array(self, leaves: Arrays) -> Iterator[tuple[str, Any]]:
        """The same arrays rule by rule and each once, so that one at a time is in memory; ties come later."""
        self._check_leaves(leaves)
        for rule in self.rules:
            yield from rule.lazy_state_dict(leaves).items()

    def in_order(self, arrays: Arrays) -> dict[str, Any]:
        """Each rule's arrays in torch's order; tied keys hold one and the same array."""
        return {key: arrays[self._tied.get(key, key)] for key in self.keys}

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        """The leaves of these torch arrays: the inverse of `state_dict`.

        Raises StateDictError for anything that `compare` would list.
        """
        arrays = without_tensors(state_dict)
        if not (comparison := self.compare(arrays)):
            raise comparison.error()
        made = Made(self._untied(arrays))
        return {path: leaf for rule in self.rules for path, leaf in rule.leaves(made).items()}

    def each_leaf(self, state_dict: Arrays, parted: Set[str] = frozenset()) -> Iterator[tuple[str, Any]]:
        """The leaves of a state_dict that fits, rule by rule, so that one at a time is in memory.

        Args:
            state_dict: what `compare` has found to fit.
            parted: paths of leaves that are wanted in parts: these come as a `LazyArray`, of which an index
                reads no more than it asks for. So do leaves put together of parts, to be written once.
        """
        arrays = self._untied(state_dict)
        for rule in self.rules:
            lazy = rule.gathers or any(path in parted for path in rule.paths)
            yield from (rule.lazy_leaves(arrays) if lazy else rule.leaves(Made(arrays))).items()

    def agreeing(self, state_dict: Arrays, parted: Set[str]) -> Arrays:
        """The same state_dict, in which tied arrays of these leaves are compared when a part of them is read.

        Then no process reads all of both. Where they differ, reading raises StateDictError.
        """
        keys = {key for rule in self.rules if any(p in parted for p in rule.paths) for key in rule.keys}
        return agreeing(self._tied, state_dict, keys)

    def compare(self, state_dict: Arrays, only: str | Sequence[str] | None = None) -> Comparison:
        """What is missing, unexpected, misshapen or contradictory in a state_dict. Nothing is raised.

        Args:
            state_dict: arrays by torch's keys.
            only: patterns of keys to look at; the other keys of both sides are listed, not compared.
        """
        if only is not None:
            part, patterns = self.only(only), [only] if isinstance(only, str) else list(only)
            chosen = {key: array for key, array in state_dict.items() if matches(key, patterns)}
            untouched = tuple(key for key in self.keys if not matches(key, patterns))
            ignored = tuple(key for key in state_dict if key not in chosen)
            return replace(part.compare(chosen), untouched_keys=untouched, ignored_keys=ignored)
        state_dict = without_tensors(state_dict)
        arrays, shapes = self._untied(state_dict), self.shapes
        free = {key for rule in self.rules if isinstance(rule, TorchOnly) for key in rule.keys}
        free |= {key for key, to in self._tied.items() if to in free}
        found = {key: array_shape(array) for key, array in state_dict.items()}
        strange = [key for key in shapes if key in found and found[key] is None]
        odd = [
            Mismatch(k, shape, shapes[k])
            for k in self.keys
            if (shape := found.get(k)) is not None and shape != shapes[k]
        ]
        missing = tuple(k for k in self.keys if k not in free and self._tied.get(k, k) not in arrays)
        unexpected = tuple(k for k in state_dict if k not in shapes)
        return Comparison(
            missing,
            unexpected,
            tuple(odd),
            tuple(
                [f'"{key}" is no array but {type(state_dict[key]).__name__}' for key in strange]
                or [*disagreeing(self._tied, state_dict), *self._refused(state_dict, found, shapes)]
            ),
            hints=(
                *size_hints(self.rules, odd),
                *fusion_hints(self.rules, missing, {k: found[k] for k in unexpected}),
            ),
        )

    def of(self, leaves: Arrays) -> "Binding":
        """This Binding with the shape and dtype of every leaf; they may be abstract.

        Raises:
            BindingError: a leaf that no rule names, a rule without its leaf, a shape that does not fit.
        """
        self._check_leaves(leaves)
        rules = tuple(rule.of(leaves) for rule in self.rules)
        return self if [*map(id, rules)] == [*map(id, self.rules)] else replace(self, rules=rules)

    def like(self, state_dict: Arrays) -> "Binding":
        """This Binding with what a file knows beyond the leaves: key order, torch-only values, `_metadata`.

        Written with it, a torch file that was loaded comes back bit for bit. The order is adopted unless
        the file is a safetensors file, which keeps none.

        Raises:
            StateDictError: a state_dict that does not fit.
        """
        arrays = without_tensors(state_dict)
        if not (comparison := self.compare(arrays)):
            raise comparison.error()
        return replace(
            self,
            rules=tuple(rule.like(self._untied(arrays)) for rule in self.rules),
            order=_merged_order(self.keys, list(state_dict)) if is_ordered(state_dict) else self.order,
            metadata=getattr(state_dict, "_metadata", self.metadata),
        )

    def renamed(self, rename: Mapping[str, str]) -> "Binding":
        """This Binding with a file's names for the model's: `{"layers_{i}": "encoder.layer.{i}"}`.

        Raises:
            BindingError: a pattern (`jaxstate.renaming`) that fits no key, a key that two entries get.
        """
        renaming = Renaming(rename)
        renaming.check(self.keys)
        rules = tuple(rule.rekeyed(renaming.family) for rule in self.rules)
        return Binding(rules, tuple(renaming(key) for key in self.order))

    def only(self, pattern: str | Sequence[str]) -> "Binding":
        """The rules whose every key matches a pattern (`fnmatch`: `*` crosses dots).

        Raises:
            BindingError: a pattern that matches nothing, or a part of a rule.
        """
        patterns = [pattern] if isinstance(pattern, str) else list(pattern)
        rules = [rule for rule in self.rules if any(matches(key, patterns) for key in rule.keys)]
        torn = [rule for rule in rules if not all(matches(key, patterns) for key in rule.keys)]
        if torn or not rules:
            what = f"takes a part of {torn[0]}" if torn else f"matches none of {quoted(self.keys[:20])}"
            raise BindingError(f"the pattern {quoted(patterns)} {what}")
        keys = {key for rule in rules for key in rule.keys}
        ties = [rule for rule in rules if isinstance(rule, Tied) and not {to for _, to in rule.pairs} <= keys]
        if ties:
            raise BindingError(f"{quoted(patterns)} takes {ties[0]} without the key that it is tied to")
        return replace(self, rules=tuple(rules), order=tuple(key for key in self.order if key in keys))

    def of_parameters(self) -> "Binding":
        """The rules of what an optimizer trains: no buffers, nothing that is on one side only.

        Gradients, moments and averages are shaped like the parameters, and move with this part.
        """
        keys = {key for rule in self.rules for key in rule.trainable}
        rules = [rule.trained() for rule in self.rules if rule.trainable]
        ties = [
            rule for rule in self.rules if isinstance(rule, Tied) and {to for _, to in rule.pairs} <= keys
        ]
        kept = {key for rule in [*rules, *ties] for key in rule.keys}
        return Binding((*rules, *ties), tuple(key for key in self.keys if key in kept))

    @property
    def versions(self) -> dict[str, Mapping[str, int]]:
        """torch's `_metadata`: a file's, or the version of every module that has entries."""
        return versions_of(self.keys) if self.metadata is None else dict(self.metadata)

    def to_json(self) -> str:
        """This Binding as JSON text; `Binding.from_json` reads it.

        >>> binding = Binding((Rule("w", "w", "i o -> o i"),))
        >>> Binding.from_json(binding.to_json()) == binding
        True
        """
        rules = [rule_to_json(rule) for rule in self.rules]
        return json.dumps({"binding": 1, "rules": rules, "order": self.order, "metadata": self.metadata})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Binding":
        """The Binding of a JSON text. Raises BindingError for any other text."""
        try:
            value = json.loads(text)
            rules, order, metadata = list(value["rules"]), tuple(value["order"]), value["metadata"]
        except (ValueError, TypeError, KeyError) as error:
            raise BindingError(f"this is not the JSON of a Binding: {error!r}") from error
        return cls(tuple(rule_from_json(rule) for rule in rules), order, metadata)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binding) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.keys)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A line for each family of keys: torch key, path, layout, shape, dtype."""
        return [row for rule in self.rules for row in rule.rows]

    def __str__(self) -> str:
        return table(COLUMNS, self.rows, [f"warning: {line}" for line in self.warnings])

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, self.rows, [f"warning: {line}" for line in self.warnings])

    __repr__ = __str__

    @cached_property
    def _tied(self) -> dict[str, str]:
        return {key: to for rule in self.rules if isinstance(rule, Tied) for key, to in rule.pairs}

    def _untied(self, state_dict: Arrays) -> Arrays:
        """The state_dict, and a tied key's array under the key of its Rule where the file leaves that out."""
        lacking = {to: state_dict[key] for key, to in self._tied.items() if key in state_dict}
        return {**lacking, **state_dict}

    def _refused(self, state_dict: Arrays, found: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
        fitting = {key: array for key, array in state_dict.items() if found[key] == shapes.get(key)}
        return [sentence for rule in self.rules for sentence in rule.refused_arrays(fitting)]

    def _check_leaves(self, leaves: Arrays) -> None:
        claimed = set(self.paths)
        lacking, loose = [p for p in self.paths if p not in leaves], [p for p in leaves if p not in claimed]
        lines = [f"a rule names {path}, and there is no such leaf" for path in lacking]
        lines += [
            f'leaf {path} of shape {tuple(leaves[path].shape)} has no rule: add Rule("...", "{path}", "...")'
            for path in loose
        ]
        lines += [f"did you mean {near} for {path}?" for path, near in near_names(lacking, loose).items()]
        if lines:
            raise BindingError("the rules do not fit the leaves:\n\t" + "\n\t".join(lines))


def matches(key: str, patterns: Sequence[str]) -> bool:
    """True if a key matches one of these shell patterns, in which `*` crosses dots."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def array_shape(array: Any) -> tuple[int, ...] | None:
    """The shape of anything array-like, None of anything else."""
    shape = getattr(array, "shape", None)
    return None if shape is None else tuple(int(n) for n in shape)


def _keys_in_order(rules: Sequence[AnyRule]) -> tuple[str, ...]:
    return tuple(registration_order([family for rule in rules for family in rule.families]))


def _claimed_twice(what: str, rules: Sequence[AnyRule], claims: Any) -> list[str]:
    counts = Counter(name for rule in rules for name in claims(rule))
    return [
        f'{what} "{name}" is claimed by ' + " and by ".join(str(r) for r in rules if name in claims(r))
        for name, count in counts.items()
        if count > 1
    ]


def _loose_ties(rules: Sequence[AnyRule]) -> list[str]:
    written = {key for rule in rules if not isinstance(rule, Tied) for key in rule.keys}
    return [
        f'"{key}" is tied to "{to}", which no rule writes'
        for rule in rules
        if isinstance(rule, Tied)
        for key, to in rule.pairs
        if to not in written
    ]


def is_ordered(state_dict: Arrays) -> bool:
    """True unless the entries come from a file that keeps no order."""
    return not hasattr(state_dict, "__metadata__")  # set by io on what a safetensors file held


def _merged_order(keys: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """The keys in the order in which a file has them; each that it lacks stays behind its predecessor."""
    here, behind, last = set(found), {}, None
    for key in keys:
        behind.setdefault(last, []).append(key) if key not in here else None
        last = key if key in here else last
    known = set(keys)
    rows = ([key, *behind.get(key, [])] for key in found if key in known)
    return tuple(key for row in [behind.get(None, []), *rows] for key in row)
