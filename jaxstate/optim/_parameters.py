"""Parameters: a Binding as an optimizer sees it, restricted to the leaves that the optimizer holds.

A rule whose key and path share a hole is many rules at once, and they are taken apart: each remaining one is
a family of keys and leaves that belong together, whole or not at all, in one group and at one step.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxstate.arrays.lazy import Made
from jaxstate.binding import AnyRule, Binding
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._state import State
from jaxstate.rules.apart import Bijection, apart
from jaxstate.rules.blocks import Blocks
from jaxstate.rules.declared import JaxOnly, Sum, Tied
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Entry, Rule


@dataclass(frozen=True)
class Itself(Entry):
    """A leaf that is torch's own array, and goes by torch's name."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.key,)


Family = Bijection | Padded | Sum | Blocks | JaxOnly | Itself
Start = Callable[[str], Any]  # of a path: what an array is full of before the first step

# Variables of a Linen model hold the parameters in a collection of this name, those of a stateful Haiku model
# are the first of two; optimizers see their content.
PREFIXES = ("", "params.", "0.")


@dataclass(frozen=True)
class Parameters:
    """The torch parameters of an optimizer's leaves.

    Args:
        families: the rules of these leaves, none of them about another leaf.
        names: torch's names of the parameters in the order of their ids, with the key of the rule that
            moves each: another one for a tied array that is registered first under its second name.
        prefix: what the Binding's paths have in front of the optimizer's.
    """

    families: tuple[Family, ...]
    names: Mapping[str, str]
    prefix: str

    @classmethod
    def of(cls, binding: Binding, paths: Sequence[str]) -> "Parameters":
        """The parameters of these leaves.

        Raises:
            OptimizerError: leaves that no rule names, or rules that name more leaves than there are.
        """
        check_binding(binding)
        families = [family for rule in binding.rules for family in _families(rule.trained())]
        prefix = _prefix(families, paths)
        here = {prefix + path for path in paths}
        chosen = tuple(family for family in families if here & set(family.paths))
        if torn := [family for family in chosen if not here.issuperset(family.paths)]:
            raise OptimizerError(f"the optimizer holds a part of the leaves of {torn[0]}")
        tied = {key: to for rule in binding.rules if isinstance(rule, Tied) for key, to in rule.pairs}
        keys = {key for family in chosen for key in family.keys}
        names = {name: tied.get(name, name) for name in binding.parameters}
        return cls(chosen, {name: key for name, key in names.items() if key in keys}, prefix)

    @classmethod
    def of_state(cls, binding: Binding, state: State) -> "Parameters":
        """The parameters of a State: of its leaves, or the leaves themselves where they are torch's arrays.

        Raises:
            OptimizerError: as `of`; leaves that are no arrays of torch's though the optimizer took them so.
        """
        check_binding(binding)
        if state.algorithm.leaves == "model":
            return cls.of(binding, state.paths)
        known = set(binding.parameters)
        strange = [path for path in state.paths if path not in known]
        if state.algorithm.leaves == "torch":
            strange += [path for path in _laid_out_anew(binding) if path in state.paths]
        if strange:
            raise OptimizerError(
                f"{state.algorithm.name} takes torch's own arrays, and {quoted(strange)} are not; "
                f"js.optim.{state.algorithm.constructor({})}(..., binding=binding) makes them of the model's"
            )
        names = [name for name in binding.parameters if name in set(state.paths)]
        return cls(tuple(map(Itself, names)), {name: name for name in names}, "")

    @cached_property
    def keys_of(self) -> dict[str, tuple[str, ...]]:
        """For each path the names that it is a part of, in id order; none for a leaf that torch lacks."""
        rows = {path: set(family.keys) for family in self.families for path in self.own_paths(family)}
        return {path: tuple(n for n, key in self.names.items() if key in row) for path, row in rows.items()}

    @cached_property
    def paths_of(self) -> dict[str, tuple[str, ...]]:
        """For each name the paths that are a part of it."""
        rows = {key: self.own_paths(family) for family in self.families for key in family.keys}
        return {name: rows[key] for name, key in self.names.items()}

    @cached_property
    def sums(self) -> dict[str, Sum | Blocks]:
        """The names whose torch parameters the model holds only as a sum."""
        lossy = [family for family in self.families if isinstance(family, (Sum, Blocks))]
        rows = {key: family for family in lossy for key in family.keys}
        return {name: rows[key] for name, key in self.names.items() if key in rows}

    @property
    def padded(self) -> list[Padded]:
        """The families of which one side has more than the other."""
        return [family for family in self.families if isinstance(family, Padded)]

    def own_paths(self, family: Family) -> tuple[str, ...]:
        """The optimizer's names for the leaves of a family."""
        return tuple(path.removeprefix(self.prefix) for path in family.paths)

    def to_torch(self, leaves: Mapping[str, Any], start: Start = lambda path: 0) -> dict[str, Any]:
        """torch's arrays of these leaves by name; leaves of a family come together.

        Args:
            start: what stands in a padding.
        """
        placed = {self.prefix + path: leaf for path, leaf in leaves.items()}
        arrays: dict[str, Any] = {}
        for family in self._moved(placed, start):
            arrays |= family.state_dict(placed)
        return {name: arrays[key] for name, key in self.names.items() if key in arrays}

    def lazily_to_torch(self, leaves: Mapping[str, Any], start: Start = lambda path: 0) -> dict[str, Any]:
        """The same arrays; a part of one is read from the parts of the leaves that it is made of."""
        placed = {self.prefix + path: leaf for path, leaf in leaves.items()}
        arrays: dict[str, Any] = {}
        for family in self._moved(placed, start):
            arrays |= family.of(placed).lazy_state_dict(placed)
        return {name: arrays[key] for name, key in self.names.items() if key in arrays}

    def to_jax(
        self, arrays: Mapping[str, Any], like: Mapping[str, Any], start: Start = lambda path: 0
    ) -> dict[str, Any]:
        """The leaves of torch's arrays, which have shapes that fit; `like` are leaves, perhaps abstract."""
        return dict(self.each_leaf(arrays, like, start))

    def each_leaf(
        self, arrays: Mapping[str, Any], like: Mapping[str, Any], start: Start, parted: Collection[str] = ()
    ) -> Iterator[tuple[str, Any]]:
        """The same leaves, family by family, so that those of one at a time are in memory.

        Args:
            parted: paths of leaves that are wanted in parts: these come as a `LazyArray`.
        """
        by_key = {key: arrays[name] for name, key in self.names.items() if name in arrays}
        placed = {self.prefix + path: leaf for path, leaf in like.items()}
        for family in self._moved(placed, start):
            rule, own = family.of(placed), self.own_paths(family)
            lazy = not set(parted).isdisjoint(own)
            made = rule.lazy_leaves(by_key) if lazy else rule.leaves(Made(by_key))
            yield from zip(own, (made[path] for path in family.paths), strict=True)

    def shapes(self, like: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """torch's shape by name, for leaves that may be abstract."""
        placed = {self.prefix + path: leaf for path, leaf in like.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for family in self._moved(placed, lambda path: 0):
            shapes |= family.of(placed).shapes
        return {name: shapes[key] for name, key in self.names.items() if key in shapes}

    def started(self, family: Padded, start: Start) -> Padded:
        """The family for an optimizer's arrays that start so."""
        return family.started(start(self.own_paths(family)[0]))

    def _moved(self, placed: Mapping[str, Any], start: Start) -> list[Any]:
        rules = [family for family in self.families if isinstance(family, Bijection | Padded)]
        here = [rule for rule in rules if any(path in placed for path in rule.paths)]
        return [self.started(rule, start) if isinstance(rule, Padded) else rule for rule in here]


def _laid_out_anew(binding: Binding) -> list[str]:
    """The paths whose leaves are not torch's arrays as they are."""
    rules = [rule for rule in binding.of_parameters().rules if rule.paths]
    return [path for rule in rules if not _is_plain(rule) for path in rule.paths]


def _is_plain(rule: Any) -> bool:
    if not isinstance(rule, Rule):
        return False
    return rule.layout.left == rule.layout.right and not rule.layout.flipped


def check_binding(binding: Any) -> None:
    """Raise OptimizerError for what is no Binding."""
    if not isinstance(binding, Binding):
        raise OptimizerError(
            "a Binding is due, such as binding = js.bind(model), which says what torch calls the parameters; "
            f"this is of type {type(binding).__name__}"
        )


def _families(rule: AnyRule) -> Iterable[Family]:
    if isinstance(rule, Bijection | Padded):
        return apart(rule) if rule.trainable else []
    return [rule] if isinstance(rule, (Sum, Blocks, JaxOnly)) else []


def _prefix(families: Sequence[Family], paths: Sequence[str]) -> str:
    claimed = {path for family in families for path in family.paths}
    for prefix in PREFIXES:
        if all(prefix + path in claimed for path in paths):
            return prefix
    loose = [path for path in paths if path not in claimed]
    hint = "\n\ta vector that optax.flatten has made needs params=..." if loose == [""] else ""
    raise OptimizerError(
        "the Binding does not bind these parameters:\n\t"
        f"the optimizer has {quoted(loose)}\n\tthe Binding has {quoted(claimed - set(paths))}{hint}"
    )
