"""Scheduler: one of torch's learning rate schedulers, as a value that remembers nothing.

What it remembers is torch's state_dict, a dict that goes in and comes out. Both are of the host: torch's
schedulers compute in Python floats, step by step, and so do these, with the same bits. A compiled program
takes the numbers from a Plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import (
    Groups,
    plain,
    read_groups,
    with_initial_lr,
    with_values,
    write_groups,
)

State = dict[str, Any]
Step = tuple[State, Groups]
# What is set in every group at a step: [{"lr": 0.1}, {"lr": 0.2, "momentum": 0.9}].
Values = Callable[[State, Groups], Sequence[Mapping[str, Any]]]
_DIVISORS = ("step_size", "T_max")
_NUMBERS = (*_DIVISORS, "gamma", "factor", "start_factor", "end_factor", "total_iters", "power", "eta_min")
_APART = ("lr_lambdas", "_scale_fn_custom", "_schedulers")


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of `torch.optim.lr_scheduler`.

    Args:
        name: torch's class.
        construct: torch's constructor, `groups -> (state, groups)`.
        advance: torch's `scheduler.step()`, `(state, groups, argument) -> (state, groups)`.
        enter: how SequentialLR enters it at a milestone, `(state, groups) -> (state, groups)`.
        argument: what `step` may be given: "metrics", "epoch" or nothing.
        schedulers: those that it is made of.
    """

    name: str
    construct: Callable[[Groups], Step] = field(repr=False)
    advance: Callable[[State, Groups, Any], Step] = field(repr=False)
    enter: Callable[[State, Groups], Step] = field(repr=False)
    argument: str | None = None
    schedulers: tuple["Scheduler", ...] = ()

    def init(self, opt: Any) -> tuple[State, Any]:
        """Begin: torch's constructor, which notes `initial_lr` in every group and sets the first lr.

        Args:
            opt: an optimizer state of this package's, a nest of optax states that holds one, or a list of
                param_groups: `[{"lr": 0.1}]`.

        Returns:
            torch's state_dict of the scheduler, and `opt` with the lr of the first step.
        """
        before = read_groups(opt)
        state, groups = self.construct(before)
        return state, write_groups(opt, groups, before)

    def step(
        self, state: State, opt: Any, metrics: Any = None, *, epoch: float | None = None, times: int = 1
    ) -> tuple[State, Any]:
        """torch's `scheduler.step()`: read the groups, set them, and count.

        Args:
            state: of `init`, of `load_state_dict` or of the step before.
            opt: as for `init`; torch's recursions start from the lr that it has.
            metrics: for ReduceLROnPlateau, which needs it.
            epoch: for CosineAnnealingWarmRestarts, which takes fractions of one.
            times: so many steps at once.

        Raises:
            OptimizerError: another number of groups than the state's; groups without the `initial_lr` that
                every scheduler notes; a metric that is missing or not asked for.

        >>> from jaxstate.optim import schedulers
        >>> halves = schedulers.ExponentialLR(gamma=0.5)
        >>> state, groups = halves.init([{"lr": 0.8}])
        >>> state, groups = halves.step(state, groups, times=3)
        >>> groups[0]["lr"] == 0.8 * 0.5**3, state["last_epoch"]
        (True, 3)
        """
        argument = self._argument({"metrics": metrics, "epoch": epoch}, times)
        before = groups = read_groups(opt)
        _check_groups(self, state, groups)
        for _ in range(times):
            state, groups = self.advance(state, groups, argument)
        return state, write_groups(opt, groups, before)

    def _argument(self, given: Mapping[str, Any], times: int) -> Any:
        if strange := [key for key, value in given.items() if value is not None and key != self.argument]:
            raise OptimizerError(f"{self.name}.step takes no {strange[0]}")
        argument = given.get(self.argument or "")
        if argument is None and self.argument == "metrics":
            raise OptimizerError(
                f"{self.name}.step needs the metric that it watches: step(state, opt, metrics)"
            )
        if argument is not None and times != 1:
            raise OptimizerError(f"one {self.argument} is one step, not {times}")
        return argument


def _check_groups(scheduler: Scheduler, state: State, groups: Groups) -> None:
    check_scheduler(scheduler)
    check_state(state)
    if len(state["_last_lr"]) != len(groups):
        raise OptimizerError(
            f"the state of {scheduler.name} is of {len(state['_last_lr'])} param_groups, and the optimizer "
            f"has {len(groups)}"
        )
    if scheduler.argument != "metrics":
        with_initial_lr(groups, 0)


def check_scheduler(scheduler: Any) -> None:
    """Raise OptimizerError for what is no scheduler: a class, a state."""
    if not isinstance(scheduler, Scheduler):
        raise OptimizerError(
            "a scheduler is what a constructor of js.optim.schedulers makes, such as StepLR(step_size=30), "
            f"and not {scheduler!r}"
        )


def check_state(state: Any) -> None:
    """Raise OptimizerError for what is no scheduler's state, which is a dict and says its last lr."""
    if not isinstance(state, Mapping) or not isinstance(state.get("_last_lr"), list | tuple):
        raise OptimizerError(
            "a scheduler's state is the first of the two things that init and step return; it has a list "
            f'"_last_lr", and this is of type {type(state).__name__}'
        )


def recursive(
    name: str, own: Mapping[str, Any], values: Values, last_epoch: int, first: Any = None
) -> Scheduler:
    """A scheduler that torch's LRScheduler runs: the next values from the state and the groups.

    Args:
        name: torch's class.
        own: its attributes, in torch's order.
        values: torch's `get_lr`.
        last_epoch: as torch's.
        first: `(state, initial lr) -> lr` at epoch 0 in torch's closed form, if it has one.

    Raises:
        OptimizerError: an attribute that is no number and has to be one.
    """
    _check_numbers(name, own)

    def advance(state: State, groups: Groups, argument: Any = None) -> Step:
        return advanced(values, state, groups)

    def construct(groups: Groups) -> Step:
        return constructed(own, advance, groups, last_epoch)

    def enter(state: State, groups: Groups) -> Step:
        return entered(values, first, state, groups)

    return Scheduler(name, construct, advance, enter)


def _check_numbers(name: str, own: Mapping[str, Any]) -> None:
    """torch asks nothing here, and fails at some later step, or gives a rate of NaN."""
    for key in (key for key in _NUMBERS if key in own):
        number = plain(own[key])
        if isinstance(number, bool) or not isinstance(number, int | float | np.ndarray) or number != number:
            raise OptimizerError(f"{name} is given {key}={own[key]!r}, which is no number")
        if key in _DIVISORS and number == 0:
            raise OptimizerError(f"{name} is given {key}=0, and divides by it at every step")


def constructed(own: Mapping[str, Any], advance: Any, groups: Groups, last_epoch: int) -> Step:
    """torch's `LRScheduler.__init__`, with the attributes that a class sets before it."""
    groups = with_initial_lr(groups, last_epoch)
    base_lrs = [group["initial_lr"] for group in groups]
    return begun(advance, {**own, "base_lrs": base_lrs, "last_epoch": last_epoch}, groups)


def begun(advance: Any, state: State, groups: Groups) -> Step:
    """The step that a constructor makes, during which most recursions keep the lr."""
    state, groups = advance({**state, "_step_count": 0, "_is_initial": True}, groups, None)
    return {**state, "_is_initial": False}, groups


def advanced(values: Values, state: State, groups: Groups) -> Step:
    """torch's `LRScheduler.step`."""
    count, epoch = state["_step_count"] + 1, state["last_epoch"] + 1
    state = {**state, "_step_count": count, "last_epoch": epoch}
    return valued(state, groups, values(state, groups))


def entered(values: Values, first: Any, state: State, groups: Groups) -> Step:
    """torch's `LRScheduler._update_lr(0)`: epoch 0 in closed form where there is one, and nothing counted."""
    state = {**state, "last_epoch": 0}
    if first is None:
        return valued(state, groups, values(state, groups))
    return valued(state, groups, [{"lr": first(state, base)} for base in state["base_lrs"]])


def valued(state: State, groups: Groups, values: Sequence[Mapping[str, Any]]) -> Step:
    """The groups with their values, and the state that knows what lr it has set."""
    groups = [with_values(*pair) for pair in zip(groups, values, strict=True)]
    lrs = [group["lr"] for group in groups]
    return {**state, "_get_lr_called_within_step": False, "_last_lr": lrs}, groups


def ordered(state: State) -> State:
    """The state in torch's order: what a class's own `state_dict` treats apart stands at the end."""
    apart = [key for key in _APART if key in state]
    return {
        **{key: value for key, value in state.items() if key not in apart},
        **{k: state[k] for k in apart},
    }
