"""OneCycleLR: up to max_lr and down to nearly nothing, momentum the other way round.

Smith and Topin, Super-convergence: very fast training of neural networks using large learning rates
(https://arxiv.org/abs/1708.07120);
https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Group, Groups, check_cycled, cycled, per_group, with_each
from jaxstate.optim.schedulers._scheduler import (
    Scheduler,
    State,
    Step,
    advanced,
    constructed,
    entered,
)

# The groups hold the ends of every phase, under these names; lr from, lr to, momentum from, momentum to.
_UP = ("initial_lr", "max_lr", "max_momentum", "base_momentum")
_BACK = ("max_lr", "initial_lr", "base_momentum", "max_momentum")
_DOWN = ("max_lr", "min_lr", "base_momentum", "max_momentum")
_OUT = ("initial_lr", "min_lr", "max_momentum", "max_momentum")


def OneCycleLR(
    max_lr: float | Sequence[float],
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: float | Sequence[float] = 0.85,
    max_momentum: float | Sequence[float] = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    last_epoch: int = -1,
) -> Scheduler:
    """`torch.optim.lr_scheduler.OneCycleLR`: lr from max_lr / div_factor to max_lr, and on to min_lr.

    The ends are kept in the param_groups, so the optimizer's state_dict belongs to it. A phase ends at
    `pct_start * total_steps - 1`; optax.cosine_onecycle_schedule's phases end elsewhere.

    Raises:
        OptimizerError: what torch refuses, in its words; a step after the last.

    >>> cycle = OneCycleLR(max_lr=1.0, total_steps=10, cycle_momentum=False, anneal_strategy="linear")
    >>> [round(cycle.step(*cycle.init([{"lr": 0.5}]), times=n)[1][0]["lr"], 6) for n in (0, 1, 2, 9)]
    [0.04, 0.52, 1.0, 4e-06]
    """
    total = _total(total_steps, epochs, steps_per_epoch)
    if not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
        raise OptimizerError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
    if anneal_strategy not in ("cos", "linear"):
        raise OptimizerError(
            f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
        )
    own = {
        "total_steps": total,
        "_schedule_phases": _phases(total, pct_start, three_phase),
        "_anneal_func_type": anneal_strategy,
        "cycle_momentum": cycle_momentum,
    }

    def construct(groups: Groups) -> Step:
        if last_epoch == -1:
            tops = per_group("max_lr", max_lr, groups)
            rows = zip(groups, tops, strict=True)
            groups = [_with_ends(group, top, div_factor, final_div_factor) for group, top in rows]
        if not cycle_momentum:
            return constructed(own, _advance, groups, last_epoch)
        check_cycled(groups)
        if last_epoch == -1:
            groups = with_momenta(groups, max_momentum, base_momentum)
        return constructed({**own, "use_beta1": "betas" in groups[0]}, _advance, groups, last_epoch)

    def enter(state: State, groups: Groups) -> Step:
        return entered(_values, None, state, groups)

    return Scheduler("OneCycleLR", construct, _advance, enter)


def with_momenta(groups: Groups, max_momentum: Any, base_momentum: Any) -> Groups:
    """The groups with both ends of the momentum noted, and at its upper one."""
    tops = per_group("max_momentum", max_momentum, groups)
    groups = [{**group, **cycled(group, top)} for group, top in zip(groups, tops, strict=True)]
    groups = with_each(groups, "max_momentum", tops)
    return with_each(groups, "base_momentum", per_group("base_momentum", base_momentum, groups))


def _total(total_steps: Any, epochs: Any, steps_per_epoch: Any) -> int:
    if total_steps is None and (epochs is None or steps_per_epoch is None):
        raise OptimizerError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    counts: dict[str, Any] = {"total_steps": total_steps}
    if total_steps is None:
        counts = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    for name, count in counts.items():
        if not isinstance(count, int) or count <= 0:
            raise OptimizerError(f"Expected positive integer {name}, but got {count}")
    return math.prod(counts.values())


def _phases(total: int, pct: float, three_phase: bool) -> list[dict[str, Any]]:
    end = float(pct * total) - 1
    if three_phase:
        return [_phase(end, _UP), _phase(float(2 * pct * total) - 2, _BACK), _phase(total - 1, _OUT)]
    return [_phase(end, _UP), _phase(total - 1, _DOWN)]


def _phase(end_step: float, names: Sequence[str]) -> dict[str, Any]:
    ends = ("start_lr", "end_lr", "start_momentum", "end_momentum")
    return {"end_step": end_step, **dict(zip(ends, names, strict=True))}


def _with_ends(group: Group, top: float, div_factor: float, final_div_factor: float) -> Group:
    bottom = top / div_factor
    return {**group, "initial_lr": bottom, "max_lr": top, "min_lr": bottom / final_div_factor}


def _advance(state: State, groups: Groups, argument: Any = None) -> Step:
    return advanced(_values, state, groups)


def _values(s: State, groups: Groups) -> list[dict[str, Any]]:
    t = s["last_epoch"]
    if t > s["total_steps"]:
        raise OptimizerError(
            f"Tried to step {t} times. The specified number of total steps is {s['total_steps']}"
        )
    phases = s["_schedule_phases"]
    i = next((i for i, phase in enumerate(phases) if t <= phase["end_step"]), len(phases) - 1)
    begin, end = phases[i - 1]["end_step"] if i else 0.0, phases[i]["end_step"]
    return [_annealed(s, group, phases[i], (t - begin) / (end - begin)) for group in groups]


def _annealed(s: State, group: Group, phase: dict[str, Any], part: float) -> dict[str, Any]:
    anneal = _cosine if s["_anneal_func_type"] == "cos" else _linear
    lr = anneal(group[phase["start_lr"]], group[phase["end_lr"]], part)
    if not s["cycle_momentum"]:
        return {"lr": lr}
    momentum = anneal(group[phase["start_momentum"]], group[phase["end_momentum"]], part)
    return {"lr": lr, **cycled(group, momentum)}


def _cosine(start: Any, end: Any, part: float) -> Any:
    return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)


def _linear(start: Any, end: Any, part: float) -> Any:
    return (end - start) * part + start
