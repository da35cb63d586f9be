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
from jaxstate.optim._state import State, replace_state


def groups_to_json(opt: Any) -> list[Any] | None:
    """The groups of the State in a tree of optimizer states; None where there is none.

    Raises:
        CheckpointError: an option that JSON has no value for.
    """
    state = _state(opt)
    return None if state is None else [_group_to_json(group) for group in state.param_groups]


def groups_from_json(opt: Any, groups: list[Any] | None) -> Any:
    """A tree of optimizer states whose State has these options and its own numbers.

    Raises:
        CheckpointError: groups of other parameters than the state's.
    """
    state = _state(opt)
    if groups is None or state is None:
        return opt
    here, there = [list(group.paths) for group in state.param_groups], [group["paths"] for group in groups]
    if here != there:
        raise CheckpointError(f"the checkpoint's groups are of {there}, the template's of {here}")
    made = [_group_from_json(state, *pair) for pair in zip(state.param_groups, groups, strict=True)]
    return replace_state(opt, replace(state, param_groups=tuple(made)))


def _state(opt: Any) -> State | None:
    nodes = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, State))
    states = [node for node in nodes if isinstance(node, State)]
    return states[0] if len(states) == 1 else None


def _group_to_json(group: ParamGroup) -> dict[str, Any]:
    options = [[key, _to_json(key, value)] for key, value in group.to_torch().items()]
    return {"options": options, "paths": group.paths, "param_names": group.param_names}


def _group_from_json(state: State, group: ParamGroup, value: Mapping[str, Any]) -> ParamGroup:
    options = {key: _from_json(option) for key, option in value["options"]}
    names = None if value["param_names"] is None else tuple(value["param_names"])
    made = ParamGroup.of(state.algorithm, options, group.paths, param_names=names)
    return replace(made, numbers=group.numbers)


def _to_json(key: str, value: Any) -> Any:
    """JSON has one kind of sequence and torch's options have two, and 0-d tensors besides."""
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_to_json(key, item) for item in value]}
    if isinstance(value, np.ndarray):
        return {"array": value.item(), "dtype": str(value.dtype)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(f"the option {key}={value!r} of a param_group cannot be stored; take it out")


def _from_json(value: Any) -> Any:
    match value:
        case {"tuple": items}:
            return tuple(_from_json(item) for item in items)
        case {"list": items}:
            return [_from_json(item) for item in items]
        case {"array": number, "dtype": dtype}:
            return np.array(number, dtype)
    return value
