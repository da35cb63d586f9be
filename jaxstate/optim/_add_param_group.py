"""add_param_group: an optimizer's State with more parameters, as when frozen layers begin to train.

torch fills what a group leaves out from the constructor's defaults, which a state does not remember: they are
asked for, or the group says all.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._nest.nest import parts_of
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._select import selected
from jaxstate.optim._state import Absent, State, check_optimizer, find_state, is_state, replace_state
from jaxstate.optim._transform import transformation


def add_param_group(
    opt: Any, group: Mapping[str, Any], params: Any, binding: Binding | None = None, *, optimizer: Any = None
) -> Any:
    """`torch.optim.Optimizer.add_param_group` as a pure function: a state with one more group.

    Args:
        opt: a state of this package's, or a nest of optax states that holds one.
        group: torch's dict, with `"params"` a shell pattern, a list of them, or a predicate of names. With
            `"param_names"`, which must list torch's names, if the other groups have names.
        params: every parameter that the optimizer has from now on: those that it had, and the new ones.
        binding: if given, names are torch's keys; otherwise they are dotted paths.
        optimizer: the constructor call that fills what the group leaves out: `js.optim.adamw(lr=..., ...)`.

    Returns:
        A state for `params`; new parameters have taken no step.

    Raises:
        OptimizerError: what torch refuses, in its words; new parameters that the group does not choose.

    See also:
        https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.add_param_group.html

    >>> from jaxstate.optim import param_groups, sgd
    >>> tx, old, new = sgd(lr=0.5), {"w": jnp.ones(2)}, {"w": jnp.ones(2), "b": jnp.ones(3)}
    >>> opt = add_param_group(tx.init(old), {"params": "b", "lr": 0.25}, new, optimizer=tx)
    >>> [(group["lr"], group["params"]) for group in param_groups(opt)]
    [(0.5, ['w']), (0.25, ['b'])]
    """
    state = _one_state(opt)
    _check_form(group)
    leaves = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    chosen = _chosen(state, group, tuple(leaves), binding)
    options = _options(state, group, optimizer)
    names = _names(state, group, chosen, binding)
    tx = transformation(state.algorithm, options, None, None)
    added = find_state(tx.init({path: leaves[path] for path in chosen}))
    made = replace(added.param_groups[0], paths=chosen, param_names=names)
    return replace_state(opt, _grown(state, added, made, params))


def _one_state(opt: Any) -> State:
    if (count := len(parts_of(opt, is_state))) > 1:
        raise OptimizerError(
            f"a group belongs to one of these {count} states, and the masks around them say which parameters "
            "are whose; init a new transformation and load the old state into its part"
        )
    return find_state(opt)


def _check_form(group: Any) -> None:
    if not isinstance(group, Mapping):
        raise OptimizerError(f"param_group must be a dict, but got {type(group)}")


def _chosen(
    state: State, group: Mapping[str, Any], paths: tuple[str, ...], binding: Binding | None
) -> tuple[str, ...]:
    if "params" not in group:
        raise OptimizerError(
            f'a group says what its parameters are: {{"params": "*.bias", ...}}, not {group}'
        )
    if gone := [path for path in state.paths if path not in paths]:
        raise OptimizerError(f"params= is without {quoted(gone)}, which the optimizer has")
    chosen = selected(paths, group["params"], binding)
    if twice := [path for path in chosen if path in state.paths]:
        raise OptimizerError(f"some parameters appear in more than one parameter group: {quoted(twice)}")
    if rest := [path for path in paths if path not in {*state.paths, *chosen}]:
        raise OptimizerError(f"params= has {quoted(rest)}, which neither the optimizer nor the group has")
    return chosen


def _options(state: State, group: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    algorithm = state.algorithm
    given = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    asked = {*algorithm.hyperparameters, *algorithm.flags}
    lacking = [key for key, _ in algorithm.defaults if key in asked and key not in given]
    if optimizer is None and lacking:
        call = algorithm.call({**dict(algorithm.defaults), **given})
        raise OptimizerError(
            f"the group leaves out {quoted(lacking)}: say them, or the constructor's, optimizer={call}"
        )
    filling = dict(algorithm.defaults) if optimizer is None else _defaults(state, optimizer)
    return {**given, **{key: value for key, value in filling.items() if key not in given}}


def _defaults(state: State, optimizer: Any) -> dict[str, Any]:
    check_optimizer(optimizer)
    empty = find_state(optimizer.init({}))
    if empty.algorithm != state.algorithm or len(empty.param_groups) != 1:
        raise OptimizerError(
            f"optimizer= is a torch.optim.{state.algorithm.name} without groups of its own, whose options "
            "fill in what the group leaves out"
        )
    return empty.param_groups[0].to_torch()


def _names(
    state: State, group: Mapping[str, Any], chosen: tuple[str, ...], binding: Binding | None
) -> tuple[str, ...] | None:
    given = group.get("param_names")
    if any((given is None) != (other.param_names is None) for other in state.param_groups):
        with_or_without = "without names" if given is None else "with names"
        raise OptimizerError(
            "all optimizer param groups should be with/without names. cannot add param group "
            f"{with_or_without} to the optimizer"
        )
    if given is None:
        return None
    wanted = chosen if binding is None else _keys(chosen, binding)
    if len(given) != len(wanted):
        raise OptimizerError(
            "all optimizer params should be with/without names. Some param names are missing: "
            f"{quoted(wanted)} are to be named"
        )
    if sorted(given) != sorted(wanted):
        raise OptimizerError(f"param_names are {quoted(given)}, and the parameters are {quoted(wanted)}")
    return tuple(given)


def _keys(paths: tuple[str, ...], binding: Binding) -> tuple[str, ...]:
    return tuple(Parameters.of(binding, paths).names)


def _grown(state: State, added: State, group: ParamGroup, params: Any) -> State:
    paths, treedef = leaf_paths(params), jax.tree.structure(params)
    steps = {path: state.step[i] for i, path in enumerate(state.paths)}
    rows = {
        name: {**_buffer(state, name), **_buffer(added, name)}
        for name in dict.fromkeys([*state.buffers, *added.buffers])
    }
    return replace(
        state,
        step=jnp.stack([steps.get(path, jnp.int32(0)) for path in paths]),
        buffers={
            name: treedef.unflatten([row.get(path, Absent()) for path in paths]) for name, row in rows.items()
        },
        param_groups=(*state.param_groups, group),
        paths=paths,
    )


def _buffer(state: State, name: str) -> dict[str, Any]:
    return state.buffer(name) if name in state.buffers else {}
