"""Counts: what optax and Flax count beside an optimizer's own steps.

A schedule, a scheduled decay, an injected hyper-parameter, MultiSteps, a TrainState: each counts the same
steps for itself, and torch's file says them once. A count that has more than steps to remember, as that of
an average has, is none of these and stays with what it counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import KeyPath

from jaxstate.arrays.placement import place
from jaxstate.errors import OptimizerError
from jaxstate.optim._nest.nest import at, children, field, fields_of, name_of, where

MULTI_STEPS = frozenset({"mini_step", "gradient_step", "inner_opt_state", "acc_grads", "skip_state"})
CONDITIONAL = frozenset({"inner_state", "step"})

# The fields of a state that counts, and which of them is the count.
COUNTED = {
    frozenset({"count"}): "count",
    frozenset({"count", "inner_state"}): "count",
    frozenset({"count", "hyperparams", "inner_state"}): "count",
    frozenset({"count", "hyperparams", "hyperparams_states", "inner_state"}): "count",
    MULTI_STEPS: "gradient_step",
    CONDITIONAL: "step",
    frozenset({"step", "opt_state"}): "step",
}

# These are called more often than they make a step, and a count around them counts the calls.
GATES = (MULTI_STEPS, CONDITIONAL)


@dataclass(frozen=True)
class Count:
    """A count, and the parts whose steps it counts.

    Args:
        path: of the count.
        leaf: its value, which may be abstract.
        parts: positions of the parts that it stands beside.
        gated: True if it counts calls, of which not every one is a step.
    """

    path: KeyPath
    leaf: Any
    parts: tuple[int, ...]
    gated: bool


def counts_of(tree: Any, paths: Sequence[KeyPath]) -> list[Count]:
    """Every count beside the parts at these paths; those of another label are not beside them."""
    rows = [(path, leaf, _beside(path[:-1], paths)) for path, leaf in _leaves((), tree, set(paths))]
    return [
        Count(path, leaf, near, any(_gated(tree, path[:-1], paths[i]) for i in near))
        for path, leaf, near in rows
        if near
    ]


def with_counts(
    tree: Any, paths: Sequence[KeyPath], steps: Sequence[set[int] | None], step: int | None = None
) -> Any:
    """The tree with every count beside the parts at the steps of these.

    Args:
        paths: of the parts.
        steps: for each part the steps of its parameters; None where the file does not say them.
        step: how many there were, for the counts that no file says.

    Raises:
        OptimizerError: counts that the file does not tell, and no `step`; a `step` that contradicts it.
    """
    counts = counts_of(tree, paths)
    told = {count.path: _told(count, steps) for count in counts}
    problems = [problem for count in counts if (problem := _problem(count, steps))]
    if problems and step is None:
        raise OptimizerError("say how many steps were taken, with step=:\n\t" + "\n\t".join(problems))
    known = sorted({value for value in told.values() if value is not None})
    if step is not None and not problems and known not in ([], [step]):
        raise OptimizerError(f"step={step}, and the file says {known}")
    values = {path: step if value is None else value for path, value in told.items()}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _count(values[path], x) if path in values else x,
        tree,
        is_leaf=lambda x: x is None,
    )


def step_beside(tree: Any, path: KeyPath) -> int | None:
    """The step that the counts beside a part agree on; None if there is none, or they do not."""
    found = {
        int(count.leaf) for count in counts_of(tree, [path]) if not count.gated and _is_known(count.leaf)
    }
    return found.pop() if len(found) == 1 else None


def _told(count: Count, steps: Sequence[set[int] | None]) -> int | None:
    rows = [steps[i] for i in count.parts]
    if count.gated or any(row is None for row in rows):
        return None
    found = {step for row in rows for step in row or () if step} or {0}
    return found.pop() if len(found) == 1 else None


def _problem(count: Count, steps: Sequence[set[int] | None]) -> str | None:
    if _told(count, steps) is not None:
        return None
    rows = [steps[i] for i in count.parts]
    if count.gated:
        return f"{where(count.path)} counts calls of update, of which not every one is a step"
    if any(row is None for row in rows):
        return f"{where(count.path)} counts steps, and this optimizer writes none into its file"
    found = sorted({step for row in rows for step in row or () if step})
    return f"{where(count.path)} counts once for all parameters, and the file has the steps {found}"


def _beside(state: KeyPath, paths: Sequence[KeyPath]) -> tuple[int, ...]:
    """The parts that share most of the way with a state, unless a partition lies between."""
    shared = [_shared(state, path) for path in paths]
    most = max(shared)
    apart = most < len(state) and most > 0 and name_of(state[most - 1]) == "inner_states"
    return () if apart else tuple(i for i, length in enumerate(shared) if length == most)


def _shared(one: KeyPath, other: KeyPath) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(one), len(other)))


def _gated(tree: Any, state: KeyPath, path: KeyPath) -> bool:
    """True if a gate lies between a state and a part, or the state is one that counts its calls."""
    fork = _shared(state, path)
    itself = fork == len(state) and fields_of(at(tree, state)) == CONDITIONAL
    between = [at(tree, path[:i]) for i in range(fork + 1, len(path))]
    return itself or any(fields_of(node) in GATES for node in between)


def _leaves(path: KeyPath, node: Any, parts: set[KeyPath]) -> Iterator[tuple[KeyPath, Any]]:
    if path in parts:
        return
    name = COUNTED.get(fields_of(node))
    for entry, child in children(node):
        if name is not None and name_of(entry) == name and _is_count(field(node, name)):
            yield (*path, entry), child
        else:
            yield from _leaves((*path, entry), child, parts)


def _is_count(x: Any) -> bool:
    return np.shape(x) == () and np.issubdtype(getattr(x, "dtype", type(x)), np.integer)


def _is_known(x: Any) -> bool:
    return not isinstance(x, (jax.ShapeDtypeStruct, Tracer))


def _count(value: int | None, like: Any) -> Any:
    """The count as the template has it: Flax starts with a Python int."""
    return value if isinstance(like, int) else place(np.array(value), like)
