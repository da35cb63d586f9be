"""RAdam, Adam with a rectified variance, as `torch.optim.RAdam` writes it.

Liu et al., On the variance of the adaptive learning rate and beyond (https://arxiv.org/abs/1908.03265);
https://docs.pytorch.org/docs/stable/generated/torch.optim.RAdam.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from jax import lax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import lerp, update_to
from jaxstate.optim._checks import check_betas, check_lr, check_nonnegative
from jaxstate.optim._double import Double, rounded
from jaxstate.optim._transform import transformation


def radam(
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.RAdam`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, betas, eps, weight_decay, decoupled_weight_decay, maximize: as torch's.
        foreach, capturable, differentiable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = radam(lr=0.5)
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], -0.5 * params["w"]))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in RADAM.defaults}
    return transformation(RADAM, options, param_groups, binding)


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
    step = lr * (m / state["correction"])
    adaptive = state["root"] / (jnp.sqrt(v) + eps)
    # theta_t = theta_{t-1} - gamma m^_t (r_t sqrt(1 - beta2^t) / (sqrt(v_t) + eps) if rho_t > 5 else 1)
    new = start - jnp.where(state["rectified"], state["r"] * (step * adaptive), step)
    return update_to(p, new), {"step": t, "exp_avg": m, "exp_avg_sq": v}


def _coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """1 - beta1^t, sqrt(1 - beta2^t), whether rho_t > 5, and r_t"""
    b1, b2 = group["betas"]
    rectified, r = rectifier(b2, state["step"])
    roots = {
        "correction": b1.one_minus_power(state["step"]),
        "root": b2.one_minus_power(state["step"]).sqrt(),
    }
    return {**roots, "rectified": rectified, "r": r}


def rectifier(b2: Double, t: Any) -> tuple[Any, Double]:
    """Whether rho_t > 5, and r_t if so.

    rho_inf = 2 / (1 - beta2) - 1 and rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t).
    """
    infinite = _infinite(b2)
    excess = _excess_in_double(b2, t) if infinite.dtype == jnp.float64 else _excess(b2, t)
    # Where it is not used it may have no root.
    rho, infinite = jnp.maximum(excess, 0) + 5, jnp.maximum(infinite, 5)
    square = (rho - 4) * (rho - 2) * infinite / ((infinite - 4) * (infinite - 2) * rho)
    return excess > 0, Double.of(jnp.sqrt(square))


def _infinite(b2: Double) -> Any:
    return 2 / (1 - b2).high - 1


def _excess_in_double(b2: Double, t: Any) -> Any:
    """rho_t - 5 with the roundings of torch."""
    t = t.astype(jnp.float64)
    power = lax.pow(b2.high, t)
    return _infinite(b2) - 2 * t * power / (1 - power) - 5


def _excess(b2: Double, t: Any) -> Any:
    """rho_t - 5 in float32, where two numbers near 2000 would leave nothing of their difference.

    With x = -log beta2 and y = t x, 2 t beta2^t / (1 - beta2^t) = 2 t / (e^y - 1). While y is small,
    t / (e^y - 1) = 1 / x - t / 2 + t h(y) with h(y) = y / 12 - y^3 / 720 + ..., and what is large is gone:
    rho_t - 5 = (t - 5) + (2 / q - 2 / x - 1) - 2 t h(y) with q = 1 - beta2.
    """
    q, t = (1 - b2).high, t.astype(jnp.float32)
    x = -jnp.log1p(-q)
    y = t * x
    late = (_infinite(b2) - 5) - 2 * t / jnp.expm1(y)
    near = jnp.minimum(y, 1.0)
    h = near * polynomial(near**2, _BERNOULLI)
    early = (t - 5) + _offset(q, x) - 2 * t * h
    return jnp.where(y < 1, early, late)


def _offset(q: Any, x: Any) -> Any:
    """2 / q - 2 / x - 1, which goes as q / 6."""
    return jnp.where(q < 0.25, q * polynomial(q, _GREGORY), 2 / q - 2 / x - 1)


def polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """The sum of `coefficients[i] * x**i`, by Horner's rule."""
    total = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


# h(y) / y in powers of y^2: the Bernoulli numbers B_2k / (2 k)!
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)
# (2 / q - 2 / x - 1) / q in powers of q: twice Gregory's coefficients
_GREGORY = (
    1 / 6,
    1 / 12,
    19 / 360,
    3 / 80,
    863 / 30240,
    275 / 12096,
    33953 / 1814400,
    8183 / 518400,
    3250433 / 239500800,
)


def _buffers(options: Options) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "eps")
    check_betas(options)
    check_nonnegative(options, "weight_decay")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    if options["eps"] != 0:
        raise OptimizerError(
            f"optax.radam adds eps to the corrected root, torch before; {RADAM.call(options)} is torch's"
        )
    return (("mu", "exp_avg"), ("nu", "exp_avg_sq"))


RADAM = Algorithm(
    name="RAdam",
    defaults=(
        ("lr", 0.001),
        ("betas", (0.9, 0.999)),
        ("eps", 1e-08),
        ("weight_decay", 0),
        ("maximize", False),
        ("foreach", None),
        ("capturable", False),
        ("decoupled_weight_decay", False),
        ("differentiable", False),
    ),
    flags=("maximize", "decoupled_weight_decay"),
    recursion=_recursion,
    coefficients=_coefficients,
    buffers=_buffers,
    check=_check,
    filled=(
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("decoupled_weight_decay", False),
        ("capturable", False),
    ),
    counts=True,
    constructor=lambda options: "radam",
    optax=_optax,
    complex=True,
)
