"""ReduceLROnPlateau: the lr falls when a metric has stopped getting better.

https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Group, Groups, with_values
from jaxstate.optim.schedulers._scheduler import Scheduler, State, Step


def ReduceLROnPlateau(
    mode: Literal["min", "max"] = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: float | Sequence[float] = 0,
    eps: float = 1e-8,
) -> Scheduler:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau`: eta = factor eta after more than `patience` bad epochs.

    Its `step` needs the metric. optax.contrib.reduce_on_plateau reduces one bad epoch earlier for the same
    `patience`.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> watch = ReduceLROnPlateau(factor=0.5, patience=1)
    >>> state, groups = watch.init([{"lr": 0.8}])
    >>> for loss in (3.0, 3.0, 3.0):
    ...     state, groups = watch.step(state, groups, loss)
    >>> groups[0]["lr"], state["best"]
    (0.4, 3.0)
    """
    if factor >= 1.0:
        raise OptimizerError("Factor should be < 1.0.")
    if mode not in ("min", "max"):
        raise OptimizerError(f"mode {mode} is unknown!")
    if threshold_mode not in ("rel", "abs"):
        raise OptimizerError(f"threshold mode {threshold_mode} is unknown!")
    floors = list(min_lr) if isinstance(min_lr, list | tuple) else None
    worst = math.inf if mode == "min" else -math.inf

    def construct(groups: Groups) -> Step:
        if floors is not None and len(floors) != len(groups):
            raise OptimizerError(f"expected {len(groups)} min_lrs, got {len(floors)}")
        state = {
            "factor": factor,
            "default_min_lr": min_lr if floors is None else None,
            "min_lrs": [min_lr] * len(groups) if floors is None else floors,
            "patience": patience,
            "cooldown": cooldown,
            "eps": eps,
            "last_epoch": 0,
            "_last_lr": [group["lr"] for group in groups],
            "mode_worse": worst,
            "mode": mode,
            "threshold": threshold,
            "threshold_mode": threshold_mode,
            "best": worst,
            "cooldown_counter": 0,
            "num_bad_epochs": 0,
        }
        return state, groups

    return Scheduler("ReduceLROnPlateau", construct, _advance, _enter, argument="metrics")


def _advance(state: State, groups: Groups, metrics: Any = None) -> Step:
    state = {**state, **_judged(state, float(metrics)), "last_epoch": state["last_epoch"] + 1}
    if state["num_bad_epochs"] > state["patience"]:
        rows = zip(groups, state["min_lrs"], strict=True)
        groups = [_reduced(state, group, floor) for group, floor in rows]
        state = {**state, "cooldown_counter": state["cooldown"], "num_bad_epochs": 0}
    return {**state, "_last_lr": [group["lr"] for group in groups]}, groups


def _judged(s: State, metric: float) -> State:
    better = _is_better(s, metric)
    best, bad = (metric, 0) if better else (s["best"], s["num_bad_epochs"] + 1)
    if s["cooldown_counter"] > 0:
        return {"best": best, "cooldown_counter": s["cooldown_counter"] - 1, "num_bad_epochs": 0}
    return {"best": best, "num_bad_epochs": bad}


def _is_better(s: State, metric: float) -> bool:
    sign = -1.0 if s["mode"] == "min" else 1.0
    if s["threshold_mode"] == "rel":
        return sign * metric > sign * (s["best"] * (1.0 + sign * s["threshold"]))
    return sign * metric > sign * (s["best"] + sign * s["threshold"])


def _reduced(s: State, group: Group, floor: float) -> Group:
    old = float(group["lr"])
    new = max(old * s["factor"], floor)
    return with_values(group, {"lr": new}) if old - new > s["eps"] else group


def _enter(state: State, groups: Groups) -> Step:
    raise OptimizerError("ReduceLROnPlateau needs a metric at every step, and no other scheduler passes one")
