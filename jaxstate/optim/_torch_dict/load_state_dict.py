"""load_state_dict: torch's dict as a State, into the structure of one that exists.

All that does not fit is collected and raised once. torch itself checks only how many parameters each group
has: a moment of another shape, a group's missing `lr`, ids that JSON made strings would surface later, or
never.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxstate.arrays.placement import is_parted, sharding_of
from jaxstate.arrays.placement import place as put
from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm
from jaxstate.optim._arrays import full
from jaxstate.optim._lbfgs.file import MemoryEntry
from jaxstate.optim._lbfgs.state import LBFGSState
from jaxstate.optim._nest.site import site_of
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._state import State
from jaxstate.optim._torch_dict.entries import Entries
from jaxstate.optim._torch_dict.file_groups import FileGroup, file_groups
from jaxstate.optim._torch_dict.fqn import with_ids
from jaxstate.optim._torch_dict.state_dict import group_names, refused_sums

Place = Callable[[Any, Any], Any]


def load_state_dict(
    opt: Any,
    osd: Mapping[str, Any],
    binding: Binding,
    *,
    optimizer: Any = None,
    cast: bool = False,
    label: Any = None,
    step: int | None = None,
    params: Any = None,
) -> Any:
    """`torch.optim.Optimizer.load_state_dict` as a pure function: a new state, structured like `opt`.

    Args:
        opt: the template: a state of this package's, a nest of optax states that holds one, a plain optax
            state, an `nnx.Optimizer` or a `TrainState`. Its leaves may be abstract; their dtypes and
            shardings are kept. Counts beside it (of schedules, of MultiSteps, Flax's step) are set with it.
        osd: torch's dict; arrays may be numpy's, jax's or tensors. It may go by names instead of ids, nested
            or flat, as `torch.distributed.checkpoint.state_dict` writes it.
        binding: pairs the optimizer's leaves with torch's keys. Ids are matched by the file's `param_names`,
            or else by the Binding's order, group by group.
        optimizer: for a plain optax state, the torch optimizer that it is: `js.optim.adamw(lr=..., ...)`.
        cast: True lets moments lose precision.
        label: where the states are several optimizers, a key or an index that leads to the one to load.
        step: how many steps were taken, for counts that the file does not tell: SGD writes no step, and what
            stands around MultiSteps counts calls.
        params: the parameters, where `optax.flatten` makes one vector of them; they may be abstract.

    Raises:
        OptimizerError: everything in the file that does not fit the template, at once.

    See also:
        state_dict, the inverse. torch's documentation of both:
        https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.load_state_dict.html

    >>> import jaxstate.optim, jax, jax.numpy as jnp
    >>> from jaxstate.binding import Binding, Rule
    >>> binding = Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> tx, params = jaxstate.optim.adam(), {"w": jnp.ones((2, 3))}
    >>> _, opt = tx.update(params, tx.init(params), params)
    >>> again = load_state_dict(tx.init(params), jaxstate.optim.state_dict(opt, binding), binding)
    >>> jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), again, opt))
    True
    """
    rest = {"optimizer": optimizer, "cast": cast, "label": label, "step": step, "params": params}
    return moved_in(opt, osd, binding, put, is_parted, **rest)


def moved_in(
    opt: Any,
    osd: Mapping[str, Any],
    binding: Binding,
    place: Place,
    is_parted: Callable[[Any], bool],
    *,
    optimizer: Any = None,
    cast: bool = False,
    label: Any = None,
    step: int | None = None,
    params: Any = None,
) -> Any:
    """`load_state_dict` with the leaves of buffers made by another function.

    Args:
        place: `(leaf, template) -> leaf`, of the template's shape and dtype.
        is_parted: whether `place` asks for this template's leaf in parts; it is given a `LazyArray` then.
    """
    site = site_of(opt, optimizer, label, params, step or 0)
    site = replace(site, step=step)
    return site.with_state(_loaded(site.state(), osd, binding, cast, place, is_parted))


def _loaded(
    state: State,
    osd: Mapping[str, Any],
    binding: Binding,
    cast: bool,
    place: Place,
    is_parted: Callable[[Any], bool],
) -> State:
    _check_counts(state)
    parameters = Parameters.of_state(binding, state)
    osd = with_ids(osd, [group_names(group, parameters) for group in state.param_groups])
    groups = file_groups(state, osd, parameters)
    ids = {name: i for group in groups for i, name in group.names.items()}
    if isinstance(state, LBFGSState):
        entries = MemoryEntry.of(state, binding, osd["state"], ids)
    else:
        entries = Entries.of(state, parameters, osd["state"], ids)
    problems = [
        *(problem for group in groups for problem in group.problems(state.algorithm)),
        *refused_sums(parameters),
        *entries.problems(cast),
    ]
    if problems:
        raise OptimizerError(
            f"Error(s) in loading state_dict for {state.algorithm.name}:\n\t" + "\n\t".join(problems)
        )
    pairs = zip(state.param_groups, groups, strict=True)
    made = tuple(_group(like, group, state.algorithm) for like, group in pairs)
    if isinstance(entries, MemoryEntry):
        return entries.loaded(made)
    return _filled(replace(state, param_groups=made), entries, place, is_parted)


def _check_counts(state: State) -> None:
    there = sharding_of(state.step)
    if there is not None and not (there.is_fully_addressable or there.is_fully_replicated):
        raise OptimizerError(
            "have the step counts whole on every process: NamedSharding(mesh, PartitionSpec()) for the "
            f"template's step, in place of {there}"
        )


def _group(like: ParamGroup, group: FileGroup, algorithm: Algorithm) -> ParamGroup:
    """The template's group with a file's options; its numbers lie where the template's lie."""
    made, there = group.loaded(algorithm), sharding_of(jax.tree.leaves(like.numbers)[0])
    if there is not None:
        places = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), made.numbers)
        made = replace(made, numbers=jax.tree.map(lambda x, to: put(np.asarray(x), to), made.numbers, places))
    return replace(made, injected=like.injected)


def _filled(state: State, entries: Entries, place: Place, is_parted: Callable[[Any], bool]) -> State:
    """The state with a file's steps and buffers, each leaf placed as the template's."""
    groups = {path: group.to_torch() for path, group in state.groups.items()}
    for buffer in state.buffers:
        likes = state.buffer(buffer)
        moved = {path: place(leaf, likes[path]) for path, leaf in entries.each_leaf(buffer, likes, is_parted)}
        begun = {
            path: place(full(like, state.algorithm.start(buffer, groups[path])), like)
            for path, like in likes.items()
            if path not in moved
        }
        state = state.with_buffer(buffer, {**moved, **begun})
    return replace(state, step=put(np.array(list(entries.steps().values()), np.int32), state.step))
