"""Site: the states in a tree that make one torch optimizer, whatever lies around them.

The door reads a State from a site and writes one to it. States of this package say which optimizer they are;
for plain optax states that is asked for.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxstate.errors import OptimizerError
from jaxstate.optim._nest.counts import MULTI_STEPS, with_counts
from jaxstate.optim._nest.flattened import flattened, unflattened
from jaxstate.optim._nest.flax_states import closed, opened
from jaxstate.optim._nest.hyperparams import (
    held_options,
    part_paths,
    read_hyperparams,
    refuse_scheduled,
    with_hyperparams,
)
from jaxstate.optim._nest.nest import Part, at, check_labels, field, fields_of, parts_of, where, with_parts
from jaxstate.optim._nest.optax_states import check_options, optax_nodes, optax_parts, optax_state
from jaxstate.optim._state import State, check_optimizer, find_state, is_state, split


@dataclass(frozen=True)
class Site:
    """Where a torch optimizer lies.

    Args:
        opt: what the user has: a tree of states, or Flax's holder of one.
        tree: the tree in it.
        parts: the states that are the optimizer, each with its path.
        optimizer: which one, for plain optax states.
        params: the parameters, where `optax.flatten` hides them.
        step: how many were taken, where the states do not say it.
    """

    opt: Any
    tree: Any
    parts: tuple[Part, ...]
    optimizer: Any = None
    params: Any = None
    step: int | None = None

    def state(self) -> State:
        """The State of the optimizer, with the hyper-parameters that lie around it."""
        return read_hyperparams(self.tree, self.parts, unflattened(self._state(), self.params))

    def check_written(self, state: State) -> None:
        """Refuse to write numbers of which only the last value is known."""
        if self.optimizer is None:
            refuse_scheduled(self.tree, self.parts, state)

    def with_state(self, state: State) -> Any:
        """What the user has, with a State's values, and with every count beside it at its step.

        Raises:
            OptimizerError: a State that these states cannot hold.
        """
        # optimizer= says what a schedule would be at; states of ours cannot.
        held = held_options(self.tree, self.parts, state, scheduled=self.optimizer is None)
        check_options(self.state(), state, self.optimizer, held, self.step)
        inner = flattened(self._state(), state, self.params)
        nodes = self._nodes(inner)
        tree = with_hyperparams(with_parts(self.tree, self.parts, nodes), self._at(nodes), state)
        steps = [_steps(inner, part) for part in self._at(nodes)]
        return closed(self.opt, with_counts(tree, [part.path for part in self.parts], steps, self.step))

    def _nodes(self, state: State) -> list[Any]:
        if self.optimizer is None:
            return split(state, [part.node for part in self.parts])
        return optax_nodes(self.parts, self.optimizer, state)

    def _at(self, nodes: Sequence[Any]) -> list[Part]:
        return [replace(part, node=node) for part, node in zip(self.parts, nodes, strict=True)]

    def _state(self) -> State:
        if self.optimizer is None:
            return find_state(tuple(part.node for part in self.parts))
        return optax_state(self.tree, self.parts, self.optimizer, self.step)


def site_of(
    opt: Any, optimizer: Any = None, label: Any = None, params: Any = None, step: int | None = None
) -> Site:
    """The site of the one torch optimizer in what the user has.

    Raises:
        OptimizerError: no optimizer, no step; none, several, or one in the middle of accumulating gradients.
    """
    _check_step(step)
    tree = opened(opt)
    if optimizer is None:
        find_state(tree, label)
        parts = parts_of(tree, is_state, label)
    else:
        check_optimizer(optimizer)
        parts = optax_parts(tree, optimizer, label)
        check_labels(tree, parts, label)
    _check_accumulators(tree, parts)
    return Site(opt, tree, tuple(parts), optimizer, params, step)


def _steps(state: State, part: Part) -> set[int] | None:
    """The steps of a part's parameters; None for an optimizer that writes none."""
    here, counts = part_paths(part.node), zip(state.paths, np.asarray(state.step).tolist(), strict=True)
    return {step for path, step in counts if path in here} if state.algorithm.counts else None


def _check_step(step: Any) -> None:
    whole = hasattr(step, "__index__") and not isinstance(step, bool) and np.size(step) == 1
    if step is not None and not (whole and operator.index(step) >= 0):
        raise OptimizerError(f"step= is how many steps were taken, a whole number, not {step!r}")


def _check_accumulators(tree: Any, parts: Sequence[Part]) -> None:
    for path in {part.path[:i] for part in parts for i in range(len(part.path))}:
        node = at(tree, path)
        if fields_of(node) == MULTI_STEPS and _is_between(field(node, "mini_step")):
            raise OptimizerError(
                f"{where(path)} is in the middle of a step (mini_step is {int(field(node, 'mini_step'))}): "
                "the gradients that it has accumulated have no place in torch's dict, where they would be "
                "p.grad; convert when mini_step is 0"
            )


def _is_between(mini_step: Any) -> bool:
    return not isinstance(mini_step, jax.ShapeDtypeStruct) and int(mini_step) != 0
