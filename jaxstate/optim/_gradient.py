"""Gradients: that each has its parameter's shape, and is of the kind that the optimizer takes.

JAX differentiates into dense arrays. A sparse gradient is a `jax.experimental.sparse.BCOO`, as
`jax.experimental.sparse.grad` makes them, or as the rows that a lookup has touched:
`BCOO((rows, ids[:, None]), shape=table.shape)`.
"""

import sys
from typing import Any

import jax.numpy as jnp

from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm


def slopes_of(gradients: Any, treedef: Any) -> list[Any]:
    """The gradient of each parameter, in leaf order.

    Args:
        gradients: a tree like the parameters, in which None stands for no gradient.
        treedef: of the parameters.

    Raises:
        OptimizerError: another tree.
    """
    try:
        return treedef.flatten_up_to(gradients)
    except (ValueError, TypeError) as error:
        raise OptimizerError(f"the gradients are no tree like the parameters: {error}") from error


def check_gradient(algorithm: Algorithm, path: str, g: Any, p: Any) -> None:
    """Raise OptimizerError for a gradient that does not fit, in torch's words where it has some."""
    sparse = is_sparse(g)
    if sparse and not algorithm.sparse:
        raise OptimizerError(f"{algorithm.name} does not support sparse gradients, as {path} has one")
    if algorithm.sparse and not sparse:
        raise OptimizerError(
            f"{algorithm.name} does not support dense gradients, please consider Adam instead: {path} has "
            "one; a gradient of rows is jax.experimental.sparse.BCOO((rows, ids[:, None]), shape=table.shape)"
        )
    shape = g.shape if sparse else jnp.shape(g)
    if shape != jnp.shape(p):
        raise OptimizerError(f"the gradient of {path} has shape {shape}, the parameter {jnp.shape(p)}")


def is_sparse(g: Any) -> bool:
    """True for an array of `jax.experimental.sparse`."""
    sparse = sys.modules.get("jax.experimental.sparse")
    return sparse is not None and isinstance(g, sparse.JAXSparse)


def widened(g: Any, dtype: Any) -> Any:
    """The gradient in another dtype."""
    return g.astype(dtype) if is_sparse(g) else jnp.asarray(g, dtype)
