"""GradScaler: torch's loss scale in a state_dict, and Flax's `DynamicScale`, which does the same in JAX.

Both multiply the scale after so many finite steps and shrink it after one that is not. Flax looks at its
count before a step and torch after it, so that Flax's `growth_interval` is torch's less one. Both names
are kept, each with its library's number.

https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.training.dynamic_scale import DynamicScale

from jaxstate.arrays.foreign import as_array
from jaxstate.errors import OptimizerError, quoted

_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
# Flax's own floor, far below any scale that is of use.
_TINY = float(np.finfo(np.float32).tiny)


def state_dict(scale: DynamicScale) -> dict[str, float | int]:
    """`torch.amp.GradScaler.state_dict` of a DynamicScale.

    Raises:
        OptimizerError: what is no DynamicScale; a `minimum_scale`, which torch does not have.

    >>> state_dict(DynamicScale(scale=1024.0, growth_interval=99))["growth_interval"]
    100
    """
    _check_scale(scale)
    if scale.minimum_scale is not None and float(scale.minimum_scale) > _TINY:
        raise OptimizerError(
            f"torch's scale may fall below minimum_scale={scale.minimum_scale}; if it never did, write "
            "scale.replace(minimum_scale=None)"
        )
    return {
        "scale": float(scale.scale),
        "growth_factor": float(scale.growth_factor),
        "backoff_factor": float(scale.backoff_factor),
        "growth_interval": int(scale.growth_interval) + 1,
        "_growth_tracker": int(scale.fin_steps),
    }


def load_state_dict(scale: DynamicScale, state_dict: Mapping[str, Any]) -> DynamicScale:
    """`torch.amp.GradScaler.load_state_dict`: a DynamicScale that scales from now on as torch would.

    Args:
        scale: gives what torch does not have, `minimum_scale`.
        state_dict: torch's.

    Raises:
        OptimizerError: a scaler that was disabled, in torch's words; keys of something else.

    >>> import jaxstate.optim.grad_scaler as grad_scaler
    >>> sd = grad_scaler.state_dict(DynamicScale(scale=8.0, fin_steps=3))
    >>> grad_scaler.state_dict(grad_scaler.load_state_dict(DynamicScale(), sd)) == sd
    True
    """
    _check_scale(scale)
    numbers = _numbers(state_dict)
    return scale.replace(
        scale=jnp.asarray(numbers["scale"], jnp.float32),
        growth_factor=float(numbers["growth_factor"]),
        backoff_factor=float(numbers["backoff_factor"]),
        growth_interval=int(numbers["growth_interval"]) - 1,
        fin_steps=jnp.asarray(numbers["_growth_tracker"], jnp.int32),
    )


def _check_scale(scale: Any) -> None:
    if not isinstance(scale, DynamicScale):
        raise OptimizerError(
            "a flax.training.dynamic_scale.DynamicScale is due, which is torch's GradScaler in JAX, not what "
            f"is of type {type(scale).__name__}"
        )


def _numbers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(state_dict, Mapping):
        raise OptimizerError(f"a GradScaler's state_dict is a dict, not of type {type(state_dict).__name__}")
    if not state_dict:
        raise OptimizerError(
            "The source state dict is empty, possibly because it was saved from a disabled instance of "
            "GradScaler."
        )
    missing, strange = [k for k in _KEYS if k not in state_dict], [k for k in state_dict if k not in _KEYS]
    if missing or strange:
        raise OptimizerError(
            f"a GradScaler's state_dict has the keys {quoted(_KEYS)}; this one lacks "
            f"{quoted(missing) or 'none'} and has {quoted(map(str, strange)) or 'none'} besides"
        )
    numbers = {key: _number(value) for key, value in state_dict.items()}
    if wrong := [key for key, number in numbers.items() if number is None]:
        raise OptimizerError(f"{quoted(wrong)} of a GradScaler's state_dict are to be numbers")
    return numbers


def _number(value: Any) -> Any:
    array = as_array(value)
    if array is not None and array.size == 1:
        return array.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
