"""Plain optax states: a State made of them, and them with a State's values.

optax keeps the moments and hides the hyper-parameters, so the torch optimizer that a state belongs to is
asked for. A state is recognised by its fields: class names do not survive every store, and Adam, RAdam and
Adamax share theirs. Its parameters are told apart by path, so the states of a partition are one optimizer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from jaxstate.arrays.placement import place
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._nest.counts import step_beside
from jaxstate.optim._nest.nest import Part, field, fields_of, parts_of, where, with_fields
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._scheduled import is_scheduled, state_at
from jaxstate.optim._state import State, find_state, is_state


def optax_parts(tree: Any, optimizer: Any, label: Any = None) -> list[Part]:
    """The states that hold the buffers of a torch optimizer.

    Raises:
        OptimizerError: an optimizer that optax has no equal of, no state of its kind, or two for a parameter.
    """
    fields = _fields(optimizer)
    # A State of ours has buffers that are no fields, and a tree of parameters may be called anything.
    parts = parts_of(tree, lambda node: is_state(node) or _is_part(node, set(fields)), label)
    parts = [part for part in parts if not is_state(part.node)]
    rows = {name: [p for part in parts for p in _leaves(part.node, name)] for name in fields}
    wanted = quoted(sorted({*fields, *_counting(optimizer)}))
    if not any(rows.values()):
        raise OptimizerError(f"the optax state has 0 parts with the fields {wanted}")
    if twice := sorted({p for row in rows.values() for p, n in Counter(row).items() if n > 1}):
        count = len(parts)
        raise OptimizerError(
            f"the optax state has {count} parts with the fields {wanted} for {quoted(twice)}"
        )
    if lacking := [name for name in fields if sorted(rows[name]) != sorted(max(rows.values(), key=len))]:
        raise OptimizerError(f"the optax state has no {quoted(lacking)} for some of its parameters")
    if halves := sorted({path for part in parts for path in _halves(part.node)}):
        raise OptimizerError(f"{quoted(halves)} are halves of complex parameters, which torch keeps whole")
    return parts


def optax_state(tree: Any, parts: Sequence[Part], optimizer: Any, step: int | None = None) -> State:
    """The State that these states are, given their optimizer; its leaves may be abstract.

    Args:
        step: how many were taken, where no state counts them.

    Raises:
        OptimizerError: an optimizer that counts its steps, and states that do not.
    """
    buffers = {
        buffer: {path: leaf for part in parts for path, leaf in _leaves(part.node, name).items()}
        for name, buffer in _fields(optimizer).items()
    }
    # optax may keep mu in another dtype than the parameters', but nu has theirs.
    like = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in list(buffers.values())[-1].items()}
    state = find_state(optimizer.init(like))
    steps = {path: _step(tree, parts, path, state, step) for path in state.paths}
    counts = np.array([steps[path] for path in state.paths], np.int32)
    state = replace(state, step=jnp.asarray(counts), buffers=buffers)
    if not is_scheduled(optimizer):
        return state
    taken = step_beside(tree, parts[0].path) if step is None else step
    return replace(state, param_groups=tuple(_groups_now(state, optimizer, taken)))


def optax_nodes(parts: Sequence[Part], optimizer: Any, state: State) -> list[Any]:
    """States like these with the values of a State; each count is the step of its own parameters.

    Raises:
        OptimizerError: steps that one count cannot say.
    """
    steps = dict(zip(state.paths, np.asarray(state.step).tolist(), strict=True))
    found = [sorted({steps[path] for path in _paths(part.node, optimizer)}) for part in parts]
    if state.algorithm.counts and (uneven := [row for row in found if len(row) > 1]):
        raise OptimizerError(
            "the file does not fit this optax state:\n\t"
            f"optax counts once for all parameters, and the file has the steps {uneven[0]}"
        )
    return [_node(part.node, optimizer, state, row) for part, row in zip(parts, found, strict=True)]


def check_options(
    template: State, state: State, optimizer: Any, held: Sequence[set[str]], step: int | None = None
) -> None:
    """Refuse hyper-parameters of a file that are not those of the optimizer, which cannot be told here.

    Args:
        optimizer: for plain optax states, all of whose numbers are hidden.
        held: for each group the options that lie around the states, and are told.
        step: how many were taken, where the file does not say it.
    """
    if is_scheduled(optimizer):
        groups = _groups_now(replace(template, step=state.step), optimizer, step)
        template = replace(template, param_groups=tuple(groups))
    if problems := list(_other_options(template, state, optimizer, held)):
        raise OptimizerError("the file does not fit this optimizer state:\n\t" + "\n\t".join(problems))


def _other_options(template: State, state: State, optimizer: Any, held: Sequence[set[str]]) -> Iterator[str]:
    for i, group in enumerate(state.param_groups):
        given, known = template.param_groups[i], {*held[i]}
        if optimizer is None:
            fixed, by = set(given.injected) - known, "the constructor was given"
        else:
            fixed, by = {*given.numbers} - known, "optimizer= says"
        ours, theirs = given.to_torch() if fixed else {}, group.to_torch()
        for key in template.algorithm.hyperparameters:
            if key in fixed and not _same(theirs[key], ours[key], is_scheduled(optimizer)):
                yield f"group {i} has {key}={theirs[key]!r}, and {by} {ours[key]!r}"


def _groups_now(state: State, optimizer: Any, taken: int | None) -> list[ParamGroup]:
    """The State's groups, with the rates that the optimizer's schedule has for the next step."""
    step = int(np.max(np.asarray(state.step), initial=0)) if state.algorithm.counts else taken
    if step is None:
        raise OptimizerError("a schedule needs to know how many steps were taken: say it with step=...")
    numbers = [group.numbers for group in state_at(optimizer, step).param_groups]
    return [replace(group, numbers=row) for group, row in zip(state.param_groups, numbers, strict=True)]


def _same(one: Any, other: Any, is_rounded: bool) -> bool:
    # A schedule is computed in float32.
    return bool(np.allclose(one, other, rtol=1e-5, atol=0) if is_rounded else np.array_equal(one, other))


def _fields(optimizer: Any) -> dict[str, str]:
    """The fields of the optax states, and the buffers that they are."""
    empty = find_state(optimizer.init({}))
    rows = [_equal(empty, group.to_torch()) for group in empty.param_groups]
    if any(row != rows[0] for row in rows):
        raise OptimizerError("the groups of optimizer= need different optax states, and each has one kind")
    return dict(rows[0])


def _equal(state: State, options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    algorithm = state.algorithm
    try:
        return algorithm.optax(options)
    except OptimizerError as error:
        raise OptimizerError(
            f"{error}; train with {algorithm.call(options)}, which does as torch does"
        ) from error


def _counting(optimizer: Any) -> tuple[str, ...]:
    return ("count",) if find_state(optimizer.init({})).algorithm.counts else ()


def _is_part(node: Any, wanted: set[str]) -> bool:
    fields = set(fields_of(node)) - {"count"}
    return bool(fields) and fields <= wanted


def _leaves(node: Any, name: str) -> dict[str, Any]:
    """The leaves of one field by path."""
    if name not in fields_of(node):
        return {}
    tree = field(node, name)
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def _halves(node: Any) -> list[str]:
    """What `optax.split_real_and_imaginary` has taken apart."""
    rows = jax.tree_util.tree_flatten_with_path(node)[0]
    ends = (GetAttrKey("real"), GetAttrKey("imaginary"))
    return [where(path) for path, _ in rows if path and path[-1] in ends]


def _paths(node: Any, optimizer: Any) -> list[str]:
    return [path for name in _fields(optimizer) for path in _leaves(node, name)]


def _step(tree: Any, parts: Sequence[Part], path: str, state: State, step: int | None) -> int:
    """How often the parameter at a path was updated; 0 where that is abstract."""
    if not state.algorithm.counts:
        return 1
    own = [part for part in parts if any(path in _leaves(part.node, name) for name in fields_of(part.node))]
    counts = [field(part.node, "count") for part in own if "count" in fields_of(part.node)]
    if counts:
        return 0 if isinstance(counts[0], jax.ShapeDtypeStruct) else int(counts[0])
    found = step_beside(tree, own[0].path) if step is None else step
    if found is None:
        raise OptimizerError(
            f"torch's {state.algorithm.name} counts its steps and this optax state does not: say step=..."
        )
    return found


def _node(node: Any, optimizer: Any, state: State, steps: Sequence[int]) -> Any:
    names = {name: buffer for name, buffer in _fields(optimizer).items() if name in fields_of(node)}
    trees = {name: _filled(field(node, name), state.buffer(buffer)) for name, buffer in names.items()}
    if "count" in fields_of(node):
        trees["count"] = place(np.array(max(steps, default=0)), field(node, "count"))
    return with_fields(node, **trees)


def _filled(tree: Any, leaves: Mapping[str, Any]) -> Any:
    treedef = jax.tree.structure(tree)
    return treedef.unflatten([leaves[path] for path in leaf_paths(tree)])
