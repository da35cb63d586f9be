"""NAdam, Adam with Nesterov momentum, as `torch.optim.NAdam` writes it.

Dozat, Incorporating Nesterov momentum into Adam (https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ);
https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options, like_parameter
from jaxstate.optim._arithmetic import lerp, update_to
from jaxstate.optim._checks import check_betas, check_lr, check_nonnegative
from jaxstate.optim._double import Double, rounded
from jaxstate.optim._transform import transformation


def nadam(
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0,
    momentum_decay: float = 0.004,
    decoupled_weight_decay: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.NAdam`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize: as torch's.
        foreach, capturable, differentiable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = nadam(lr=0.5, betas=(0.0, 0.5), eps=0.0)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -7.0])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], jnp.array([-0.5, 0.5])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in NADAM.defaults}
    return transformation(NADAM, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    lr, (b1, b2), eps, lamb = (group[key] for key in ("lr", "betas", "eps", "weight_decay"))
    t = state["step"] + 1
    if group["maximize"]:
        g = -g
    # theta = theta - gamma lambda theta, rounded where torch rounds; or g = g + lambda theta
    start = rounded((1 - lr * lamb) * p) if group["decoupled_weight_decay"] else p
    g = g if group["decoupled_weight_decay"] else g + lamb * p
    m = lerp(state["exp_avg"], g, 1 - b1)  # m_t = beta1 m_{t-1} + (1 - beta1) g_t
    v = b2 * state["exp_avg_sq"] + (1 - b2) * g * g  # v_t = beta2 v_{t-1} + (1 - beta2) g_t^2
    denominator = jnp.sqrt(v / state["correction"]) + eps
    # theta_t = theta_{t-1} - gamma ((1 - mu_t) g_t / (1 - mu_1 ... mu_t)
    #                                + mu_{t+1} m_t / (1 - mu_1 ... mu_{t+1})) / (sqrt(v^_t) + eps)
    new = rounded(start + state["rate"] * g / denominator)
    new = new + state["next_rate"] * m / denominator
    return update_to(p, new), {"step": t, "mu_product": state["product"], "exp_avg": m, "exp_avg_sq": v}


def _coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """1 - beta2^t, mu_1 ... mu_t, and what g_t and m_t are multiplied by."""
    lr, (_, b2), t = group["lr"], group["betas"], state["step"]
    mu, next_mu = _momentum(t, group), _momentum(t + 1, group)
    product = _product(state["mu_product"], mu)
    return {
        "correction": b2.one_minus_power(t),
        "product": product.high,
        "rate": -lr * (1 - mu) / (1 - product),
        "next_rate": -lr * next_mu / (1 - product * next_mu),
    }


def _momentum(t: Any, group: Any) -> Double:
    """mu_t = beta1 (1 - 0.96^(t psi) / 2)"""
    exponent = (Double.of(t) * group["momentum_decay"]).high
    return group["betas"][0] * (1 - Double.of(0.5 * lax.pow(jnp.full_like(exponent, 0.96), exponent)))


def _product(product: Any, mu: Double) -> Double:
    """torch keeps the product in float32 and reads it as a double, whatever the parameter's dtype is."""
    return Double.of(product.astype(jnp.float32) * mu.high.astype(jnp.float32))


def _buffers(options: Options) -> tuple[str, ...]:
    return ("mu_product", "exp_avg", "exp_avg_sq")


def _like(buffer: str, p: Any) -> jax.ShapeDtypeStruct | None:
    return jax.ShapeDtypeStruct((), jnp.float32) if buffer == "mu_product" else like_parameter(buffer, p)


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "eps")
    check_betas(options)
    check_nonnegative(options, "weight_decay", "momentum_decay")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    raise OptimizerError(f"optax.nadam has no schedule of its momentum; {NADAM.call(options)} is torch's")


NADAM = Algorithm(
    name="NAdam",
    defaults=(
        ("lr", 0.002),
        ("betas", (0.9, 0.999)),
        ("eps", 1e-08),
        ("weight_decay", 0),
        ("momentum_decay", 0.004),
        ("decoupled_weight_decay", False),
        ("maximize", False),
        ("foreach", None),
        ("capturable", False),
        ("differentiable", False),
    ),
    flags=("maximize", "decoupled_weight_decay"),
    recursion=_recursion,
    coefficients=_coefficients,
    buffers=_buffers,
    check=_check,
    filled=(
        ("maximize", False),
        ("foreach", None),
        ("capturable", False),
        ("differentiable", False),
        ("decoupled_weight_decay", False),
    ),
    counts=True,
    constructor=lambda options: "nadam",
    optax=_optax,
    complex=True,
    like=_like,
    own=("mu_product",),
    start=lambda buffer, options: 1 if buffer == "mu_product" else 0,
)
