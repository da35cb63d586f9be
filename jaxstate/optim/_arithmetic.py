"""Arithmetic of torch's kernels, where a reader could take another order of roundings for the same."""

from typing import Any

import jax.numpy as jnp

from jaxstate.optim._double import rounded


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """torch.lerp, which goes from the nearer end."""
    near = start + weight * (end - start)
    far = end - (1 - weight) * (end - start)
    return jnp.where(weight.high < 0.5, near, far)


def update_to(p: Any, new: Any) -> Any:
    """The update that takes a parameter to its new value: torch adds in place, optax adds updates.

    Of two numbers within a factor of two the difference is exact (Sterbenz), so the sum rounds once, to
    what torch has.

    >>> p, new = jnp.float32(1.0), jnp.float32(1.0) - jnp.float32(1e-7)
    >>> bool(p + update_to(p, new) == new)
    True
    """
    return rounded(new) - p
