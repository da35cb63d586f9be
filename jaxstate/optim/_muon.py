"""Muon, as `torch.optim.Muon` writes it: momentum, orthogonalized.

Jordan et al., Muon: an optimizer for hidden layers in neural networks
(https://kellerjordan.github.io/posts/muon/); Liu et al., Muon is scalable for LLM training
(https://arxiv.org/abs/2502.16982); https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options
from jaxstate.optim._arithmetic import lerp, update_to
from jaxstate.optim._checks import check_one_lr
from jaxstate.optim._double import rounded
from jaxstate.optim._in_torch_layout import in_torch_layout
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._transform import transformation


def muon(
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.Muon`: the same signature, defaults, refusals and arithmetic, for matrices alone.

    What is a matrix is said by torch's shapes: the kernels of a stack of layers are, a convolution is not.
    The rest of a model is left to another optimizer, as in torch: `optax.partition` divides the leaves,
    and each part has its own state and its own file.

    Args:
        lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn: as torch's.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of
            torch's names.
        binding: makes torch's parameters of the model's leaves: Muon does another thing to a transposed
            matrix or a part of one. Without it the leaves are torch's parameters, by torch's names.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters; leaves
            that are no parameters of torch's.

    >>> params = {"w": jnp.eye(2)}
    >>> tx = muon(lr=0.5, weight_decay=0.0, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=20)
    >>> updates, _ = tx.update({"w": jnp.array([[0.0, 2.0], [-3.0, 0.0]])}, tx.init(params), params)
    >>> bool(jnp.allclose(updates["w"], -0.5 * jnp.array([[0.0, 1.0], [-1.0, 0.0]]), atol=0.01))
    True
    """
    given = locals()
    options = {key: given[key] for key, _ in MUON.defaults}
    algorithm = MUON if binding is None else replace(MUON, leaves="bound")
    return in_torch_layout(_of_matrices(transformation(algorithm, options, param_groups, None)), binding)


def _recursion(p: Any, g: Any, state: dict[str, Any], group: Any) -> tuple[Any, dict[str, Any]]:
    lr, lamb, mu = (group[key] for key in ("lr", "weight_decay", "momentum"))
    b = lerp(state["momentum_buffer"], g, 1 - mu)  # B_t = mu B_{t-1} + (1 - mu) g_t
    o = _orthogonal(lerp(g, b, mu) if group["nesterov"] else b, group)
    decayed = rounded((1 - lr * lamb) * p)  # theta = theta - lr lambda theta, rounded where torch rounds
    scale = _scale(group["adjust_lr_fn"], *p.shape)
    # theta_t = theta - lr scale O_t
    return update_to(p, decayed - lr * (scale * o)), {"step": state["step"] + 1, "momentum_buffer": b}


def _orthogonal(g: Any, group: Any) -> Any:
    """The orthogonal factor of a matrix, nearly: some steps of a quintic Newton-Schulz iteration.

    torch computes in bfloat16, and rounds once for each matrix product with what is added to it. Here the
    arrays are float32 that hold such numbers, as a compiler keeps to `reduce_precision` but feels free to
    leave out casts.
    """
    (a, b, c), wide = group["ns_coefficients"], g.shape[0] <= g.shape[1]
    x = _bfloat16(g).astype(jnp.float32)
    x = x if wide else x.T
    eps = group["eps"] * jnp.ones((), x.dtype)
    x = _bfloat16(x / jnp.maximum(_bfloat16(jnp.sqrt(jnp.sum(x * x))), eps))

    def step(_: Any, x: Any) -> Any:
        xx = _bfloat16(_product(x, x, along=1))  # XX'
        # X = a X + (b XX' + c (XX')^2) X
        return _bfloat16(a * x + _product(_bfloat16(b * xx + c * _product(xx, xx)), x))

    x = lax.fori_loop(0, group["ns_steps"], step, x)
    return (x if wide else x.T).astype(g.dtype)


def _product(x: Any, y: Any, along: int = 0) -> Any:
    """x @ y, or x @ y.T along 1, in float32, of numbers that bfloat16 holds.

    Such products are exact, and processors have instructions for just this sum.
    """
    x, y, axes = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), (((1,), (along,)), ((), ()))
    return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def _bfloat16(x: Any) -> Any:
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _scale(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """What lr is multiplied by, so that matrices of all shapes move alike."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def _of_matrices(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation, of matrices alone."""

    def init(params: Any) -> Any:
        leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        if strange := {path: tuple(leaf.shape) for path, leaf in leaves if len(leaf.shape) != 2}:
            listed = "".join(f"\n\t{path}: {list(shape)}" for path, shape in strange.items())
            raise OptimizerError(
                "Muon only supports 2D parameters whereas we found a parameter with size: "
                f"{list(next(iter(strange.values())))}; optax.partition leaves these to another optimizer:"
                f"{listed}"
            )
        return tx.init(params)

    given: Any = init, tx.update
    return optax.GradientTransformation(*given)


def _check(options: Options) -> None:
    check_one_lr(options)
    for key, what in (("lr", "Learning rate"), ("momentum", "momentum"), ("weight_decay", "weight decay")):
        if not 0.0 <= options[key]:
            raise OptimizerError(f"{what} should be >= 0 but is: {options[key]}")
    if options["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
        raise OptimizerError(f"Adjust learning rate function {options['adjust_lr_fn']} is not supported")
    if options["ns_steps"] >= 100:
        raise OptimizerError("Number of steps must be less than 100 for computational efficiency")
    if len(options["ns_coefficients"]) != 3:
        raise OptimizerError("Coefficients must be a tuple of exactly 3 values")


def _optax(options: Options) -> tuple[tuple[str, str], ...]:
    raise OptimizerError(
        "optax.contrib.muon corrects the bias of its momentum, iterates in the gradient's own precision and "
        f"has an Adam inside, torch does not: they train apart; train with {MUON.call(options)}"
    )


MUON = Algorithm(
    name="Muon",
    defaults=(
        ("lr", 1e-3),
        ("weight_decay", 0.1),
        ("momentum", 0.95),
        ("nesterov", True),
        ("ns_coefficients", (3.4445, -4.7750, 2.0315)),
        ("eps", 1e-7),
        ("ns_steps", 5),
        ("adjust_lr_fn", None),
    ),
    flags=("nesterov", "ns_steps", "adjust_lr_fn"),
    recursion=_recursion,
    buffers=lambda options: ("momentum_buffer",),
    check=_check,
    filled=(),
    counts=False,
    own=("momentum_buffer",),
    constructor=lambda options: "muon",
    optax=_optax,
    leaves="torch",
)
