"""Adam, as `torch.optim.Adam` writes it, with AMSGrad and with either kind of weight decay.

Kingma and Ba, Adam: a method for stochastic optimization (https://arxiv.org/abs/1412.6980); Reddi et al.,
On the convergence of Adam and beyond (https://openreview.net/forum?id=ryQu7f-RZ);
https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import lerp
from jaxstate.optim._checks import check_betas, check_fused, check_lr, check_nonnegative, is_array
from jaxstate.optim._double import rounded
from jaxstate.optim._scheduled import Rate
from jaxstate.optim._transform import transformation


def adam(
    lr: Rate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    amsgrad: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    decoupled_weight_decay: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Adam`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as torch's;
            lr may be a schedule, `count -> rate`.
        foreach, capturable, differentiable, fused: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = adam(lr=0.5, eps=0.0)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -7.0])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], jnp.array([-0.5, 0.5])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in ADAM.defaults}
    return transformation(ADAM, options, param_groups, binding)


def recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    """One step of Adam for one parameter; the comments are the paper's symbols."""
    lr, (b1, b2), eps, lamb = (group[key] for key in ("lr", "betas", "eps", "weight_decay"))
    m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"] + 1
    if group["maximize"]:
        g = -g
    # theta = theta - lr lambda theta, rounded where torch rounds; or g = g + lambda theta
    decay = rounded((1 - lr * lamb) * p) - p if group["decoupled_weight_decay"] else 0
    g = g if group["decoupled_weight_decay"] else g + lamb * p
    m = lerp(m, g, 1 - b1)  # m_t = beta1 m_{t-1} + (1 - beta1) g_t
    v = b2 * v + (1 - b2) * g * g  # v_t = beta2 v_{t-1} + (1 - beta2) g_t^2
    new = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    if group["amsgrad"]:
        # The largest v so far, without its bias correction: torch corrects after the maximum.
        new["max_exp_avg_sq"] = v = jnp.maximum(state["max_exp_avg_sq"], v)
    # theta_t = theta - lr m^_t / (sqrt(v^_t) + eps); m^_t = m_t / (1 - beta1^t), v^_t = v_t / (1 - beta2^t)
    return decay + state["rate"] * m / (jnp.sqrt(v) / state["root"] + eps), new


def coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """-lr / (1 - beta1^t) and sqrt(1 - beta2^t)"""
    lr, (b1, b2) = group["lr"], group["betas"]
    return {"rate": -lr / b1.one_minus_power(state["step"]), "root": b2.one_minus_power(state["step"]).sqrt()}


def _buffers(options: Options) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options["amsgrad"] else ()))


def _check(options: Options) -> None:
    betas, capturable = options["betas"], options["capturable"] or not options["foreach"]
    words = "as a Tensor is not supported for capturable=False and foreach=True"
    if is_array(options["lr"]) and not capturable:
        raise OptimizerError(f"lr {words}")
    check_lr(options)
    check_nonnegative(options, "eps")
    check_betas(options)
    check_nonnegative(options, "weight_decay")
    if not all(isinstance(beta, float) for beta in betas) and not all(map(is_array, betas)):
        raise OptimizerError("betas must be either both floats or both Tensors")
    if is_array(betas[0]) and not capturable:
        raise OptimizerError(f"betas[0] {words}")
    check_fused(options)


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    if options["amsgrad"]:
        raise OptimizerError("optax.amsgrad corrects the bias before the maximum, torch after it")
    return (("mu", "exp_avg"), ("nu", "exp_avg_sq"))


FILLED = (
    ("amsgrad", False),
    ("maximize", False),
    ("foreach", None),
    ("capturable", False),
    ("differentiable", False),
    ("decoupled_weight_decay", False),
    ("fused", None),
)

ADAM = Algorithm(
    name="Adam",
    defaults=(
        ("lr", 1e-3),
        ("betas", (0.9, 0.999)),
        ("eps", 1e-8),
        ("weight_decay", 0),
        ("amsgrad", False),
        ("maximize", False),
        ("foreach", None),
        ("capturable", False),
        ("differentiable", False),
        ("fused", None),
        ("decoupled_weight_decay", False),
    ),
    flags=("amsgrad", "maximize", "decoupled_weight_decay"),
    recursion=recursion,
    coefficients=coefficients,
    buffers=_buffers,
    check=_check,
    filled=FILLED,
    counts=True,
    constructor=lambda options: "adamw" if options["decoupled_weight_decay"] else "adam",
    implied=("decoupled_weight_decay",),
    complex=True,
    optax=_optax,
)
