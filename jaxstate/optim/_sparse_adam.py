"""SparseAdam, as `torch.optim.SparseAdam` writes it: Adam of the rows that a gradient specifies.

Kingma and Ba, Adam: a method for stochastic optimization (https://arxiv.org/abs/1412.6980), with nothing
done to other rows, not even to their moments:
https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._checks import check_betas, check_one_lr
from jaxstate.optim._transform import transformation


def sparse_adam(
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    maximize: bool = False,
    *,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.SparseAdam`: the same signature, defaults, refusals and arithmetic.

    A gradient is a `jax.experimental.sparse.BCOO` in the leaf's layout, of any `n_sparse`, or None. What it
    specifies is updated, zeros included; indices that repeat are added up, those out of bounds are padding.
    A dense gradient is refused, as torch refuses it: which of its zeros were touched, it does not say.

    Args:
        lr, betas, eps, maximize: as torch's.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> from jax.experimental.sparse import BCOO
    >>> params = {"table": jnp.ones((4, 2))}
    >>> grads = {"table": BCOO((jnp.array([[3.0, -7.0]]), jnp.array([[2]])), shape=(4, 2))}
    >>> tx = sparse_adam(lr=0.5)
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> bool(jnp.allclose(updates["table"], jnp.array([[0, 0], [0, 0], [-0.5, 0.5], [0, 0]])))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in SPARSE_ADAM.defaults}
    return transformation(SPARSE_ADAM, options, param_groups, binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    (b1, b2), eps = group["betas"], group["eps"]
    t, (rows, g) = state["step"] + 1, _rows(g)
    if group["maximize"]:
        g = -g
    m, v = (state[key].at[rows].get(mode="fill", fill_value=0) for key in ("exp_avg", "exp_avg_sq"))
    m = m + (1 - b1) * (g - m)  # m_t = beta1 m_{t-1} + (1 - beta1) g_t
    v = v + (1 - b2) * (g * g - v)  # v_t = beta2 v_{t-1} + (1 - beta2) g_t^2
    # theta_t = theta - lr sqrt(1 - beta2^t) / (1 - beta1^t) m_t / (sqrt(v_t) + eps): eps is not corrected
    # Minus zero, added, changes no bit of the other rows.
    update = jnp.full_like(p, -0.0).at[rows].set(-state["size"] * (m / (jnp.sqrt(v) + eps)), mode="drop")
    return update, {
        "step": t,
        "exp_avg": state["exp_avg"].at[rows].set(m, mode="drop"),
        "exp_avg_sq": state["exp_avg_sq"].at[rows].set(v, mode="drop"),
    }


def _coefficients(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    b1, b2 = group["betas"]
    return {
        "size": group["lr"] * b2.one_minus_power(state["step"]).sqrt() / b1.one_minus_power(state["step"])
    }


def _rows(g: Any) -> tuple[tuple[Any, ...], Any]:
    """The indices that a BCOO specifies, each once, and the values there."""
    if g.n_batch:
        raise OptimizerError(
            f"this gradient has {g.n_batch} batch axes, and torch's have none: "
            "jax.experimental.sparse.bcoo_update_layout(gradient, n_batch=0) makes them sparse"
        )
    once = g.sum_duplicates(nse=g.nse, remove_zeros=False)
    return tuple(jnp.moveaxis(once.indices, -1, 0)), once.data


def _check(options: Options) -> None:
    check_one_lr(options)
    if not 0.0 < options["lr"]:
        raise OptimizerError(f"Invalid learning rate: {options['lr']}")
    if not 0.0 < options["eps"]:
        raise OptimizerError(f"Invalid epsilon value: {options['eps']}")
    check_betas(options)


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    raise OptimizerError(f"optax has no Adam that leaves rows alone; train with {SPARSE_ADAM.call(options)}")


SPARSE_ADAM = Algorithm(
    name="SparseAdam",
    defaults=(("lr", 1e-3), ("betas", (0.9, 0.999)), ("eps", 1e-8), ("maximize", False)),
    flags=("maximize",),
    recursion=_recursion,
    coefficients=_coefficients,
    buffers=lambda options: ("exp_avg", "exp_avg_sq"),
    check=_check,
    # torch reads it as False where it is lacking.
    filled=(("maximize", False),),
    counts=True,
    step=int,
    constructor=lambda options: "sparse_adam",
    optax=_optax,
    sparse=True,
)
