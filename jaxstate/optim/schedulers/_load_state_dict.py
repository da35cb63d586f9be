"""load_state_dict and state_dict: between torch's dict of a scheduler and the state that it is here.

They are the same dict. What torch does not look at is looked at once: keys of another scheduler, a number
that is none, lists that are not of one length.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim.schedulers._groups import plain
from jaxstate.optim.schedulers._scheduler import Scheduler, State, check_scheduler, check_state, ordered

# Older versions of torch wrote the first and did not write the others.
_BEFORE = ("verbose",)
_SINCE = ("_is_initial", "_get_lr_called_within_step")
# A key that tells a scheduler apart.
_MARKS = {
    "lr_lambdas": "LambdaLR or MultiplicativeLR",
    "step_size": "StepLR",
    "milestones": "MultiStepLR",
    "start_factor": "LinearLR",
    "power": "PolynomialLR",
    "T_max": "CosineAnnealingLR",
    "T_0": "CosineAnnealingWarmRestarts",
    "_milestones": "SequentialLR",
    "_schedulers": "ChainedScheduler",
    "total_steps": "OneCycleLR",
    "max_lrs": "CyclicLR",
    "patience": "ReduceLROnPlateau",
    "anneal_epochs": "SWALR",
    "total_iters": "ConstantLR",
    "gamma": "ExponentialLR",
}
# Lists whose length is the number of groups.
_EACH = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "base_momentums", "max_momentums", "lr_lambdas")


def load_state_dict(scheduler: Scheduler, state_dict: Mapping[str, Any]) -> State:
    """`torch.optim.lr_scheduler.LRScheduler.load_state_dict`: the state from which `scheduler.step` goes on.

    As in torch, the file's numbers win over the constructor's, and the optimizer's groups belong to it: most
    recursions start from the lr that the groups have, so load the optimizer's state_dict as well.

    Args:
        scheduler: which of torch's it is, with the functions that no file holds.
        state_dict: torch's; numbers may be tensors.

    Raises:
        OptimizerError: all that does not fit, at once.

    See also:
        state_dict, the inverse. torch's documentation:
        https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate

    >>> from jaxstate.optim.schedulers import ExponentialLR
    >>> state, groups = ExponentialLR(gamma=0.5).init([{"lr": 0.8}])
    >>> load_state_dict(ExponentialLR(gamma=0.9), state) == state
    True
    """
    check_scheduler(scheduler)
    problems = [*_problems(scheduler, state_dict, scheduler.name)]
    if problems:
        raise OptimizerError(
            f"Error(s) in loading state_dict for {scheduler.name}:\n\t" + "\n\t".join(problems)
        )
    return _loaded(scheduler, state_dict)


def state_dict(state: State) -> dict[str, Any]:
    """`torch.optim.lr_scheduler.LRScheduler.state_dict`: torch's keys, order and types, in memory of its own.

    An lr is a 0-d array where the optimizer has it in a tensor, and a Python number everywhere else.

    Raises:
        OptimizerError: what is no state of a scheduler.

    >>> from jaxstate.optim.schedulers import ExponentialLR
    >>> list(state_dict(ExponentialLR(gamma=0.5).init([{"lr": 0.8}])[0]))[:3]
    ['gamma', 'base_lrs', 'last_epoch']
    """
    check_state(state)
    return copy.deepcopy(state)


def _template(scheduler: Scheduler, count: int) -> State:
    """The state of an optimizer with so many groups: its keys, and a value of each one's type."""
    numbers = {"lr": 1.0, "initial_lr": 1.0, "momentum": 0.9, "betas": (0.9, 0.999)}
    options = {"max_lr": 1.0, "min_lr": 0.1, "max_momentum": 0.9, "base_momentum": 0.8}
    return scheduler.construct([{**numbers, **options} for _ in range(count)])[0]


def _loaded(scheduler: Scheduler, found: Mapping[str, Any]) -> State:
    template = _template(scheduler, len(found["_last_lr"]))
    state = {key: _plain(template[key], found[key]) if key in found else template[key] for key in template}
    if scheduler.schedulers:
        pairs = zip(scheduler.schedulers, found["_schedulers"], strict=True)
        state["_schedulers"] = [_loaded(*pair) for pair in pairs]
    return ordered({**state, **{key: copy.deepcopy(found[key]) for key in found if key not in template}})


def _plain(template: Any, value: Any) -> Any:
    if isinstance(template, Counter):
        return Counter(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else plain(value)


def _problems(scheduler: Scheduler, found: Any, where: str) -> Iterator[str]:
    if not isinstance(found, Mapping) or not isinstance(found.get("_last_lr"), list | tuple):
        yield f'the state_dict of a scheduler has a list "_last_lr", and that of {where} has none'
        return
    count = len(found["_last_lr"])
    try:
        template = _template(scheduler, count)
    except OptimizerError as error:
        yield f"the file's {where} is of {count} param_groups: {error}"
        return
    yield from _problems_of_keys(scheduler, template, found, where)
    for key in template:
        if key in found and (problem := _unfit(key, template[key], found[key], count)):
            yield f'"{key}" of {where} {problem}'
    if scheduler.schedulers and "_schedulers" in found:
        yield from _problems_of_parts(scheduler, found["_schedulers"], where)


def _problems_of_keys(scheduler: Scheduler, template: State, found: Any, where: str) -> Iterator[str]:
    # A scheduler of schedulers that is first in a SequentialLR has begun once more, and counts since.
    again = ("_step_count", "_is_initial") if scheduler.schedulers else ()
    strange = [key for key in found if key not in (*template, *_BEFORE, *again)]
    missing = [key for key in template if key not in found and key not in _SINCE]
    if "use_beta1" in (*strange, *missing):
        cycles = "use_beta1" in strange
        yield f"the file's {where} has cycle_momentum={cycles}; so give it to {scheduler.name} as well"
    elif strange or missing:
        names = [name for key, name in _MARKS.items() if key in strange]
        yield (
            f"{where} has other keys than the file: the file lacks {quoted(missing) or 'none'}, and has "
            f"{quoted(strange) or 'none'} besides{f', as {names[0]} does' if names else ''}"
        )


def _problems_of_parts(scheduler: Scheduler, found: Any, where: str) -> Iterator[str]:
    parts = scheduler.schedulers
    if not isinstance(found, list | tuple) or len(found) != len(parts):
        yield f"{where} is made of {len(parts)} schedulers, and the file's is not"
        return
    for i, (part, each) in enumerate(zip(parts, found, strict=True)):
        yield from _problems(part, each, f"{where}[{i}] ({part.name})")


def _unfit(key: str, template: Any, value: Any, count: int) -> str | None:
    if key in _EACH:
        if not isinstance(value, list | tuple) or len(value) != count:
            return f"is to be a list with one entry for each of {count} groups, not {value!r}"
        wrong = key != "lr_lambdas" and not all(map(_is_number, value))
        return f"holds {value!r}, and not numbers alone" if wrong else None
    if isinstance(template, Counter):
        whole = isinstance(value, Mapping) and all(type(t) is int for pair in value.items() for t in pair)
        return None if whole else f"is to count epochs, {{30: 1, 80: 1}}, not {value!r}"
    if key == "default_min_lr" and value is None:
        return None
    wrong = _is_number(template) and not _is_number(value)
    return f"is {value!r}, which is no number" if wrong else None


def _is_number(value: Any) -> bool:
    number = plain(value)
    return isinstance(number, int | float) or (isinstance(number, np.ndarray) and number.ndim == 0)
