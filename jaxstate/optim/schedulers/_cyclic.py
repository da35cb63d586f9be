"""CyclicLR: up and down between two lrs, again and again, momentum the other way round.

Smith, Cyclical learning rates for training neural networks (https://arxiv.org/abs/1506.01186);
https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CyclicLR.html
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import (
    Groups,
    check_cycled,
    cycled,
    per_group,
    with_values,
)
from jaxstate.optim.schedulers._lambdas import attributes, restored
from jaxstate.optim.schedulers._one_cycle import with_momenta
from jaxstate.optim.schedulers._scheduler import (
    Scheduler,
    State,
    Step,
    advanced,
    constructed,
    entered,
    ordered,
)

# By mode: the scale of a height, and whether its argument is the cycle or the iteration.
_SCALES: dict[str, tuple[Callable[[State, float], float], str]] = {
    "triangular": (lambda s, x: 1.0, "cycle"),
    "triangular2": (lambda s, x: 1 / (2.0 ** (x - 1)), "cycle"),
    "exp_range": (lambda s, x: s["gamma"] ** x, "iterations"),
}


def CyclicLR(
    base_lr: float | Sequence[float],
    max_lr: float | Sequence[float],
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    scale_mode: Literal["cycle", "iterations"] = "cycle",
    cycle_momentum: bool = True,
    base_momentum: float | Sequence[float] = 0.8,
    max_momentum: float | Sequence[float] = 0.9,
    last_epoch: int = -1,
) -> Scheduler:
    """`torch.optim.lr_scheduler.CyclicLR`: lr between base_lr and max_lr, in cycles of equal length.

    A file does not tell whether a `scale_fn` was used; where one was, it is to be given again.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> wave = CyclicLR(base_lr=0.5, max_lr=1.0, step_size_up=2, cycle_momentum=False)
    >>> [wave.step(*wave.init([{"lr": 0.1}]), times=n)[1][0]["lr"] for n in range(5)]
    [0.5, 0.75, 1.0, 0.75, 0.5]
    """
    if mode not in _SCALES and scale_fn is None:
        raise OptimizerError("mode is invalid and scale_fn is None")
    up = float(step_size_up)
    total = up + (float(step_size_down) if step_size_down is not None else up)
    own = {
        "total_size": total,
        "step_ratio": up / total,
        "mode": mode,
        "gamma": gamma,
        "scale_mode": scale_mode if scale_fn is not None else _SCALES[mode][1],
        "cycle_momentum": cycle_momentum,
    }

    def advance(state: State, groups: Groups, argument: Any = None) -> Step:
        fn = restored(scale_fn, state["_scale_fn_custom"])
        state, groups = advanced(lambda s, g: _values(s, g, fn), state, groups)
        return ordered({**state, "_scale_fn_custom": _attributes(fn)}), groups

    def construct(groups: Groups) -> Step:
        base_lrs = per_group("base_lr", base_lr, groups)
        first = {"max_lrs": per_group("max_lr", max_lr, groups), **own}
        if last_epoch == -1:
            groups = [with_values(g, {"lr": lr}) for g, lr in zip(groups, base_lrs, strict=True)]
        if cycle_momentum:
            check_cycled(groups)
            first |= {
                "use_beta1": "betas" in groups[0],
                "base_momentums": per_group("base_momentum", base_momentum, groups),
                "max_momentums": per_group("max_momentum", max_momentum, groups),
            }
            groups = with_momenta(groups, max_momentum, base_momentum) if last_epoch == -1 else groups
        # torch's first step still takes the groups' initial_lr for the lower end.
        state, groups = constructed(
            {**first, "_scale_fn_custom": _attributes(scale_fn)}, advance, groups, last_epoch
        )
        return {**state, "base_lrs": base_lrs}, groups

    def enter(state: State, groups: Groups) -> Step:
        fn = restored(scale_fn, state["_scale_fn_custom"])
        return entered(lambda s, g: _values(s, g, fn), None, state, groups)

    return Scheduler("CyclicLR", construct, advance, enter)


def _attributes(scale_fn: Any) -> dict[str, Any] | None:
    return None if scale_fn is None else attributes(scale_fn)


def _values(s: State, groups: Groups, scale_fn: Callable[[float], float] | None) -> list[dict[str, Any]]:
    t, total, ratio = s["last_epoch"], s["total_size"], s["step_ratio"]
    cycle = math.floor(1 + t / total)
    x = 1.0 + t / total - cycle
    height = x / ratio if x <= ratio else (x - 1) / (ratio - 1)
    scale = _scale(s, scale_fn, cycle if s["scale_mode"] == "cycle" else t)
    lrs = [low + (top - low) * height * scale for low, top in zip(s["base_lrs"], s["max_lrs"], strict=True)]
    if not s["cycle_momentum"]:
        return [{"lr": lr} for lr in lrs]
    ends = zip(s["base_momentums"], s["max_momentums"], strict=True)
    momenta = [top - (top - low) * height * scale for low, top in ends]
    return [{"lr": lr, **cycled(g, m)} for g, lr, m in zip(groups, lrs, momenta, strict=True)]


def _scale(s: State, scale_fn: Callable[[float], float] | None, x: float) -> float:
    if scale_fn is not None:
        return scale_fn(x)
    if s["mode"] not in _SCALES:
        raise OptimizerError(f"mode {s['mode']!r} is none of {[*_SCALES]}: its function is needed, scale_fn=")
    return _SCALES[s["mode"]][0](s, x)
