"""A training loop's own dict: parts under the names that people give them, checked by what stands there.

Optimizers, schedulers, scalers and averaged models tell by their own structure. A model does not: many things
are dicts of arrays. So it is taken only from under a usual name; any other is listed in an error that asks.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxstate.containers._kinds import (
    is_averaged,
    is_number,
    is_optimizer,
    is_scaler,
    is_scheduler,
    is_state_dict,
)
from jaxstate.containers._roles import PERHAPS, Contents, Roles, Tool

MODELS = (
    "model state_dict model_state_dict model_state model_dict net net_state_dict network network_state_dict "
    "weights model_weights params module"
).split()
EPOCHS = ("epoch", "current_epoch")
STEPS = "step global_step global_steps current_step iteration iter iter_num num_updates n_iter".split()

_AVERAGE = re.compile(r"(.*_)?(ema|swa|avg|averaged?)(_.*)?")
_SCHEDULER = re.compile(r"(.*_)?(lr_?)?sched(uler)?s?(_.*)?")
_SCALER = re.compile(r"(.*_)?(scaler|amp)(_state)?(_dict)?")


def roles_of(contents: Contents) -> Roles:
    """The role of each place that has one."""
    found = {place: role_of(place, value) for place, value in contents.items() if isinstance(place, str)}
    return {place: role for place, role in found.items() if role}


def role_of(place: str, value: Any) -> str:
    """What stands at a place, by its structure first, and by its name where that does not tell.

    >>> role_of("opt", {"state": {}, "param_groups": []}), role_of("epoch", 3), role_of("lr", 0.1)
    ('optimizer', 'epoch', '')
    """
    if is_number(value):
        return "epoch" if place in EPOCHS else "step" if place in STEPS else ""
    return _role_of_one(place, value) if isinstance(value, Mapping) else _role_of_list(place, value)


def _role_of_one(place: str, value: Mapping[Any, Any]) -> str:
    if is_optimizer(value) or (value and all(map(is_optimizer, value.values()))):
        return "optimizer"
    if is_scaler(value) or (_SCALER.fullmatch(place) and (not value or "loss_scaler0" in value)):
        return "scaler"  # a disabled one is empty, apex's is called so; others may scale the data
    if is_scheduler(value) or (_SCHEDULER.fullmatch(place) and not is_state_dict(value)):
        return "scheduler"
    if is_averaged(value) or (_AVERAGE.fullmatch(place) and is_state_dict(value)):
        return "ema"
    if not is_state_dict(value):
        return ""
    return "model" if place in MODELS else PERHAPS


def _role_of_list(place: str, value: Any) -> str:
    if not isinstance(value, list | tuple) or not value:
        return ""
    if all(map(is_optimizer, value)):
        return "optimizer"
    return "scheduler" if all(map(is_scheduler, value)) else ""


def _evidence(contents: Contents) -> str:
    known = [place for place, role in roles_of(contents).items() if role != PERHAPS]
    return f"a dict with {', '.join(known)}" if known else ""


TOOL = Tool("a training loop", _evidence, roles_of)
