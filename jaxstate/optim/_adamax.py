"""Adamax, Adam with the infinity norm, as `torch.optim.Adamax` writes it.

Kingma and Ba, Adam: a method for stochastic optimization (https://arxiv.org/abs/1412.6980), section 7.1;
https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import lerp, update_to
from jaxstate.optim._checks import check_betas, check_lr, check_nonnegative
from jaxstate.optim._transform import transformation


def adamax(
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0,
    foreach: bool | None = None,
    *,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Adamax`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, betas, eps, weight_decay, maximize: as torch's.
        foreach, differentiable, capturable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = adamax(lr=0.5, eps=0.0)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -7.0])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], jnp.array([-0.5, 0.5])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in ADAMAX.defaults}
    return transformation(ADAMAX, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    (b1, b2), eps, lamb = (group[key] for key in ("betas", "eps", "weight_decay"))
    t = state["step"] + 1
    if group["maximize"]:
        g = -g
    g = g + lamb * p
    m = lerp(state["exp_avg"], g, 1 - b1)  # m_t = beta1 m_{t-1} + (1 - beta1) g_t
    u = jnp.maximum(b2 * state["exp_inf"], jnp.abs(g) + eps)  # u_t = max(beta2 u_{t-1}, |g_t| + eps)
    # theta_t = theta_{t-1} - gamma / (1 - beta1^t) m_t / u_t
    new = p + state["rate"] * m / u
    return update_to(p, new), {"step": t, "exp_avg": m, "exp_inf": u}


def _coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    return {"rate": -group["lr"] / group["betas"][0].one_minus_power(state["step"])}


def _buffers(options: Options) -> tuple[str, ...]:
    return ("exp_avg", "exp_inf")


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "eps")
    check_betas(options)
    check_nonnegative(options, "weight_decay")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    return (("mu", "exp_avg"), ("nu", "exp_inf"))


ADAMAX = Algorithm(
    name="Adamax",
    defaults=(
        ("lr", 0.002),
        ("betas", (0.9, 0.999)),
        ("eps", 1e-08),
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
    constructor=lambda options: "adamax",
    optax=_optax,
    complex=True,
)
