"""Schedulers that multiply: eta_t = eta_{t-1} f(t), where eta is a group's lr and t the epoch.

torch's chainable form, step by step: its closed form rounds otherwise, and forgets what others did to the lr.

https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

from jaxstate.errors import OptimizerError
from jaxstate.optim.schedulers._groups import Groups
from jaxstate.optim.schedulers._scheduler import Scheduler, State, recursive

Factor = Callable[[State], float]


def StepLR(step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.StepLR`: eta_t = gamma eta_{t-1} wherever step_size divides t.

    >>> drops = StepLR(step_size=2, gamma=0.5)
    >>> drops.step(*drops.init([{"lr": 0.8}]), times=5)[1][0]["lr"] == 0.8 * 0.5 * 0.5
    True
    """

    def factor(s: State) -> float:
        return s["gamma"] if s["last_epoch"] and s["last_epoch"] % s["step_size"] == 0 else 1

    return _multiplied("StepLR", {"step_size": step_size, "gamma": gamma}, factor, last_epoch, _whole)


def MultiStepLR(milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.MultiStepLR`: eta_t = gamma eta_{t-1}, once for each milestone that is t.

    Raises:
        OptimizerError: milestones that are no whole numbers, which no epoch would ever be.

    >>> drops = MultiStepLR([1, 3, 3], gamma=0.5)
    >>> drops.step(*drops.init([{"lr": 0.8}]), times=4)[1][0]["lr"] == 0.8 * 0.5 * 0.5**2
    True
    """

    def factor(s: State) -> float:
        return s["gamma"] ** s["milestones"][s["last_epoch"]] if s["last_epoch"] in s["milestones"] else 1

    def first(s: State, base: Any) -> Any:
        return base * s["gamma"] ** sum(count for t, count in s["milestones"].items() if t <= 0)

    own = {"milestones": _counted(milestones), "gamma": gamma}
    return _multiplied("MultiStepLR", own, factor, last_epoch, first)


def ExponentialLR(gamma: float, last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.ExponentialLR`: eta_t = gamma eta_{t-1}.

    >>> decay = ExponentialLR(gamma=0.5)
    >>> decay.step(*decay.init([{"lr": 0.8}]), times=2)[1][0]["lr"] == 0.8 * 0.5 * 0.5
    True
    """

    def factor(s: State) -> float:
        return 1 if s["_is_initial"] else s["gamma"]

    return _multiplied("ExponentialLR", {"gamma": gamma}, factor, last_epoch, _whole)


def ConstantLR(factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.ConstantLR`: eta_0 = f eta, and eta_t = eta_{t-1} / f at t = total_iters.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> warmup = ConstantLR(factor=0.25, total_iters=3)
    >>> [warmup.step(*warmup.init([{"lr": 0.8}]), times=n)[1][0]["lr"] for n in (0, 2, 3)]
    [0.2, 0.2, 0.8]
    """
    if factor > 1.0 or factor < 0:
        raise OptimizerError("Constant multiplicative factor expected to be between 0 and 1.")

    def now(s: State) -> float:
        if s["last_epoch"] == 0:
            return s["factor"]
        return 1.0 / s["factor"] if s["last_epoch"] == s["total_iters"] else 1

    def first(s: State, base: Any) -> Any:
        return base * (s["factor"] + (0 >= s["total_iters"]) * (1 - s["factor"]))

    own = {"factor": factor, "total_iters": total_iters}
    return _multiplied("ConstantLR", own, now, last_epoch, first)


def LinearLR(
    start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5, last_epoch: int = -1
) -> Scheduler:
    """`torch.optim.lr_scheduler.LinearLR`: eta_t / eta goes from a = start_factor to b = end_factor.

    Raises:
        OptimizerError: what torch refuses, in its words.

    >>> warmup = LinearLR(start_factor=0.25, total_iters=3)
    >>> [warmup.step(*warmup.init([{"lr": 0.8}]), times=n)[1][0]["lr"] for n in (0, 1, 2, 3, 4)]
    [0.2, 0.4, 0.6..., 0.8..., 0.8...]
    """
    if start_factor > 1.0 or start_factor <= 0:
        raise OptimizerError(
            "Starting multiplicative factor expected to be greater than 0 and less or equal to 1."
        )
    if end_factor > 1.0 or end_factor < 0:
        raise OptimizerError("Ending multiplicative factor expected to be between 0 and 1.")

    def factor(s: State) -> float:
        a, b, n, t = s["start_factor"], s["end_factor"], s["total_iters"], s["last_epoch"]
        if t == 0:
            return a
        if s["_is_initial"] or t > n:
            return 1
        return 1.0 + (b - a) / (n * a + (t - 1) * (b - a))

    def first(s: State, base: Any) -> Any:
        a, b, n = s["start_factor"], s["end_factor"], s["total_iters"]
        return base * (a + (b - a) * min(n, 0) / n)

    own = {"start_factor": start_factor, "end_factor": end_factor, "total_iters": total_iters}
    return _multiplied("LinearLR", own, factor, last_epoch, first)


def PolynomialLR(total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> Scheduler:
    """`torch.optim.lr_scheduler.PolynomialLR`: eta_t = eta (1 - t/n)^power, and 0 from t = n on.

    >>> decay = PolynomialLR(total_iters=4, power=2.0)
    >>> [decay.step(*decay.init([{"lr": 0.8}]), times=n)[1][0]["lr"] for n in (0, 2, 4, 6)]
    [0.8, 0.1999..., 0.0, 0.0]
    """

    def factor(s: State) -> float:
        n, t = s["total_iters"], s["last_epoch"]
        if s["_is_initial"] or t > n:
            return 1
        return ((1.0 - t / n) / (1.0 - (t - 1) / n)) ** s["power"]

    def first(s: State, base: Any) -> Any:
        return base * (1.0 - min(s["total_iters"], 0) / s["total_iters"]) ** s["power"]

    own = {"total_iters": total_iters, "power": power}
    return _multiplied("PolynomialLR", own, factor, last_epoch, first)


def _counted(milestones: Any) -> Counter:
    found = list(milestones) if isinstance(milestones, Iterable) else [milestones]
    if not isinstance(milestones, Iterable) or any(not isinstance(t, Integral) for t in found):
        raise OptimizerError(f"milestones is a list of epochs, [30, 80], not {milestones!r}")
    return Counter(found)


def _whole(state: State, base: Any) -> Any:
    return base


def _multiplied(name: str, own: Mapping[str, Any], factor: Factor, last_epoch: int, first: Any) -> Scheduler:
    def values(state: State, groups: Groups) -> list[dict[str, Any]]:
        f = factor(state)
        return [{"lr": group["lr"] * f} for group in groups]

    return recursive(name, own, values, last_epoch, first)
