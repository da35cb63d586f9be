"""Schedulers of schedulers: SequentialLR runs one after the other, ChainedScheduler all of them at once.

https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.SequentialLR.html
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Groups, with_values
from jaxstate.optim.schedulers._scheduler import Scheduler, State, Step, begun, check_scheduler, ordered


def SequentialLR(
    schedulers: Sequence[Scheduler], milestones: Sequence[int], last_epoch: int = -1
) -> Scheduler:
    """`torch.optim.lr_scheduler.SequentialLR`: the next scheduler from every milestone on.

    Raises:
        OptimizerError: what torch refuses, in its words; at a milestone, a scheduler of schedulers, which
            torch cannot enter there.

    >>> from jaxstate.optim.schedulers import ConstantLR, ExponentialLR
    >>> both = SequentialLR([ConstantLR(factor=0.5), ExponentialLR(gamma=0.5)], milestones=[2])
    >>> [both.step(*both.init([{"lr": 0.8}]), times=n)[1][0]["lr"] for n in range(4)]
    [0.4, 0.4, 0.8, 0.4]
    """
    parts, milestones = tuple(schedulers), list(milestones)
    _check("SequentialLR", "expects at least one scheduler, but got no scheduler", parts)
    if len(milestones) != len(parts) - 1:
        raise OptimizerError(
            "Sequential Schedulers expects number of schedulers provided to be one more than the number of "
            f"milestone points, but got number of schedulers {len(parts)} and the number of milestones to be "
            f"equal to {len(milestones)}"
        )

    def construct(groups: Groups) -> Step:
        states, groups = _constructed(parts, groups)
        # All of them have begun, and only one was to: the lr goes back, and the epochs too.
        groups = [with_values(group, {"lr": group["initial_lr"]}) for group in groups]
        states, i = [_undone(state) for state in states], bisect_right(milestones, 0)
        state, groups = begun(parts[i].advance, states[i], groups)
        states[i] = ordered(state)
        own = {"_milestones": milestones, "last_epoch": last_epoch + 1}
        return {**own, "_last_lr": states[i]["_last_lr"], "_schedulers": states}, groups

    def advance(state: State, groups: Groups, argument: Any = None) -> Step:
        t, points, states = state["last_epoch"] + 1, state["_milestones"], list(state["_schedulers"])
        i = bisect_right(points, t)
        if i > 0 and points[i - 1] == t:
            states[i], groups = parts[i].enter(states[i], groups)
        else:
            states[i], groups = parts[i].advance(states[i], groups, None)
        new = {"last_epoch": t, "_last_lr": states[i]["_last_lr"], "_schedulers": states}
        return {**state, **new}, groups

    return Scheduler("SequentialLR", construct, advance, _enter("SequentialLR"), schedulers=parts)


def ChainedScheduler(schedulers: Sequence[Scheduler]) -> Scheduler:
    """`torch.optim.lr_scheduler.ChainedScheduler`: every scheduler at every step, each on the others' lr.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> from jaxstate.optim.schedulers import ConstantLR, ExponentialLR
    >>> both = ChainedScheduler([ConstantLR(factor=0.5, total_iters=2), ExponentialLR(gamma=0.5)])
    >>> [both.step(*both.init([{"lr": 0.8}]), times=n)[1][0]["lr"] for n in range(4)]
    [0.4, 0.2, 0.2, 0.1]
    """
    parts = tuple(schedulers)
    _check("ChainedScheduler", "expects at least one scheduler to be chained, but got no scheduler", parts)

    def construct(groups: Groups) -> Step:
        states, groups = _constructed(parts, groups)
        return {"_last_lr": [group["lr"] for group in groups], "_schedulers": states}, groups

    def advance(state: State, groups: Groups, argument: Any = None) -> Step:
        states = []
        for part, each in zip(parts, state["_schedulers"], strict=True):
            new, groups = part.advance(each, groups, None)
            states.append(new)
        return {**state, "_last_lr": [group["lr"] for group in groups], "_schedulers": states}, groups

    return Scheduler("ChainedScheduler", construct, advance, _enter("ChainedScheduler"), schedulers=parts)


def _constructed(parts: Sequence[Scheduler], groups: Groups) -> tuple[list[State], Groups]:
    states = []
    for part in parts:
        state, groups = part.construct(groups)
        states.append(state)
    return states, groups


def _undone(state: State) -> State:
    """The state one epoch back; of a scheduler of schedulers torch takes back the parts' epochs only."""
    if "_schedulers" in state:
        return {**state, "_schedulers": [_undone(each) for each in state["_schedulers"]]}
    return {**state, "last_epoch": state["last_epoch"] - 1}


def _enter(name: str) -> Callable[[State, Groups], Step]:
    def enter(state: State, groups: Groups) -> Step:
        raise OptimizerError(f"torch cannot enter a {name} at a milestone: it has no get_lr; put it first")

    return enter


def _check(name: str, words: str, parts: Sequence[Scheduler]) -> None:
    if not parts:
        raise OptimizerError(f"{name} {words}.")
    for i, part in enumerate(parts):
        check_scheduler(part)
        if part.argument == "metrics":
            raise OptimizerError(
                f"{name} does not support `ReduceLROnPlateau` scheduler as it requires additional kwargs "
                f"to be specified when calling `step`, but got one at index {i} in the given schedulers "
                "sequence."
            )
