"""Schedulers of a function: LambdaLR and MultiplicativeLR.

A function is in no file, so it is asked for. Of a callable object torch keeps the attributes; they are put
into a copy of the one that is given.

https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html
"""

import copy
import types
from collections.abc import Callable, Sequence
from typing import Any

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Groups
from jaxstate.optim.schedulers._scheduler import (
    Scheduler,
    State,
    Step,
    advanced,
    constructed,
    entered,
    ordered,
)

Lambda = Callable[[int], float]


def LambdaLR(lr_lambda: Lambda | Sequence[Lambda], last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.LambdaLR`: eta_t = eta_0 f(t), with one f for all groups or one for each.

    >>> scheduler = LambdaLR(lambda t: 0.5**t)
    >>> scheduler.step(*scheduler.init([{"lr": 0.8}]), times=3)[1][0]["lr"] == 0.8 * 0.5**3
    True
    """

    def values(s: State, groups: Groups, functions: Sequence[Lambda]) -> list[dict[str, Any]]:
        rows = zip(s["base_lrs"], functions, strict=True)
        return [{"lr": base * f(s["last_epoch"])} for base, f in rows]

    return _of_functions("LambdaLR", lr_lambda, values, last_epoch)


def MultiplicativeLR(lr_lambda: Lambda | Sequence[Lambda], last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.MultiplicativeLR`: eta_t = eta_{t-1} f(t), one f for all or one for each.

    >>> scheduler = MultiplicativeLR(lambda t: 0.5)
    >>> scheduler.step(*scheduler.init([{"lr": 0.8}]), times=3)[1][0]["lr"] == 0.8 * 0.5**3
    True
    """

    def values(s: State, groups: Groups, functions: Sequence[Lambda]) -> list[dict[str, Any]]:
        if s["_is_initial"]:
            return [{"lr": group["lr"]} for group in groups]
        rows = zip(groups, functions, strict=True)
        return [{"lr": group["lr"] * f(s["last_epoch"])} for group, f in rows]

    return _of_functions("MultiplicativeLR", lr_lambda, values, last_epoch)


def _of_functions(name: str, given: Lambda | Sequence[Lambda], values: Any, last_epoch: int) -> Scheduler:
    given = list(given) if isinstance(given, list | tuple) else given
    _check_callable(name, given)

    def advance(state: State, groups: Groups, argument: Any = None) -> Step:
        functions = [restored(*pair) for pair in zip(_each(given, groups), state["lr_lambdas"], strict=True)]
        state, groups = advanced(lambda s, g: values(s, g, functions), state, groups)
        return ordered({**state, "lr_lambdas": [attributes(f) for f in functions]}), groups

    def construct(groups: Groups) -> Step:
        own = {"lr_lambdas": [attributes(f) for f in _each(given, groups)]}
        state, groups = constructed(own, advance, groups, last_epoch)
        return ordered(state), groups

    def enter(state: State, groups: Groups) -> Step:
        functions = [restored(*pair) for pair in zip(_each(given, groups), state["lr_lambdas"], strict=True)]
        return entered(lambda s, g: values(s, g, functions), None, state, groups)

    return Scheduler(name, construct, advance, enter)


def attributes(function: Any) -> dict[str, Any] | None:
    """What torch keeps of a callable: nothing of a function, the attributes of an object."""
    return None if isinstance(function, types.FunctionType) else dict(vars(function))


def restored(function: Any, kept: dict[str, Any] | None) -> Any:
    """A callable with the attributes that were kept; a copy, so that nothing is done to the one given."""
    if kept is None:
        return function
    again = copy.copy(function)
    vars(again).update(copy.deepcopy(kept))
    return again


def _each(given: Any, groups: Groups) -> list[Lambda]:
    if not isinstance(given, list):
        return [given] * len(groups)
    if len(given) != len(groups):
        raise OptimizerError(f"Expected {len(groups)} lr_lambdas, but got {len(given)}")
    return given


def _check_callable(name: str, given: Any) -> None:
    for function in given if isinstance(given, list) else [given]:
        if not callable(function):
            raise OptimizerError(
                f"lr_lambda should be a function, but got {type(function).__name__}; "
                f"no file holds one: {name}(lr_lambda=lambda epoch: ...)"
            )
