"""Hyperparams: the numbers that `optax.inject_hyperparams` holds around an optimizer.

They are what its next step uses, so they win over the numbers inside, and a file's numbers are written to
them. One that a schedule makes anew is the schedule's: the state holds only what the last step used.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import KeyPath

from jaxstate.arrays.placement import place
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._nest.nest import Part, at, field, fields_of, where, with_fields, with_parts
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._state import State

# torch's key of a hyper-parameter that optax calls otherwise, with its place where torch has a pair.
KEYS: Mapping[str, tuple[str, int | None]] = {
    "learning_rate": ("lr", None),
    "b1": ("betas", 0),
    "b2": ("betas", 1),
    "decay": ("alpha", None),
}


@dataclass(frozen=True)
class Injected:
    """One injected number: whose state holds it, what it is called, and whether a schedule makes it."""

    path: KeyPath
    name: str
    value: Any
    scheduled: bool

    @property
    def key(self) -> str:
        """torch's key."""
        return KEYS.get(self.name, (self.name, None))[0]

    @property
    def index(self) -> int | None:
        """Its place in torch's pair."""
        return KEYS.get(self.name, (self.name, None))[1]


def read_hyperparams(tree: Any, parts: Sequence[Part], state: State) -> State:
    """The State with the numbers that are injected; a scheduled one stays as it was.

    Raises:
        OptimizerError: one group with different numbers injected; an `eps_root`, which torch has not.
    """
    groups = [
        _injected_group(group, [n for n in row if not n.scheduled and _is_known(n.value)])
        for group, row in zip(state.param_groups, _rows(tree, parts, state), strict=True)
    ]
    return replace(state, param_groups=tuple(groups))


def held_options(tree: Any, parts: Sequence[Part], state: State, scheduled: bool) -> list[set[str]]:
    """For each group the options that are injected, with or without those that a schedule makes."""
    return [{n.key for n in row if scheduled or not n.scheduled} for row in _rows(tree, parts, state)]


def refuse_scheduled(tree: Any, parts: Sequence[Part], state: State) -> None:
    """Refuse to write a number of which only the last value is known.

    Raises:
        OptimizerError: a hyper-parameter with a schedule.
    """
    names = {n.name for row in _rows(tree, parts, state) for n in row if n.scheduled}
    if names:
        call = f"js.optim.{state.algorithm.constructor(state.param_groups[0].options)}(lr=schedule)"
        raise OptimizerError(
            f"inject_hyperparams makes {quoted(sorted(names))} by a schedule and holds what the last step "
            f"used; torch's groups hold what the next step uses: {call} knows it"
        )


def with_hyperparams(tree: Any, parts: Sequence[Part], state: State) -> Any:
    """The tree with a State's numbers where they are injected.

    Raises:
        OptimizerError: groups with different numbers where one is injected.
    """
    found: dict[tuple[KeyPath, str], list[Any]] = {}
    for group, row in zip(state.param_groups, _rows(tree, parts, state), strict=True):
        for number in [n for n in row if not n.scheduled]:
            value = group.to_torch()[number.key]
            found.setdefault((number.path, number.name), []).append(
                value if number.index is None else value[number.index]
            )
    for (path, name), values in found.items():
        if any(value != values[0] for value in values):
            raise OptimizerError(
                f"{where(path)} injects one {name}, and the groups of the file have {values}; inject into "
                "each label of a partition on its own"
            )
        node = at(tree, path)
        numbers = field(node, "hyperparams")
        new = {**numbers, name: place(np.array(values[0]), numbers[name])}
        tree = with_parts(tree, [Part(path, node)], [with_fields(node, hyperparams=new)])
    return tree


def _rows(tree: Any, parts: Sequence[Part], state: State) -> list[list[Injected]]:
    """For each group what is injected around the parts that its parameters are in."""
    known = state.algorithm.hyperparameters
    around = [
        (part_paths(part.node), [n for n in _around(tree, part.path) if n.key in known]) for part in parts
    ]
    return [
        [n for paths, row in around if paths & {*group.paths, ""} for n in row]
        for group in state.param_groups
    ]


def _around(tree: Any, path: KeyPath) -> Iterator[Injected]:
    for i in range(len(path)):
        node = at(tree, path[:i])
        if {"count", "hyperparams", "inner_state"} <= fields_of(node):
            made = field(node, "hyperparams_states") if "hyperparams_states" in fields_of(node) else {}
            numbers = field(node, "hyperparams")
            _check_eps_root(numbers)
            yield from (Injected(path[:i], name, x, name in made) for name, x in numbers.items())


def _check_eps_root(numbers: Mapping[str, Any]) -> None:
    root = numbers.get("eps_root", 0)
    if _is_known(root) and root != 0:
        raise OptimizerError(f"optax adds eps_root={_shortest(root)} under the root, and torch has none")


def _injected_group(group: ParamGroup, row: Sequence[Injected]) -> ParamGroup:
    if not row:
        return group
    values = group.to_torch()
    for number in row:
        same = {float(n.value) for n in row if n.name == number.name}
        if len(same) > 1:
            raise OptimizerError(
                f"one group has several values of {number.name} injected, {sorted(same)}; give optimizer= a "
                "group for each"
            )
        values[number.key] = _with(values[number.key], number.index, _shortest(number.value))
    return group.changed(**{number.key: values[number.key] for number in row})


def _with(value: Any, index: int | None, number: float) -> Any:
    if index is None:
        return number
    return tuple(number if i == index else item for i, item in enumerate(value))


def _shortest(number: Any) -> float:
    """The shortest decimal that rounds to this number, which is what was meant."""
    return float(str(np.asarray(number)[()]))


def part_paths(node: Any) -> set[str]:
    """The parameters of a State or of a plain optax state, by path."""
    if isinstance(node, State):
        return set(node.paths)
    trees = [field(node, name) for name in fields_of(node) - {"count"}]
    return {path for tree in trees for path in leaf_paths(tree)}


def _is_known(x: Any) -> bool:
    return not isinstance(x, (jax.ShapeDtypeStruct, Tracer))
