"""Adafactor, as `torch.optim.Adafactor` writes it: second moments as the product of two vectors.

Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory cost
(https://arxiv.org/abs/1804.04235), with torch's `lr` and its placement of the first epsilon:
https://docs.pytorch.org/docs/stable/generated/torch.optim.Adafactor.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import lerp, update_to
from jaxstate.optim._checks import check_one_lr
from jaxstate.optim._double import Double, rounded
from jaxstate.optim._in_torch_layout import in_torch_layout
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._transform import transformation


def adafactor(
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Adafactor`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, beta2_decay, eps, d, weight_decay, maximize: as torch's.
        foreach: kept and written back; it changes no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of
            torch's names.
        binding: makes torch's parameters of the model's leaves: Adafactor does another thing in another
            layout. Without it the leaves are torch's parameters, in torch's layout and by torch's names.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters; leaves
            that are no parameters of torch's; parameters of several dtypes in a group whose `eps[0]` is
            None, where torch takes the epsilon of whichever comes first for all of them.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([3.0, 4.0])}
    >>> tx = adafactor(lr=0.5)
    >>> updates, _ = tx.update({"w": jnp.array([7.0, -0.1])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], 0.5 * jnp.sqrt(12.5) * jnp.array([-1.0, 1.0])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in ADAFACTOR.defaults}
    algorithm = ADAFACTOR if binding is None else replace(ADAFACTOR, leaves="bound")
    return in_torch_layout(_with_epsilon(transformation(algorithm, options, param_groups, None)), binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    lr, (eps1, eps2), d, lamb = (group[key] for key in ("lr", "eps", "d", "weight_decay"))
    t, one = state["step"] + 1, jnp.ones((), p.dtype)
    if group["maximize"]:
        g = -g
    # 1 - beta2_t = t^tau; rho_t = min(lr, 1 / sqrt(t)); alpha_t = max(eps2, RMS(theta)) rho_t
    fresh = Double.of(jnp.power(t * one, group["beta2_decay"] * one), p.dtype)
    rho = jnp.minimum(lr * one, 1 / jnp.sqrt(t * one))
    alpha = jnp.maximum(eps2 * one, _rms(p)) * rho
    decayed = rounded((1 - lr * lamb) * p)  # theta = theta - lr lambda theta, rounded where torch rounds
    if g.ndim > 1:
        # R_t, C_t: means over the last axis and over the one before; V_t = R_t C_t / mean(R_t)
        row = lerp(state["row_var"], jnp.mean(g * g, -1, keepdims=True), fresh)
        col = lerp(state["col_var"], jnp.mean(g * g, -2, keepdims=True), fresh)
        v = row * col / jnp.maximum(jnp.mean(row, -2, keepdims=True), eps1 * one)
        new = {"row_var": row, "col_var": col}
    else:
        v = lerp(state["variance"], g * g, fresh)
        new = {"variance": v}
    u = g * lax.rsqrt(jnp.maximum(v, (eps1 * eps1) * one))
    # theta_t = theta - alpha_t U_t / max(1, RMS(U_t) / d)
    return update_to(p, decayed - alpha / jnp.maximum(1, _rms(u) / (d * one)) * u), {"step": t, **new}


def _rms(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(x * x))


def _with_epsilon(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation with the first epsilon of every group known, which depends on dtypes."""

    def init(params: Any) -> Any:
        state = tx.init(params)
        _known_epsilons(state, params)
        return state

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        known = state if params is None else _known_epsilons(state, params)
        new: Any
        updates, new = tx.update(updates, known, params)
        return updates, replace(new, param_groups=state.param_groups)

    given: Any = init, update
    return optax.GradientTransformation(*given)


def _known_epsilons(state: Any, params: Any) -> Any:
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    dtypes = {path: jnp.dtype(leaf.dtype) for path, leaf in leaves}
    return replace(state, param_groups=tuple(_known_epsilon(group, dtypes) for group in state.param_groups))


def _known_epsilon(group: ParamGroup, dtypes: Mapping[str, np.dtype]) -> ParamGroup:
    eps1, eps2 = group["eps"]
    here = sorted({str(dtypes[path]) for path in group.paths if path in dtypes})
    if eps1 is not None or not here:
        return group
    if len(here) > 1:
        raise OptimizerError(
            f"a group has parameters of {here}, and torch takes eps[0] of whichever comes first for all of "
            "them; say which it is, eps=(1.2e-07, 0.001), or make a group for each dtype"
        )
    made = Double.of(float(jnp.finfo(here[0]).eps), eps2.parts.dtype)
    return replace(group, numbers={**group.numbers, "eps": (made, eps2)})


def _like(buffer: str, p: Any) -> jax.ShapeDtypeStruct | None:
    if (buffer == "variance") == (len(p.shape) > 1):
        return None
    shape = list(p.shape)
    if buffer != "variance":
        shape[-1 if buffer == "row_var" else -2] = 1
    return jax.ShapeDtypeStruct(tuple(shape), p.dtype)


def _check(options: Options) -> None:
    check_one_lr(options)
    eps1, eps2 = options["eps"]
    if not 0.0 <= options["lr"]:
        raise OptimizerError(f"Learning rate should be >= 0 but is: {options['lr']}")
    if not 0.0 >= options["beta2_decay"]:
        raise OptimizerError(f"beta2_decay should be <= 0 but is: {options['beta2_decay']}")
    if eps1 is not None and not 0.0 <= eps1:
        raise OptimizerError(f"epsilon1 should be >= 0 but is: {eps1}")
    if not 0.0 <= eps2:
        raise OptimizerError(f"epsilon2 should be >= 0 but is: {eps2}")
    if not 1.0 <= options["d"]:
        raise OptimizerError(f"Clipping threshold d should be >= 1 but is: {options['d']}")
    if not 0.0 <= options["weight_decay"]:
        raise OptimizerError(f"weight_decay should be >= 0 but is: {options['weight_decay']}")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    raise OptimizerError(
        "optax.adafactor factors the two largest axes of JAX's layout, torch the last two of its own, and "
        f"keeps what one cannot make of the other; train with {ADAFACTOR.call(options)}"
    )


BUFFERS = ("row_var", "col_var", "variance")

ADAFACTOR = Algorithm(
    name="Adafactor",
    defaults=(
        ("lr", 1e-2),
        ("beta2_decay", -0.8),
        ("eps", (None, 1e-3)),
        ("d", 1.0),
        ("weight_decay", 0.0),
        ("foreach", None),
        ("maximize", False),
    ),
    flags=("maximize",),
    recursion=_recursion,
    buffers=lambda options: BUFFERS,
    check=_check,
    filled=(("foreach", None),),
    counts=True,
    like=_like,
    own=BUFFERS,
    constructor=lambda options: "adafactor",
    optax=_optax,
    leaves="torch",
)
