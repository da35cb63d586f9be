"""SWALR: the lr slides from wherever it is to a constant, for averaging weights.

Izmailov et al., Averaging weights leads to wider optima and better generalization
(https://arxiv.org/abs/1803.05407);
https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Groups, per_group, with_each
from jaxstate.optim.schedulers._scheduler import Scheduler, State, Step, advanced, constructed, entered


def SWALR(
    swa_lr: float | Sequence[float],
    anneal_epochs: int = 10,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    last_epoch: int = -1,
) -> Scheduler:
    """`torch.optim.swa_utils.SWALR`: eta_t = alpha(t) swa_lr + (1 - alpha(t)) eta, alpha from 0 to 1.

    `swa_lr` is kept in the param_groups, so the optimizer's state_dict belongs to it.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> slide = SWALR(swa_lr=0.2, anneal_epochs=2, anneal_strategy="linear")
    >>> [slide.step(*slide.init([{"lr": 1.0}]), times=n)[1][0]["lr"] for n in range(4)]
    [1.0, 0.6, 0.2, 0.2]
    """
    if anneal_strategy not in ("cos", "linear"):
        raise OptimizerError(
            f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
        )
    if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
        raise OptimizerError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
    own = {"_anneal_strategy": anneal_strategy, "anneal_epochs": anneal_epochs}

    def construct(groups: Groups) -> Step:
        groups = with_each(groups, "swa_lr", per_group("swa_lr", swa_lr, groups))
        return constructed(own, _advance, groups, last_epoch)

    def enter(state: State, groups: Groups) -> Step:
        return entered(_values, None, state, groups)

    return Scheduler("SWALR", construct, _advance, enter)


def _advance(state: State, groups: Groups, argument: Any = None) -> Step:
    return advanced(_values, state, groups)


def _values(s: State, groups: Groups) -> list[dict[str, Any]]:
    # Calls are counted here, not epochs, and the lr of the start is worked out again from the present one.
    step = s["_step_count"] - 1
    if s["anneal_epochs"] == 0:
        step = max(1, step)
    before, now = (_alpha(s, t) for t in (step - 1, step))
    return [{"lr": _slid(group["lr"], group["swa_lr"], before, now)} for group in groups]


def _alpha(s: State, step: int) -> float:
    t = max(0, min(1, step / max(1, s["anneal_epochs"])))
    return (1 - math.cos(math.pi * t)) / 2 if s["_anneal_strategy"] == "cos" else t


def _slid(lr: Any, swa_lr: Any, before: float, now: float) -> Any:
    start = swa_lr if before == 1 else (lr - before * swa_lr) / (1 - before)
    return swa_lr * now + start * (1 - now)
