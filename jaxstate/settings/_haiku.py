"""The layers of Haiku: what each is set to. Whether a BatchNorm is training is said in its call."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxstate.settings._pads import each, pads_of, transposed_pads

ARGUMENTS: Mapping[str, Callable[[Any], str]] = {
    "eps": lambda v: f"eps={v:.3g}",
    "momentum": lambda v: f"decay_rate={1 - v:.6g}" if v is not None else "decay_rate=... (torch averages)",
    "batch statistics": lambda v: f"is_training={v}",
    "dilation": lambda v: f"rate={v}",
    "groups": lambda v: f"feature_group_count={v}",
    "num_groups": lambda v: f"groups={v}",
}


def recognises(module: Any) -> bool:
    """True for a module of Haiku's, or of a user's in Haiku."""
    haiku = sys.modules.get("haiku")
    return haiku is not None and isinstance(module, haiku.Module)


def settings(module: Any) -> dict[str, Any]:
    """What a module is set to, in torch's words."""
    haiku, found = sys.modules["haiku"], {}
    if "Norm" in type(module).__name__ and isinstance(getattr(module, "eps", None), int | float):
        found["eps"] = float(module.eps)
    if isinstance(module, haiku.BatchNorm):
        found["momentum"] = round(1 - float(module.mean_ema.decay), 12)
    if isinstance(module, haiku.ConvNDTranspose):
        kernel, stride = tuple(module.kernel_shape), each(module.stride, module.num_spatial_dims)
        found |= {"stride": stride, "dilation": (1,) * len(kernel), "groups": 1}
        if module.output_shape is None:
            found |= {"padding": transposed_pads(module.padding, kernel, stride, (1,) * len(kernel))}
    elif isinstance(module, haiku.ConvND):
        found |= _conv(module)
    if isinstance(module, haiku.GroupNorm):
        found["num_groups"] = module.groups
    if isinstance(module, haiku.MultiHeadAttention):
        found["num_heads"] = module.num_heads
    return found


def _conv(module: Any) -> dict[str, Any]:
    geometry = tuple(tuple(axis) for axis in (module.kernel_shape, module.stride, module.kernel_dilation))
    return {
        "stride": geometry[1],
        "dilation": geometry[2],
        "groups": module.feature_group_count,
        "padding": pads_of(module.padding, *geometry),
        "padding mode": "zeros",
    }
