"""Adagrad, as `torch.optim.Adagrad` writes it.

Duchi, Hazan and Singer, Adaptive subgradient methods for online learning and stochastic optimization
(https://jmlr.org/papers/v12/duchi11a.html);
https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import update_to
from jaxstate.optim._checks import check_fused, check_lr, check_nonnegative
from jaxstate.optim._double import Double
from jaxstate.optim._transform import transformation


def adagrad(
    lr: float = 0.01,
    lr_decay: float = 0,
    weight_decay: float = 0,
    initial_accumulator_value: float = 0,
    eps: float = 1e-10,
    foreach: bool | None = None,
    *,
    maximize: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Adagrad`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize: as torch's.
        initial_accumulator_value is the constructor's for all groups, as in torch.
        foreach, differentiable, fused: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = adagrad(lr=0.5, eps=0.0)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -7.0])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], jnp.array([-0.5, 0.5])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in ADAGRAD.defaults}
    return transformation(ADAGRAD, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    eps, lamb = group["eps"], group["weight_decay"]
    t = state["step"] + 1
    if group["maximize"]:
        g = -g
    g = g + lamb * p
    s = state["sum"] + g * g  # s_t = s_{t-1} + g_t^2
    # theta_t = theta_{t-1} - gamma_t g_t / (sqrt(s_t) + eps)
    return update_to(p, p + state["rate"] * g / (jnp.sqrt(s) + eps)), {"step": t, "sum": s}


def _coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """-gamma_t = -gamma / (1 + (t - 1) eta)"""
    return {"rate": -group["lr"] / (1 + group["lr_decay"] * Double.of(state["step"] - 1))}


def _buffers(options: Options) -> tuple[str, ...]:
    return ("sum",)


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
    check_fused(options)


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    if options["eps"] != 0 or options["lr_decay"] != 0:
        raise OptimizerError(
            "optax.adagrad adds eps under the root, torch outside of it, and its state has no count for an "
            f"lr_decay; {ADAGRAD.call(options)} is torch's"
        )
    return (("sum_of_squares", "sum"),)


ADAGRAD = Algorithm(
    name="Adagrad",
    defaults=(
        ("lr", 0.01),
        ("lr_decay", 0),
        ("eps", 1e-10),
        ("weight_decay", 0),
        ("initial_accumulator_value", 0),
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("fused", None),
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
        ("fused", None),
    ),
    counts=True,
    constructor=lambda options: "adagrad",
    optax=_optax,
    complex=True,
    # Frozen parameters have an entry too.
    eager=True,
    start=lambda buffer, options: options["initial_accumulator_value"],
)
