"""Adadelta, as `torch.optim.Adadelta` writes it.

Zeiler, ADADELTA: an adaptive learning rate method (https://arxiv.org/abs/1212.5701);
https://docs.pytorch.org/docs/stable/generated/torch.optim.Adadelta.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import update_to
from jaxstate.optim._checks import check_lr, check_nonnegative
from jaxstate.optim._transform import transformation


def adadelta(
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-06,
    weight_decay: float = 0,
    foreach: bool | None = None,
    *,
    capturable: bool = False,
    maximize: bool = False,
    differentiable: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Adadelta`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, rho, eps, weight_decay, maximize: as torch's.
        foreach, capturable, differentiable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = adadelta(lr=0.5, rho=0.0, eps=0.25)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -4.0])}, tx.init(params), params)
    >>> expected = -0.5 * 0.5 / jnp.sqrt(jnp.array([9.25, 16.25])) * jnp.array([3.0, -4.0])
    >>> bool(jnp.allclose(updates["w"], expected))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in ADADELTA.defaults}
    return transformation(ADADELTA, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    lr, rho, eps, lamb = (group[key] for key in ("lr", "rho", "eps", "weight_decay"))
    v, u = state["square_avg"], state["acc_delta"]
    if group["maximize"]:
        g = -g
    g = g + lamb * p
    v = rho * v + (1 - rho) * g * g  # v_t = rho v_{t-1} + (1 - rho) g_t^2
    delta = jnp.sqrt(u + eps) / jnp.sqrt(v + eps) * g  # of the scale of the deltas before it
    u = rho * u + (1 - rho) * delta * delta  # u_t = rho u_{t-1} + (1 - rho) delta_t^2
    return update_to(p, p - lr * delta), {"step": state["step"] + 1, "square_avg": v, "acc_delta": u}


def _buffers(options: Options) -> tuple[str, ...]:
    return ("square_avg", "acc_delta")


def _check(options: Options) -> None:
    check_lr(options)
    if not 0.0 <= options["rho"] <= 1.0:
        raise OptimizerError(f"Invalid rho value: {options['rho']}")
    check_nonnegative(options, "eps", "weight_decay")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    return (("e_x", "acc_delta"), ("e_g", "square_avg"))


ADADELTA = Algorithm(
    name="Adadelta",
    defaults=(
        ("lr", 1.0),
        ("rho", 0.9),
        ("eps", 1e-06),
        ("weight_decay", 0),
        ("maximize", False),
        ("capturable", False),
        ("foreach", None),
        ("differentiable", False),
    ),
    flags=("maximize",),
    recursion=_recursion,
    buffers=_buffers,
    check=_check,
    filled=(
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("capturable", False),
    ),
    counts=True,
    constructor=lambda options: "adadelta",
    optax=_optax,
    complex=True,
)
