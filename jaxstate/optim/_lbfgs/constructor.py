"""L-BFGS, as `torch.optim.LBFGS` writes it.

Liu and Nocedal, On the limited memory BFGS method for large scale optimization (1989);
https://docs.pytorch.org/docs/stable/generated/torch.optim.LBFGS.html. The recursion is in `_curvature`, the
iterations of a step in `_descent`, the line search in `_strong_wolfe`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._gradient import slopes_of
from jaxstate.optim._lbfgs.descent import Descent, descended
from jaxstate.optim._lbfgs.flat import Flat
from jaxstate.optim._lbfgs.state import LBFGSState
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._state import check_is_state
from jaxstate.optim._transform import transformation


def lbfgs(
    lr: float = 1,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
    *,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`torch.optim.LBFGS`: one update is one `optimizer.step(closure)`, with all its iterations.

    The update takes what the closure computes, once as values and once as a function:
    `tx.update(grads, state, params, value=loss, value_and_grad_fn=closure)`. It is a loop inside, so jit
    the function that calls it.

    Args:
        lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn: as torch's.
        param_groups: one of torch's dicts, whose `"params"` choose all.
        binding: tells torch's order and layout, in which vectors are kept and summed; without it, leaf order.

    Raises:
        OptimizerError: what torch refuses, in its words; parameters that are not all float32 or all float64.

    >>> params = {"w": jnp.array([3.0, -1.0])}
    >>> closure = jax.value_and_grad(lambda params: jnp.sum(params["w"] ** 2) / 2)
    >>> tx, (loss, grads) = lbfgs(lr=0.5), closure(params)
    >>> updates, _ = tx.update(grads, tx.init(params), params, value=loss, value_and_grad_fn=closure)
    >>> bool(jnp.allclose(optax.apply_updates(params, updates)["w"], 0, atol=1e-3))
    True
    """
    if max_eval is None:
        max_eval = max_iter * 5 // 4
    given = locals()
    options = {key: given[key] for key, _ in LBFGS.defaults}
    if param_groups and len(param_groups) != 1:
        raise OptimizerError("LBFGS doesn't support per-parameter options (parameter groups)")
    plain = transformation(LBFGS, options, param_groups, binding)

    def init(params: Any) -> Any:
        state: Any = plain.init(params)
        return LBFGSState.of(state, params, binding)

    update: Any = _update
    return optax.GradientTransformationExtraArgs(init, update)


def _update(
    updates: Any,
    state: LBFGSState,
    params: Any = None,
    *,
    value: Any = None,
    value_and_grad_fn: Any = None,
    **extra: Any,
) -> tuple[Any, LBFGSState]:
    if params is None or value is None or value_and_grad_fn is None:
        raise OptimizerError(_CALL)
    check_is_state(state, LBFGSState)
    leaves, treedef = jax.tree.flatten(params)
    shapes = tuple(jnp.shape(leaf) for leaf in leaves)
    if (found := leaf_paths(params), shapes) != (state.paths, state.flat.shapes):
        raise OptimizerError(f"these are not the parameters of init: {[*zip(found, shapes, strict=True)]}")
    vector = partial(_slope_vector, flat=state.flat, leaves=leaves, treedef=treedef)
    x, loss = state.flat.vector(leaves), _scalar(value)
    loss = loss.astype(jnp.promote_types(loss.dtype, x.dtype))

    def objective(x: Any) -> tuple[Any, Any]:
        value, grads = value_and_grad_fn(treedef.unflatten(state.flat.leaves(x)))
        return _scalar(value).astype(loss.dtype), vector(grads)

    # The first evaluation of torch's step is the one that the caller has made.
    start = Descent(x, loss, vector(updates), state.memory, state.n_iter, jnp.int32(0), jnp.int32(1), True)
    end = descended(start, state.param_groups[0], objective)
    step = jnp.full_like(state.step, end.n_iter)
    return treedef.unflatten(state.flat.leaves(end.x - x)), replace(state, step=step, memory=end.memory)


def _slope_vector(grads: Any, flat: Flat, leaves: Sequence[Any], treedef: Any) -> Any:
    """The vector of a gradient; zeros for a parameter that has none, as torch has it here."""
    rows = zip(flat.paths, leaves, slopes_of(grads, treedef), strict=True)
    return flat.vector([_slope(*row) for row in rows])


def _slope(path: str, p: Any, g: Any) -> Any:
    if g is None:
        return jnp.zeros_like(p)
    if jnp.shape(g) != jnp.shape(p):
        raise OptimizerError(f"the gradient of {path} has shape {jnp.shape(g)}, the parameter {jnp.shape(p)}")
    return jnp.asarray(g, p.dtype)


def _scalar(value: Any) -> Any:
    if jnp.size(value) != 1:
        raise OptimizerError(f"the loss is one number, not an array of shape {jnp.shape(value)}")
    return jnp.reshape(value, ())


_CALL = (
    "LBFGS evaluates the loss several times in a step: "
    "update(grads, state, params, value=loss, value_and_grad_fn=closure), "
    "where loss, grads = closure(params)"
)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> Any:
    raise OptimizerError(_CALL)


def _check(options: Options) -> None:
    if np.size(options["lr"]) != 1:
        raise OptimizerError("Tensor lr must be 1-element")
    if not 0.0 <= options["lr"]:
        raise OptimizerError(f"Invalid learning rate: {options['lr']}")
    if options["line_search_fn"] not in (None, "strong_wolfe"):
        raise OptimizerError("only 'strong_wolfe' is supported")
    for key in ("max_iter", "max_eval", "history_size"):
        if options[key] != int(options[key]):
            raise OptimizerError(f"{key} is a whole number, not {options[key]}")
    if options["history_size"] < 1:
        raise OptimizerError("history_size is 1 at least: torch's step fails without room for a pair")
    if options["line_search_fn"] and options["max_eval"] < 1:
        raise OptimizerError(f"torch's line search fails with max_eval={options['max_eval']}; 1 is the least")


def _optax(options: Options) -> Any:
    raise OptimizerError(
        "optax.lbfgs takes its first step from another norm and searches lines by another rule: "
        "no state of one is a state of the other"
    )


LBFGS = Algorithm(
    name="LBFGS",
    defaults=(
        ("lr", 1),
        ("max_iter", 20),
        ("max_eval", 25),
        ("tolerance_grad", 1e-7),
        ("tolerance_change", 1e-9),
        ("history_size", 100),
        ("line_search_fn", None),
    ),
    flags=("history_size", "line_search_fn"),
    recursion=_recursion,
    buffers=lambda options: (),
    check=_check,
    filled=(),
    counts=False,
    constructor=lambda options: "lbfgs",
    optax=_optax,
)
