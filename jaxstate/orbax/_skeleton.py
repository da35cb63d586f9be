"""Skeleton: the structure of an optimizer's state as JSON, so that its leaves make a state without a program.

Nests of optax are tuples with names and dicts, and are known by their fields; so tuples of the same fields
stand for them. States of jaxstate come back as what they are, with their buffers flat.
"""

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from jax.tree_util import GetAttrKey, KeyPath

from jaxstate.binding import Binding
from jaxstate.errors import CheckpointError
from jaxstate.optim._algorithms import ALGORITHMS
from jaxstate.optim._double import Double
from jaxstate.optim._lbfgs.curvature import Memory
from jaxstate.optim._lbfgs.flat import Flat
from jaxstate.optim._lbfgs.state import LBFGSState
from jaxstate.optim._nest.nest import children
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._state import Absent, State, flatten_buffer
from jaxstate.optim._torch_dict.groups_json import option_from_json
from jaxstate.tree import dotted, flat

_DOUBLES = ("t", "prev_loss")


def skeleton(tree: Any, path: KeyPath = ()) -> Any:
    """A tree of optimizer states as JSON, with the dotted path of each leaf in its place.

    >>> skeleton({"a": (1, None)})
    {'dict': [['a', {'tuple': [{'leaf': 'a.0'}, None]}]]}
    """
    if tree is None:
        return None
    if isinstance(tree, State):
        return {"State": _state(tree, dotted(path))}
    rows = children(tree)
    if not rows and not isinstance(tree, tuple | list | Mapping):
        return {"leaf": dotted(path)}
    below = [skeleton(child, (*path, entry)) for entry, child in rows]
    return _node(tree, rows, below)


def filled(bones: Any, leaves: Mapping[str, Any], groups: list[Any]) -> Any:
    """The tree with these leaves; `groups` are those of its States, in order, as JSON.

    >>> filled(skeleton({"a": (1, None)}), {"a.0": 5}, [])
    {'a': (5, None)}
    """
    rows = iter(groups)
    return _filled(bones, leaves, rows)


def has_states(bones: Any) -> bool:
    """True if there is a State of jaxstate in it."""
    if isinstance(bones, list):
        return any(map(has_states, bones))
    return isinstance(bones, dict) and ("State" in bones or any(map(has_states, bones.values())))


def _node(tree: Any, rows: list[Any], below: list[Any]) -> Any:
    if hasattr(tree, "_fields"):
        return {
            "named": type(tree).__name__,
            "fields": list(map(list, zip(tree._fields, below, strict=True))),
        }
    if isinstance(tree, tuple | list):
        return {type(tree).__name__ if type(tree) in (tuple, list) else "tuple": below}
    if [entry for entry, _ in rows] == [GetAttrKey("value")]:
        return below[0]  # NNX's box around an array
    names = [dotted((entry,)) if isinstance(entry, GetAttrKey) else entry.key for entry, _ in rows]
    return {"dict": list(map(list, zip(names, below, strict=True)))}


def _filled(bones: Any, leaves: Mapping[str, Any], groups: Any) -> Any:
    match bones:
        case None:
            return None
        case {"leaf": path}:
            return leaves[path]
        case {"State": state}:
            return _state_of(state, leaves, next(groups))
        case {"named": name, "fields": rows}:
            made = namedtuple(name, [field for field, _ in rows])
            return made(*[_filled(child, leaves, groups) for _, child in rows])
        case {"tuple": rows}:
            return tuple(_filled(child, leaves, groups) for child in rows)
        case {"list": rows}:
            return [_filled(child, leaves, groups) for child in rows]
        case {"dict": rows}:
            return {key: _filled(child, leaves, groups) for key, child in rows}
    raise CheckpointError(f"the record of the optimizer's structure has {bones!r}, which is unknown")


def _state(state: State, where: str) -> dict[str, Any]:
    below = f"{where}." if where else ""
    kept = {
        "algorithm": state.algorithm.name,
        "leaves": state.algorithm.leaves,
        "paths": state.paths,
        "step": f"{below}step",
        "buffers": [[name, _buffer(tree, f"{below}buffers.{name}")] for name, tree in state.buffers.items()],
    }
    return kept | ({"memory": _memory(state, below)} if isinstance(state, LBFGSState) else {})


def _buffer(tree: Any, where: str) -> list[str | None]:
    """Where each parameter's array is; None where its group keeps none."""
    leaves = flatten_buffer(tree)[0]
    places = iter(flat(tree))
    return [None if isinstance(leaf, Absent) else _joined(where, next(places)) for leaf in leaves]


def _joined(where: str, path: str) -> str:
    return f"{where}.{path}" if path else where


def _memory(state: LBFGSState, below: str) -> dict[str, Any]:
    names = [field.name for field in fields(Memory)]
    binding = state.flat.binding
    return {
        "arrays": {name: f"{below}memory.{name}{'.parts' * (name in _DOUBLES)}" for name in names},
        "shapes": state.flat.shapes,
        "names": state.flat.names,
        "binding": None if binding is None else binding.to_json(),
    }


def _state_of(value: Mapping[str, Any], leaves: Mapping[str, Any], groups: list[Any]) -> State:
    algorithm = replace(ALGORITHMS[value["algorithm"]], leaves=value["leaves"])
    buffers = {
        name: tuple(Absent() if path is None else leaves[path] for path in row)
        for name, row in value["buffers"]
    }
    made = tuple(_group(algorithm, group) for group in groups)
    state = State(leaves[value["step"]], buffers, made, algorithm, tuple(value["paths"]))
    return _with_memory(state, value["memory"], leaves) if "memory" in value else state


def _group(algorithm: Any, value: Mapping[str, Any]) -> ParamGroup:
    options = {key: option_from_json(option) for key, option in value["options"]}
    names = value["param_names"] and tuple(value["param_names"])
    return ParamGroup.of(algorithm, options, tuple(value["paths"]), None, names)


def _with_memory(state: State, value: Mapping[str, Any], leaves: Mapping[str, Any]) -> LBFGSState:
    arrays = {name: leaves[path] for name, path in value["arrays"].items()}
    memory = Memory(**arrays | {name: Double(arrays[name]) for name in _DOUBLES})
    binding = value["binding"] and Binding.from_json(value["binding"])
    shapes = tuple(map(tuple, value["shapes"]))
    vector = Flat(state.paths, shapes, binding, tuple(value["names"]))
    kept = {field.name: getattr(state, field.name) for field in fields(State)}
    return LBFGSState(**kept, memory=memory, flat=vector)
