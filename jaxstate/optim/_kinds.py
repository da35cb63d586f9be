"""Kinds: that an option is a number where torch's default is one, a pair where that is a pair, a flag a flag.

torch asks only how large a number is. `maximize="no"` passes there as a yes, and `lr=True` as a rate of one.
"""

from difflib import get_close_matches
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.foreign import as_array
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm, Options, is_numeric

# optax's names, which are as far from torch's as a name can be.
_OPTAX = {"learning_rate": "lr", "b1": "betas", "b2": "betas"}


def fits(value: Any, default: Any) -> bool:
    """True if a value is a number where the default is one, a pair where that is a pair.

    Where the default is None, so may the value be.

    >>> fits((0.9, 0.99), (0.9, 0.999)), fits(0.9, (0.9, 0.999)), fits(True, 1e-3), fits("0.1", 1e-3)
    (True, False, False, False)
    """
    if isinstance(default, tuple):
        same = isinstance(value, (tuple, list)) and len(value) == len(default)
        return same and all(fits(*pair) for pair in zip(value, default, strict=True))
    if value is None:
        return default is None
    array = as_array(value)
    if array is not None:
        return array.size == 1 and _is_real(array.dtype)
    return not isinstance(value, (tuple, list)) and is_numeric(value)


def check_kinds(algorithm: Algorithm, options: Options) -> None:
    """Raises OptimizerError for what is no number where torch's default is one, or no flag."""
    for key, default in algorithm.defaults:
        value = options[key]
        if key in algorithm.hyperparameters and not _is_checked_by_torch(key, value):
            check_number(key, value, default)
        if isinstance(default, bool) and not is_flag(value):
            raise OptimizerError(f"{key} is True or False, not {value!r}")


def check_number(key: str, value: Any, default: Any) -> None:
    """Raises OptimizerError for one option that does not fit its default."""
    if not fits(value, default):
        what = f"{len(default)} numbers" if isinstance(default, tuple) else "one number"
        raise OptimizerError(f"{key} is {what}, such as {default!r}, not {value!r}")


def check_spelling(algorithm: Algorithm, group: Options) -> None:
    """Raises OptimizerError for an option of a group that is one of torch's, misspelled; others are kept."""
    known = [key for key, _ in algorithm.defaults]
    for key in group:
        near = [_OPTAX[key]] if key in _OPTAX else get_close_matches(str(key), known, n=1, cutoff=0.85)
        if key not in known and near and near[0] in known:
            raise OptimizerError(
                f'a group has "{key}", which {algorithm.name} does not read; did you mean "{near[0]}"?'
            )


def _is_checked_by_torch(key: str, value: Any) -> bool:
    """True where torch has words of its own: for a rate of several numbers, and for Muon's coefficients."""
    several = as_array(value) is not None and np.size(value) != 1
    return (key == "lr" and several) or (key == "ns_coefficients" and isinstance(value, tuple))


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def is_flag(value: Any) -> bool:
    """True for True and False, and for what a file or a trace may have in their place."""
    array = as_array(value)
    return (array is not None and array.size == 1) or (isinstance(value, int) and value in (0, 1))
