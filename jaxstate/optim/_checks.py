"""Checks of options that torch's constructors share, in torch's words."""

from typing import Any

import jax
import numpy as np

from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Options

_NAMES = {"lr": "learning rate", "eps": "epsilon value"}


def check_nonnegative(options: Options, *keys: str) -> None:
    """Raises OptimizerError for the first of these numbers that is negative or no number."""
    for key in keys:
        if not 0.0 <= options[key]:
            raise OptimizerError(f"Invalid {_NAMES.get(key, f'{key} value')}: {options[key]}")


def check_betas(options: Options) -> None:
    """Raises OptimizerError for a beta outside of [0, 1)."""
    for i, beta in enumerate(options["betas"]):
        if not 0.0 <= beta < 1.0:
            raise OptimizerError(f"Invalid beta parameter at index {i}: {beta}")


def check_lr(options: Options) -> None:
    """Raises OptimizerError for a learning rate that is an array of several numbers, or negative."""
    check_one_lr(options)
    check_nonnegative(options, "lr")


def check_one_lr(options: Options) -> None:
    """Raises OptimizerError for a learning rate that is an array of several numbers."""
    if np.size(options["lr"]) != 1:
        raise OptimizerError("Tensor lr must be 1-element")


def check_fused(options: Options) -> None:
    """Raises OptimizerError for implementations that torch cannot combine."""
    if options["fused"] and options["differentiable"]:
        raise OptimizerError("`fused` does not support `differentiable`")
    if options["fused"] and options["foreach"]:
        raise OptimizerError("`fused` and `foreach` cannot be `True` together.")


def is_array(value: Any) -> bool:
    """True where torch's user would have given a tensor."""
    return isinstance(value, (np.ndarray, jax.Array))
