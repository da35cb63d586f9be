"""SGD with momentum, as `torch.optim.SGD` writes it.

Sutskever et al., On the importance of initialization and momentum in deep learning (2013), with torch's
placement of the learning rate: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._checks import check_fused, check_lr, check_nonnegative
from jaxstate.optim._scheduled import Rate
from jaxstate.optim._transform import transformation


def sgd(
    lr: Rate = 1e-3,
    momentum: float = 0,
    dampening: float = 0,
    weight_decay: float = 0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
    differentiable: bool = False,
    fused: bool | None = None,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.SGD`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, momentum, dampening, weight_decay, nesterov, maximize: as torch's;
            lr may be a schedule, `count -> rate`.
        foreach, differentiable, fused: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = sgd(lr=0.5)
    >>> updates, _ = tx.update({"w": jnp.array([1.0, 4.0])}, tx.init(params), params)
    >>> bool((optax.apply_updates(params, updates)["w"] == jnp.array([0.5, 0.0])).all())
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in SGD.defaults}
    return transformation(SGD, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    lr, mu, tau, lamb = (group[key] for key in ("lr", "momentum", "dampening", "weight_decay"))
    if group["maximize"]:
        g = -g
    g = g + lamb * p
    if "momentum_buffer" not in state:
        return -lr * g, {"step": state["step"] + 1}
    t, b = state["step"], state["momentum_buffer"]
    # b_t = mu b_{t-1} + (1 - tau) g_t; b_1 = g_1, without dampening; and without momentum torch leaves an
    # existing buffer as it is. Weights say which, since a choice between arrays costs a copy of the buffer.
    used, first, one = mu.high != 0, t == 0, jnp.ones((), g.dtype)
    keep = jnp.where(used, jnp.where(first, 0, mu * one), 1)
    take = jnp.where(used, jnp.where(first, 1, (1 - tau) * one), 0)
    b = keep * b + take * g
    step = g + mu * b if group["nesterov"] else b
    step = jnp.where(used, one, 0) * step + jnp.where(used, 0, g)
    return -lr * step, {"step": jnp.where(used, t + 1, t), "momentum_buffer": b}


def _buffers(options: Options) -> tuple[str, ...]:
    return ("momentum_buffer",) if options["momentum"] != 0 else ()


def _check(options: Options) -> None:
    check_lr(options)
    check_nonnegative(options, "momentum", "weight_decay")
    if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise OptimizerError("Nesterov momentum requires a momentum and zero dampening")
    check_fused(options)


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    if options["momentum"] == 0 or options["dampening"] != 0:
        raise OptimizerError(
            "optax.trace is torch's momentum without dampening, and nothing else of SGD has a state: "
            f"it is not {SGD.call(options)}"
        )
    return (("trace", "momentum_buffer"),)


SGD = Algorithm(
    name="SGD",
    defaults=(
        ("lr", 1e-3),
        ("momentum", 0),
        ("dampening", 0),
        ("weight_decay", 0),
        ("nesterov", False),
        ("maximize", False),
        ("foreach", None),
        ("differentiable", False),
        ("fused", None),
    ),
    flags=("nesterov", "maximize"),
    recursion=_recursion,
    buffers=_buffers,
    check=_check,
    filled=(
        ("nesterov", False),
        ("maximize", False),
        ("foreach", None),
        ("differentiable", False),
        ("fused", False),
    ),
    counts=False,
    constructor=lambda options: "sgd",
    complex=True,
    optax=_optax,
)
