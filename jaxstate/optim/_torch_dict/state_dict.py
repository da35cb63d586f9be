"""state_dict: a State as torch writes it, `{"state": {id: {...}}, "param_groups": [{...}]}`.

Ids count the parameters group by group; within a group they follow the names of the file that was loaded,
or else the Binding. A parameter that was never updated has no entry.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxstate.arrays.hosted import readable
from jaxstate.arrays.lazy import LazyArray, from_parts
from jaxstate.arrays.placement import fresh
from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._lbfgs.entry import lbfgs_entries
from jaxstate.optim._lbfgs.state import LBFGSState
from jaxstate.optim._nest.site import site_of
from jaxstate.optim._padding import refused_here, starts
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._state import State
from jaxstate.optim._torch_dict.fqn import Keys, keyed
from jaxstate.rules.declared import JaxOnly


def state_dict(
    opt: Any,
    binding: Binding,
    *,
    optimizer: Any = None,
    param_names: bool | None = None,
    label: Any = None,
    keys: Keys = "id",
    step: int | None = None,
    params: Any = None,
    lazy: bool = False,
) -> dict[str, Any]:
    """`torch.optim.Optimizer.state_dict`: what torch's `load_state_dict` takes, once arrays are tensors.

    Args:
        opt: a state of this package's, a nest of optax states that holds one, a plain optax state, an
            `nnx.Optimizer` or a `TrainState`. The States of a partition are one optimizer's groups, in order.
        binding: pairs the optimizer's leaves with torch's keys; its order is that of the ids.
        optimizer: for a plain optax state, the torch optimizer that it is: `js.optim.adamw(lr=..., ...)`.
        param_names: whether groups name their parameters; by default as the file did that was loaded.
        label: where the states are several optimizers, a key or an index that leads to the one to write.
        keys: "id" for torch.optim; "fqn" for `torch.distributed.checkpoint.state_dict`, which goes by names,
            and "flat" for it with `flatten_optimizer_state_dict`.
        step: how many steps were taken, where torch writes it and the state does not count.
        params: the parameters, where `optax.flatten` makes one vector of them; they may be abstract.
        lazy: True for LazyArrays over the state's leaves, to be saved: `js.save` makes one after the other.
            They hold the state's arrays, and so the values that these have when they are written.

    Returns:
        torch's keys in torch's order; arrays are numpy's and own their memory, each its own.

    Raises:
        OptimizerError: a state that torch has no form for, or that holds no values.

    See also:
        load_state_dict, the inverse. torch's documentation of both:
        https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.state_dict.html

    >>> import jaxstate.optim, jax.numpy as jnp
    >>> from jaxstate.binding import Binding, Rule
    >>> binding = Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> tx, params = jaxstate.optim.adam(), {"w": jnp.ones((2, 3))}
    >>> _, opt = tx.update(params, tx.init(params), params)
    >>> {key: array.shape for key, array in state_dict(opt, binding)["state"][0].items()}
    {'step': (), 'exp_avg': (3, 2), 'exp_avg_sq': (3, 2)}
    """
    if param_names not in (None, True, False):
        raise OptimizerError("param_names= is True or False; the names are those that the Binding has")
    site = site_of(opt, optimizer, label, params, step)
    state = site.state()
    _check_concrete(state)
    site.check_written(state)
    return dict_of(state, binding, param_names, keys, lazy)


def _check_concrete(state: State) -> None:
    if isinstance(state.step, jax.ShapeDtypeStruct | Tracer):
        raise OptimizerError(
            "the optimizer's state is abstract or traced and holds no values: call state_dict outside of jit "
            "with the state that init or update has made"
        )


def dict_of(
    state: State, binding: Binding, param_names: bool | None = None, keys: Keys = "id", lazy: bool = False
) -> dict[str, Any]:
    """The dict of a State; see `state_dict`. The leaves of its buffers may be lazy arrays."""
    parameters = Parameters.of_state(binding, state)
    steps = dict(zip(state.paths, np.asarray(state.step).tolist(), strict=True))
    _check(state, parameters, steps)
    named = any(g.param_names is not None for g in state.param_groups) if param_names is None else param_names
    rows = [group_names(group, parameters) for group in state.param_groups]
    ids = {name: i for i, name in enumerate(name for row in rows for name in row)}
    if isinstance(state, LBFGSState):
        entries = lbfgs_entries(state, binding, tuple(ids))
    else:
        taken = {name: steps[parameters.paths_of[name][0]] for name in ids}
        entries = _entries(state, parameters, taken, _as_it_is if lazy else _owned)
    osd = {
        "state": {ids[name]: entries[name] for name in ids if entries[name]},
        "param_groups": [
            {
                **({"param_names": list(row)} if named else {}),
                **group.to_torch(),
                "params": [ids[name] for name in row],
            }
            for group, row in zip(state.param_groups, rows, strict=True)
        ],
    }
    return keyed(osd, list(ids), keys)


def group_names(group: ParamGroup, parameters: Parameters) -> tuple[str, ...]:
    """torch's names of a group's parameters, in the order of their ids.

    Raises:
        OptimizerError: a parameter of which only a part is in the group.
    """
    paths, paths_of = set(group.paths), parameters.paths_of
    names = tuple(name for name in parameters.names if paths & set(paths_of[name]))
    if torn := [name for name in names if not paths.issuperset(paths_of[name])]:
        raise OptimizerError(f"{quoted(torn)} are one parameter in torch and lie in several groups here")
    kept = group.param_names
    return kept if kept is not None and sorted(kept) == sorted(names) else names


def _entries(
    state: State, parameters: Parameters, steps: Mapping[str, int], kept: Callable[[LazyArray], Any]
) -> dict[str, dict[str, Any]]:
    """torch's `state[p]` by name, as `kept` makes its arrays; empty where there is none."""
    algorithm = state.algorithm
    arrays = {buffer: _arrays(state, parameters, buffer) for buffer in state.buffers}
    orders = {path: _order(state, group) for group in state.param_groups for path in group.paths}
    entries: dict[str, dict[str, Any]] = {name: {} for name in steps}
    for name in [name for name, step in steps.items() if step > 0 or algorithm.eager]:
        counted = {"step": algorithm.step(steps[name])} if algorithm.counts else {}
        buffers = [b for b in orders[parameters.paths_of[name][0]] if name in arrays[b]]
        entries[name] = counted | {b: kept(arrays[b][name]) for b in buffers}
    return entries


def _order(state: State, group: ParamGroup) -> list[str]:
    """The buffers in torch's order, which a tree of dicts does not keep."""
    ordered = [name for name in state.algorithm.buffers(group.to_torch()) if name in state.buffers]
    return [*ordered, *(name for name in state.buffers if name not in ordered)]


def _owned(array: LazyArray) -> np.ndarray:
    return fresh(array)


def _as_it_is(array: LazyArray) -> LazyArray:
    return array


def _arrays(state: State, parameters: Parameters, buffer: str) -> dict[str, LazyArray]:
    """torch's arrays of a buffer by name; all keys of a leaf have one where it has a shape of its own."""
    leaves = state.buffer(buffer)
    if buffer not in state.algorithm.own:
        return parameters.lazily_to_torch(leaves, starts(state, buffer))
    return {name: _lazy(leaves[row[0]]) for name, row in parameters.paths_of.items() if row[0] in leaves}


def _lazy(leaf: Any) -> LazyArray:
    return from_parts(leaf.shape, leaf.dtype, lambda box: readable(leaf)[box])


def _check(state: State, parameters: Parameters, steps: Mapping[str, int]) -> None:
    problems = [
        *refused_sums(parameters),
        *_untold(parameters, steps),
        *_uneven(parameters, steps),
        *_torn(state, parameters),
        *refused_here(state, parameters),
    ]
    if problems:
        raise OptimizerError("torch has no form for this state:\n\t" + "\n\t".join(problems))


def refused_sums(parameters: Parameters) -> Iterator[str]:
    """A sentence for each Sum among the parameters."""
    for family in dict.fromkeys(map(id, parameters.sums.values())):
        names = [name for name, rule in parameters.sums.items() if id(rule) == family]
        yield (
            f"{quoted(names)} are held as their sum, {quoted(parameters.paths_of[names[0]])}: each receives "
            "the whole gradient in torch, so that their sum moves twice as far in a step, and no state of "
            "one is a state of the other"
        )


def _untold(parameters: Parameters, steps: Mapping[str, int]) -> Iterator[str]:
    for family in parameters.families:
        for path in parameters.own_paths(family) if isinstance(family, JaxOnly) else ():
            if steps[path]:
                yield f"leaf {path} was trained, and torch's module has no parameter for it; freeze it"


def _uneven(parameters: Parameters, steps: Mapping[str, int]) -> Iterator[str]:
    for name, paths in parameters.paths_of.items():
        if len(found := sorted({steps[path] for path in paths})) > 1:
            yield f'"{name}" has one step in torch and {found} here, for {quoted(paths)}'


def _torn(state: State, parameters: Parameters) -> Iterator[str]:
    for buffer in state.algorithm.own:
        leaves = state.buffer(buffer)
        for name, paths in parameters.paths_of.items():
            several = paths if len(paths) > 1 else ()
            found = [np.asarray(leaves[path]).tobytes() for path in several if path in leaves]
            if len(set(found)) > 1:
                yield f'"{name}" has one {buffer} in torch, and here {quoted(paths)} have different ones'
