"""Plain optax states: a State made of one, and one with a State's values.

optax keeps the moments and hides the hyper-parameters, so the torch optimizer that a state belongs to is
asked for. A state is recognised by its fields: class names do not survive every store. It counts once for
all parameters, and a schedule beside it counts the same steps.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.tree_util import GetAttrKey, KeyPath

from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._arrays import place
from jaxstate.optim._state import State, find_state


def read_optax(opt: Any, optimizer: Any) -> State:
    """The State that a plain optax state is, given its optimizer; its leaves may be abstract.

    Raises:
        OptimizerError: an optimizer that optax has no equal of, or not exactly one state of its kind.
    """
    fields = _fields(optimizer)
    node = _find(opt, _wanted(optimizer))
    # optax may keep mu in another dtype than the parameters', but nu has theirs.
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), getattr(node, list(fields)[-1]))
    state = find_state(optimizer.init(like))
    # Every tuple has a method of this name.
    count = node.count if "count" in node._fields else 1
    known = not isinstance(count, jax.ShapeDtypeStruct)
    step = np.full(len(state.paths), np.asarray(count) if known else 0, np.int32)
    buffers = {name: getattr(node, field) for field, name in fields.items()}
    return replace(state, step=jax.device_put(step), buffers=buffers)


def write_optax(opt: Any, optimizer: Any, template: State, state: State) -> Any:
    """The optax state with the values of a State, and with every count at its step.

    Raises:
        OptimizerError: hyper-parameters that are not those of the optimizer, or steps that one count
            cannot say.
    """
    counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(opt) if _is_count(path)]
    problems = [*_other_options(template, state), *_uncounted(state, counts)]
    if problems:
        raise OptimizerError("the file does not fit this optax state:\n\t" + "\n\t".join(problems))
    node = _find(opt, _wanted(optimizer))
    trees = {field: state.buffers[name] for field, name in _fields(optimizer).items()}
    new = jax.tree.map(lambda x: node._replace(**trees) if x is node else x, opt, is_leaf=lambda x: x is node)
    if not state.algorithm.counts:
        return new
    step = np.asarray(state.step).max(initial=0)
    return jax.tree_util.tree_map_with_path(lambda p, x: place(step, x) if _is_count(p) else x, new)


def _fields(optimizer: Any) -> dict[str, str]:
    """The fields of the optax state, and the buffers that they are."""
    empty = find_state(optimizer.init({}))
    rows = [empty.algorithm.optax(group.to_torch()) for group in empty.param_groups]
    return dict(rows[0])


def _wanted(optimizer: Any) -> set[str]:
    counts = find_state(optimizer.init({})).algorithm.counts
    return {*_fields(optimizer), *(["count"] if counts else [])}


def _find(opt: Any, fields: set[str]) -> Any:
    def is_node(node: Any) -> bool:
        return set(getattr(node, "_fields", ())) == fields

    found = [node for node in jax.tree.leaves(opt, is_leaf=is_node) if is_node(node)]
    if len(found) != 1:
        raise OptimizerError(
            f"the optax state has {len(found)} parts with the fields {quoted(sorted(fields))}"
        )
    return found[0]


def _is_count(path: KeyPath) -> bool:
    return bool(path) and isinstance(path[-1], GetAttrKey) and path[-1].name == "count"


def _other_options(template: State, state: State) -> Iterator[str]:
    for i, (given, found) in enumerate(zip(template.param_groups, state.param_groups, strict=True)):
        ours, theirs = given.to_torch(), found.to_torch()
        for key in template.algorithm.hyperparameters:
            if theirs[key] != ours[key] and list(np.atleast_1d(theirs[key])) != list(
                np.atleast_1d(ours[key])
            ):
                yield f"group {i} has {key}={theirs[key]!r}, and optimizer= says {ours[key]!r}"


def _uncounted(state: State, counts: list[Any]) -> Iterator[str]:
    steps = sorted(set(np.asarray(state.step).tolist()))
    if state.algorithm.counts and len(steps) > 1:
        yield f"optax counts once for all parameters, and the file has the steps {steps}"
    if not state.algorithm.counts and counts:
        yield f"a schedule counts steps, and {state.algorithm.name} writes none into its file"
