"""load_state_dict: torch's dict as a State, into the structure of one that exists.

All that does not fit is collected and raised once. torch itself checks only how many parameters each group
has: a moment of another shape, a group's missing `lr`, ids that JSON made strings would surface later, or
never.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._arrays import full, place
from jaxstate.optim._entries import Entries
from jaxstate.optim._file_groups import file_groups
from jaxstate.optim._lbfgs_file import MemoryEntry
from jaxstate.optim._lbfgs_state import LBFGSState
from jaxstate.optim._optax import read_optax, write_optax
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._state import State, find_state, replace_state
from jaxstate.optim._state_dict import refused_sums


def load_state_dict(
    opt: Any, osd: Mapping[str, Any], binding: Binding, *, optimizer: Any = None, cast: bool = False
) -> Any:
    """`torch.optim.Optimizer.load_state_dict` as a pure function: a new state, structured like `opt`.

    Args:
        opt: the template: a state of this package's, a nest of optax states that holds one, or a plain optax
            state. Its leaves may be abstract; their dtypes and shardings are kept.
        osd: torch's dict; arrays may be numpy's, jax's or tensors.
        binding: pairs the optimizer's leaves with torch's keys. Ids are matched by the file's `param_names`,
            or else by the Binding's order, group by group.
        optimizer: for a plain optax state, the torch optimizer that it is: `js.optim.adamw(lr=..., ...)`.
        cast: True lets moments lose precision.

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
    if optimizer is None:
        return replace_state(opt, _loaded(find_state(opt), osd, binding, cast))
    template = read_optax(opt, optimizer)
    return write_optax(opt, optimizer, template, _loaded(template, osd, binding, cast))


def _loaded(state: State, osd: Mapping[str, Any], binding: Binding, cast: bool) -> State:
    parameters = Parameters.of_state(binding, state)
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
    made = tuple(group.loaded(state.algorithm) for group in groups)
    if isinstance(entries, MemoryEntry):
        return entries.loaded(made)
    return _filled(replace(state, param_groups=made), entries)


def _filled(state: State, entries: Entries) -> State:
    """The state with a file's steps and buffers, each leaf placed as the template's."""
    groups = {path: group.to_torch() for path, group in state.groups.items()}
    for buffer in state.buffers:
        likes = state.buffer(buffer)
        moved = entries.leaves(buffer, likes)
        leaves = {
            path: place(moved[path], like)
            if path in moved
            else full(like, state.algorithm.start(buffer, groups[path]))
            for path, like in likes.items()
        }
        state = state.with_buffer(buffer, leaves)
    return replace(state, step=place(np.array(list(entries.steps().values()), np.int32), state.step))
