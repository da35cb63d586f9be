"""An optimizer's param_groups as JSON values and back: what a checkpoint of arrays alone would lose.

The numbers of a group are array leaves and travel as such. Its options (flags, `foreach`, `initial_lr`, a
`name`), the order of its keys and the types of its numbers are structure, which no array store keeps.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxstate.errors import CheckpointError
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._state import State


def groups_to_json(opt: Any) -> list[Any]:
    """For each State in a tree of optimizer states, in the tree's order, its groups.

    Raises:
        CheckpointError: an option that JSON has no value for.
    """
    states = [node for node in jax.tree.leaves(opt, is_leaf=_is_state) if _is_state(node)]
    return [[_group_to_json(group) for group in state.param_groups] for state in states]


def groups_from_json(opt: Any, rows: list[Any]) -> Any:
    """A tree of optimizer states whose States have these options and their own numbers.

    Raises:
        CheckpointError: groups of other parameters than the states'.
    """
    nodes, treedef = jax.tree.flatten(opt, is_leaf=_is_state)
    here = [[list(group.paths) for group in node.param_groups] for node in nodes if _is_state(node)]
    there = [[group["paths"] for group in row] for row in rows]
    if here != there:
        raise CheckpointError(f"the checkpoint's groups are of {there}, the template's of {here}")
    made = iter(rows)
    return treedef.unflatten([_with_groups(node, next(made)) if _is_state(node) else node for node in nodes])


def spelled_out(opt: Any) -> Any:
    """A tree of optimizer states with a leaf for every number, whatever its values; as it is stored."""
    return jax.tree.map(lambda node: _map_groups(ParamGroup.spelled_out, node), opt, is_leaf=_is_state)


def folded(opt: Any, template: Any) -> Any:
    """The inverse of `spelled_out`: zeros are no leaves where they are none in the template."""
    return jax.tree.map(
        lambda like, node: _map_groups(ParamGroup.folded, node, like), template, opt, is_leaf=_is_state
    )


def _map_groups(f: Any, *nodes: Any) -> Any:
    if not _is_state(nodes[0]):
        return nodes[0]
    groups = zip(*(node.param_groups for node in nodes), strict=True)
    return replace(nodes[0], param_groups=tuple(f(*row) for row in groups))


def _is_state(node: Any) -> bool:
    return isinstance(node, State)


def _with_groups(state: State, row: list[Any]) -> State:
    pairs = zip(state.param_groups, row, strict=True)
    return replace(state, param_groups=tuple(_group_from_json(state, *pair) for pair in pairs))


def _group_to_json(group: ParamGroup) -> dict[str, Any]:
    options = [[key, _to_json(key, value)] for key, value in group.to_torch().items()]
    return {"options": options, "paths": group.paths, "param_names": group.param_names}


def _group_from_json(state: State, group: ParamGroup, value: Mapping[str, Any]) -> ParamGroup:
    options = {key: option_from_json(option) for key, option in value["options"]}
    names = None if value["param_names"] is None else tuple(value["param_names"])
    made = ParamGroup.of(state.algorithm, options, group.paths)
    return replace(group, options=made.options, param_names=names)


def _to_json(key: str, value: Any) -> Any:
    """JSON has one kind of sequence and torch's options have two, and 0-d tensors besides."""
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_to_json(key, item) for item in value]}
    if isinstance(value, np.ndarray):
        return {"array": value.item(), "dtype": str(value.dtype)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(f"the option {key}={value!r} of a param_group cannot be stored; take it out")


def option_from_json(value: Any) -> Any:
    """The option of its JSON value."""
    match value:
        case {"tuple": items}:
            return tuple(option_from_json(item) for item in items)
        case {"list": items}:
            return [option_from_json(item) for item in items]
        case {"array": number, "dtype": dtype}:
            return np.array(number, dtype)
    return value
