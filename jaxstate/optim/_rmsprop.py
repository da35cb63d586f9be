"""RMSprop, as `torch.optim.RMSprop` writes it.

Tieleman and Hinton, Lecture 6.5 of Neural networks for machine learning (2012); centered: Graves, Generating
sequences with recurrent neural networks (https://arxiv.org/abs/1308.0850);
https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import lerp, update_to
from jaxstate.optim._checks import check_lr, check_nonnegative
from jaxstate.optim._transform import transformation


def rmsprop(
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-08,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    *,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.RMSprop`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, alpha, eps, weight_decay, momentum, centered, maximize: as torch's.
        capturable, foreach, differentiable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = rmsprop(lr=0.5, alpha=0.75, eps=0.0)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -7.0])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], jnp.array([-1.0, 1.0])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in RMSPROP.defaults}
    return transformation(RMSPROP, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    lr, alpha, eps, lamb = (group[key] for key in ("lr", "alpha", "eps", "weight_decay"))
    if group["maximize"]:
        g = -g
    g = g + lamb * p
    v = alpha * state["square_avg"] + (1 - alpha) * g * g  # v_t = alpha v_{t-1} + (1 - alpha) g_t^2
    new = {"step": state["step"] + 1, "square_avg": v}
    if group["centered"]:
        new["grad_avg"] = a = lerp(state["grad_avg"], g, 1 - alpha)
        v = v - a * a
    if "momentum_buffer" not in state:
        return update_to(p, p + -lr * g / (jnp.sqrt(v) + eps)), new
    mu, b = group["momentum"], state["momentum_buffer"]
    # b_t = mu b_{t-1} + g_t / (sqrt(v_t) + eps). Without momentum torch leaves an existing buffer as it is.
    used = mu.high > 0
    b = jnp.where(used, mu * jnp.ones((), g.dtype), 1) * b + _quotient(used, g, v, eps)
    new["momentum_buffer"] = b
    return update_to(p, p + jnp.where(used, -lr * b, _quotient(~used, -lr * g, v, eps))), new


def _quotient(used: Any, g: Any, v: Any, eps: Any) -> Any:
    """g / (sqrt(v) + eps) where that is used, else 0.

    A quotient that two arrays are made of would be kept in memory, for all parameters at once; two of them,
    each for one array, are not.
    """
    return jnp.where(used, g, 0) / (jnp.sqrt(jnp.where(used, v, 1)) + eps)


def _buffers(options: Options) -> tuple[str, ...]:
    momentum = ("momentum_buffer",) if options["momentum"] > 0 else ()
    return ("square_avg", *momentum, *(("grad_avg",) if options["centered"] else ()))


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "eps", "momentum", "weight_decay", "alpha")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    if options["momentum"] != 0:
        raise OptimizerError(
            "optax.rmsprop keeps its momentum times the learning rate, torch without it; "
            f"{RMSPROP.call(options)} is torch's"
        )
    return (*((("mu", "grad_avg"),) if options["centered"] else ()), ("nu", "square_avg"))


RMSPROP = Algorithm(
    name="RMSprop",
    defaults=(
        ("lr", 0.01),
        ("momentum", 0),
        ("alpha", 0.99),
        ("eps", 1e-08),
        ("centered", False),
        ("weight_decay", 0),
        ("capturable", False),
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
    ),
    flags=("centered", "maximize"),
    recursion=_recursion,
    buffers=_buffers,
    check=_check,
    filled=(
        ("momentum", 0),
        ("centered", False),
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("capturable", False),
    ),
    counts=True,
    constructor=lambda options: "rmsprop",
    optax=_optax,
    complex=True,
)
