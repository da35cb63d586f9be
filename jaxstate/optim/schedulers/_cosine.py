"""Schedulers along a cosine: CosineAnnealingLR and CosineAnnealingWarmRestarts.

Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts
(https://arxiv.org/abs/1608.03983);
https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingLR.html
"""

import math
from typing import Any

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Groups
from jaxstate.optim.schedulers._scheduler import (
    Scheduler,
    State,
    Step,
    constructed,
    entered,
    recursive,
    valued,
)


def CosineAnnealingLR(T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.CosineAnnealingLR`: half a cosine down to eta_min, half one up, and on.

    optax.cosine_decay_schedule stays at the minimum; torch rises again after T_max.

    >>> wave = CosineAnnealingLR(T_max=2)
    >>> [round(wave.step(*wave.init([{"lr": 0.8}]), times=n)[1][0]["lr"], 12) for n in range(5)]
    [0.8, 0.4, 0.0, 0.4, 0.8]
    """

    def values(s: State, groups: Groups) -> list[dict[str, Any]]:
        rows = zip(groups, s["base_lrs"], strict=True)
        return [{"lr": _annealed(s, group["lr"], base)} for group, base in rows]

    def first(s: State, base: Any) -> Any:
        return s["eta_min"] + (base - s["eta_min"]) * (1 + math.cos(math.pi * 0 / s["T_max"])) / 2

    return recursive("CosineAnnealingLR", {"T_max": T_max, "eta_min": eta_min}, values, last_epoch, first)


def _annealed(s: State, lr: Any, base: Any) -> Any:
    t, T, eta = s["last_epoch"], s["T_max"], s["eta_min"]
    if s["_is_initial"]:
        return lr
    if s["_step_count"] == 1 and t > 0:
        return eta + (base - eta) * (1 + math.cos(t * math.pi / T)) / 2
    if (t - 1 - T) % (2 * T) == 0:
        # From the minimum no quotient leads upwards.
        return lr + (base - eta) * (1 - math.cos(math.pi / T)) / 2
    # eta_t - eta_min is to eta_{t-1} - eta_min as 1 + cos(pi t/T) to 1 + cos(pi (t-1)/T)
    return (1 + math.cos(math.pi * t / T)) / (1 + math.cos(math.pi * (t - 1) / T)) * (lr - eta) + eta


def CosineAnnealingWarmRestarts(
    T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
) -> Scheduler:
    """`torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`: half cosines, each T_mult times as long.

    Its `step` takes fractions of an epoch, `epoch=i + batch / batches`, or counts epochs itself.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> saw = CosineAnnealingWarmRestarts(T_0=2)
    >>> [round(saw.step(*saw.init([{"lr": 0.8}]), times=n)[1][0]["lr"], 12) for n in range(4)]
    [0.8, 0.4, 0.8, 0.4]
    """
    if not isinstance(T_0, int) or T_0 <= 0:
        raise OptimizerError(f"Expected positive integer T_0, but got {T_0}")
    if not isinstance(T_mult, int) or T_mult < 1:
        raise OptimizerError(f"Expected integer T_mult >= 1, but got {T_mult}")
    if not isinstance(eta_min, float | int):
        raise OptimizerError(f"Expected float or int eta_min, but got {eta_min} of type {type(eta_min)}")
    own = {"T_0": T_0, "T_i": T_0, "T_mult": T_mult, "eta_min": eta_min, "T_cur": last_epoch}

    def construct(groups: Groups) -> Step:
        return constructed(own, _advance, groups, last_epoch)

    def enter(state: State, groups: Groups) -> Step:
        return entered(_values, None, state, groups)

    return Scheduler("CosineAnnealingWarmRestarts", construct, _advance, enter, argument="epoch")


def _advance(state: State, groups: Groups, epoch: float | None = None) -> Step:
    if epoch is None and state["last_epoch"] < 0:
        epoch = 0
    state = {**state, **(_next(state) if epoch is None else _at(state, epoch))}
    return valued(state, groups, _values(state, groups))


def _next(s: State) -> State:
    """One epoch on. T_cur counts within a period of T_i."""
    T_cur, T_i, t = s["T_cur"] + 1, s["T_i"], s["last_epoch"] + 1
    if T_cur >= T_i:
        T_cur, T_i = T_cur % T_i, T_i * s["T_mult"]
    return {"T_i": T_i, "T_cur": T_cur, "last_epoch": t}


def _at(s: State, epoch: float) -> State:
    """At an epoch. The n periods before it sum to T_0 (T_mult^n - 1) / (T_mult - 1)."""
    if epoch < 0:
        raise OptimizerError(f"Expected non-negative epoch, but got {epoch}")
    T_0, T_mult = s["T_0"], s["T_mult"]
    if epoch < T_0:
        where = {"T_i": T_0, "T_cur": epoch}
    elif T_mult == 1:
        where = {"T_cur": epoch % T_0}
    else:
        n = int(math.log(epoch / T_0 * (T_mult - 1) + 1, T_mult))
        where = {"T_i": T_0 * T_mult**n, "T_cur": epoch - T_0 * (T_mult**n - 1) / (T_mult - 1)}
    return {**where, "last_epoch": math.floor(epoch)}


def _values(s: State, groups: Groups) -> list[dict[str, Any]]:
    eta, cosine = s["eta_min"], math.cos(math.pi * s["T_cur"] / s["T_i"])
    return [{"lr": eta + (base - eta) * (1 + cosine) / 2} for base in s["base_lrs"]]
