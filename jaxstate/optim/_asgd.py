"""Averaged SGD, as `torch.optim.ASGD` writes it.

Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992);
https://docs.pytorch.org/docs/stable/generated/torch.optim.ASGD.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options, like_parameter
from jaxstate.optim._arithmetic import update_to
from jaxstate.optim._checks import check_lr, check_nonnegative
from jaxstate.optim._double import Double, rounded
from jaxstate.optim._transform import transformation


def asgd(
    lr: float = 0.01,
    lambd: float = 0.0001,
    alpha: float = 0.75,
    t0: float = 1000000.0,
    weight_decay: float = 0,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    *,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.ASGD`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, lambd, alpha, t0, weight_decay, maximize: as torch's.
        foreach, differentiable, capturable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = asgd(lr=0.5, lambd=0.5)
    >>> updates, _ = tx.update({"w": jnp.array([1.0, 4.0])}, tx.init(params), params)
    >>> (params["w"] + updates["w"]).tolist() == [1.0 * 0.75 - 0.5 * 1.0, 2.0 * 0.75 - 0.5 * 4.0]
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in ASGD.defaults}
    return transformation(ASGD, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    eta, mu, ax = (state[key] for key in ("now", "share", "ax"))
    if group["maximize"]:
        g = -g
    g = g + group["weight_decay"] * p
    # theta_t = (1 - lambda eta_{t-1}) theta_{t-1} - eta_{t-1} g_t
    update = update_to(p, rounded(state["shrink"] * p) - eta * g)
    new = p + update  # in these words, since then the program reads what it has added, and needs no copy
    ax = jnp.where(mu == 1, new, ax + (new - ax) * mu)  # the mean of theta since t_0
    return update, {"step": state["step"] + 1, "eta": state["next_eta"], "mu": state["next_mu"], "ax": ax}


def _coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """eta and mu of this step and of the next, which torch rounds to float32 in between."""
    lr, lambd, alpha, t0 = (group[key] for key in ("lr", "lambd", "alpha", "t0"))
    # eta_0 = gamma, and every eta is one that float32 has
    eta = Double.of(jnp.where(state["step"] == 1, lr.high.astype(jnp.float32), state["eta"]))
    t = Double.of(state["step"])
    # eta_t = gamma / (1 + lambda gamma t)^alpha
    power = jnp.exp(-alpha.high * jnp.log1p((lambd * lr * t).high))
    # mu_t = 1 / max(1, t - t_0)
    late = jnp.maximum(t.high - t0.high - t0.low, 1.0)
    return {
        "now": eta,
        "shrink": 1 - lambd * eta,
        "share": state["mu"],
        "next_eta": lr.high * power,
        "next_mu": 1 / late,
    }


def _buffers(options: Options) -> tuple[str, ...]:
    return ("eta", "mu", "ax")


def _like(buffer: str, p: Any) -> jax.ShapeDtypeStruct | None:
    return like_parameter(buffer, p) if buffer == "ax" else jax.ShapeDtypeStruct((), jnp.float32)


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "weight_decay")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    raise OptimizerError(f"optax averages no iterates as torch does; {ASGD.call(options)} does")


ASGD = Algorithm(
    name="ASGD",
    defaults=(
        ("lr", 0.01),
        ("lambd", 0.0001),
        ("alpha", 0.75),
        ("t0", 1000000.0),
        ("weight_decay", 0),
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("capturable", False),
    ),
    flags=("maximize",),
    recursion=_recursion,
    coefficients=_coefficients,
    buffers=_buffers,
    check=_check,
    filled=(
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("capturable", False),
    ),
    counts=True,
    constructor=lambda options: "asgd",
    optax=_optax,
    complex=True,
    like=_like,
    own=("eta", "mu"),
    start=lambda buffer, options: {"eta": options["lr"], "mu": 1}.get(buffer, 0),
)
