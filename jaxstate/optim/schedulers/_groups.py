"""Groups: torch's param_groups, as a scheduler reads them and sets numbers in them.

They are those of an optimizer state, or stand by themselves: a list of dicts, as in a checkpoint or for an
optimizer of optax. A scheduler needs no more of an optimizer than that.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxstate.arrays.foreign import as_array
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._param_groups import ParamGroup, Verbatim
from jaxstate.optim._state import find_state, replace_state, set_hyperparameters

# The numbers that schedulers set.
SET = ("lr", "momentum", "betas")

Group = dict[str, Any]
Groups = list[Group]


def read_groups(opt: Any) -> Groups:
    """The options of every group that a scheduler may look at; without its parameters.

    >>> read_groups([{"lr": 0.1, "params": [0, 1]}])
    [{'lr': 0.1}]
    """
    if _is_plain(opt):
        return [{k: plain(v) for k, v in group.items() if k != "params"} for group in opt]
    return [_read(group) for group in find_state(opt).param_groups]


def write_groups(opt: Any, groups: Groups, before: Groups) -> Any:
    """The same optimizer state, or list of groups, with what a scheduler has set since `before` was read.

    Raises:
        OptimizerError: a number that this optimizer has no buffer for, as momentum in an SGD without.
    """
    if _is_plain(opt):
        pairs = zip(opt, groups, strict=True)
        return [{**g, **({"params": old["params"]} if "params" in old else {})} for old, g in pairs]
    for i, (new, old) in enumerate(zip(groups, before, strict=True)):
        numbers = {key: new[key] for key in SET if key in new and not np.array_equal(new[key], old[key])}
        opt = set_hyperparameters(opt, group=i, **numbers) if numbers else opt
    state = find_state(opt)
    made = [_with_options(*pair) for pair in zip(state.param_groups, groups, strict=True)]
    return replace_state(opt, replace(state, param_groups=tuple(made)))


def _read(group: ParamGroup) -> Group:
    """A group without the numbers that no scheduler asks for: each has to be fetched from a device."""
    numbers = {key: group.numbers[key] for key in SET if key in group.numbers}
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(numbers)):
        raise OptimizerError(
            "a scheduler steps on the host, between compiled steps; inside of them plan.apply(opt, i) sets "
            "what it would set, with plan = js.optim.schedulers.plan(scheduler, state, opt, steps)"
        )
    asked = [(k, kind) for k, kind in group.options.items() if k in numbers or k not in group.numbers]
    return replace(group, numbers=numbers, options=Verbatim(dict(asked))).to_torch()


def _with_options(group: ParamGroup, new: Group) -> ParamGroup:
    """torch notes `initial_lr`, `max_lr` and the like in the group, behind its own keys."""
    extra = {key: value for key, value in new.items() if key not in group.numbers}
    options = Verbatim({**group.options, **extra})
    return group if options == group.options else replace(group, options=options)


def with_values(group: Group, values: Mapping[str, Any]) -> Group:
    """A group with other values; where torch has an lr in a tensor, its dtype rounds the new one."""
    lr, new = group["lr"], dict(values)
    if isinstance(lr, np.ndarray) and "lr" in new:
        new["lr"] = np.array(new["lr"], lr.dtype)
    return {**group, **new}


def with_each(groups: Groups, key: str, values: Sequence[Any]) -> Groups:
    """The groups with one option each."""
    return [{**group, key: value} for group, value in zip(groups, values, strict=True)]


def per_group(name: str, value: Any, groups: Groups) -> list[Any]:
    """One value for each group, of a list of them or of one for all; torch's check and words."""
    if not isinstance(value, list | tuple):
        return [value] * len(groups)
    if len(value) != len(groups):
        raise OptimizerError(
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {len(value)} values, param_groups has {len(groups)}."
        )
    return list(value)


def with_initial_lr(groups: Groups, last_epoch: int) -> Groups:
    """The groups with `initial_lr` noted in them: the lr that they have, unless they have one noted already.

    Raises:
        OptimizerError: a schedule that has begun, and groups that do not know where.
    """
    lacking = [i for i, group in enumerate(groups) if "initial_lr" not in group]
    if lacking and last_epoch >= 0:
        raise OptimizerError(
            f"param 'initial_lr' is not specified in param_groups[{lacking[0]}] when resuming scheduler with "
            "last_epoch >= 0; load the optimizer's state_dict too, its groups hold what schedulers noted"
        )
    return [{**group, "initial_lr": group.get("initial_lr", group["lr"])} for group in groups]


def cycled(group: Group, momentum: Any) -> dict[str, Any]:
    """The value that a scheduler cycles as momentum: beta1 where the optimizer has betas."""
    return {"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum}


def check_cycled(groups: Groups) -> None:
    """Raises OptimizerError, in torch's words, for an optimizer with nothing to cycle."""
    if "momentum" not in groups[0] and "betas" not in groups[0]:
        raise OptimizerError("optimizer must support momentum or beta1 with `cycle_momentum` option enabled")


def plain(value: Any) -> Any:
    """A value of a file without tensors: those of one element become 0-d arrays, of their own memory."""
    array = as_array(value)
    if isinstance(value, np.generic):
        return value.item()
    if array is None:
        return copy.deepcopy(value)
    return np.array(array.reshape(()) if array.size == 1 else array)


def _is_plain(opt: Any) -> bool:
    if not isinstance(opt, list) or not opt or not all(isinstance(group, Mapping) for group in opt):
        return False
    if lacking := [i for i, group in enumerate(opt) if "lr" not in group]:
        raise OptimizerError(f"param_groups {lacking} have no {quoted(['lr'])}")
    return True
