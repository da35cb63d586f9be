"""Rprop, as `torch.optim.Rprop` writes it.

Riedmiller and Braun, A direct adaptive method for faster backpropagation learning (1993);
https://docs.pytorch.org/docs/stable/generated/torch.optim.Rprop.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import update_to
from jaxstate.optim._checks import check_lr
from jaxstate.optim._double import rounded
from jaxstate.optim._transform import transformation


def rprop(
    lr: float = 0.01,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-06, 50),
    *,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Rprop`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, etas, step_sizes, maximize: as torch's.
        capturable, foreach, differentiable: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = rprop(lr=0.5)
    >>> updates, _ = tx.update({"w": jnp.array([3.0, -7.0])}, tx.init(params), params)
    >>> updates["w"].tolist()
    [-0.5, 0.5]
    """
    given = locals()
    options = {key: given[key] for key, _ in RPROP.defaults}
    return transformation(RPROP, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    (minus, plus), (least, most) = group["etas"], group["step_sizes"]
    t = state["step"] + 1
    if group["maximize"]:
        g = -g
    one = jnp.ones_like(g)
    eta = jnp.where(t == 1, group["lr"] * one, state["step_size"])  # eta_0 = gamma
    sign = _sign(g, state["prev"])
    # eta_t = eta_{t-1} times eta^+ where the sign has stayed, eta^- where it has turned, within its bounds
    factor = jnp.where(sign > 0, plus.high, jnp.where(sign < 0, minus.high, 1.0))
    eta = rounded(jnp.clip(eta * factor.astype(g.dtype), least * one, most * one))
    g = jnp.where(sign < 0, 0, g)  # a gradient that has turned is forgotten
    new = p - jnp.sign(g) * eta  # theta_t = theta_{t-1} - eta_t sign(g_t)
    return update_to(p, new), {"step": t, "prev": g, "step_size": eta}


def _sign(g: Any, before: Any) -> Any:
    """The sign of a product, which a program that takes tiny numbers for zero must not form."""
    tiny = jnp.finfo(g.dtype).smallest_normal
    lost = (jnp.abs(g) * tiny**-0.5) * (jnp.abs(before) * tiny**-0.5) <= jnp.finfo(g.dtype).eps / 2
    return jnp.where(lost, 0, jnp.sign(g) * jnp.sign(before))


def _buffers(options: Options) -> tuple[str, ...]:
    return ("prev", "step_size")


def _check(options: Options) -> None:
    check_lr(options)
    if not 0.0 < options["etas"][0] < 1.0 < options["etas"][1]:
        raise OptimizerError(f"Invalid eta values: {options['etas'][0]}, {options['etas'][1]}")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    raise OptimizerError(f"optax.rprop moves by the step before; {RPROP.call(options)} is torch's")


RPROP = Algorithm(
    name="Rprop",
    defaults=(
        ("lr", 0.01),
        ("etas", (0.5, 1.2)),
        ("step_sizes", (1e-06, 50)),
        ("foreach", None),
        ("maximize", False),
        ("differentiable", False),
        ("capturable", False),
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
    constructor=lambda options: "rprop",
    optax=_optax,
    complex=True,
    start=lambda buffer, options: options["lr"] if buffer == "step_size" else 0,
)
