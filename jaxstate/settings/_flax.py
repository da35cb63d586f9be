"""The layers of Flax, NNX and Linen, which name their arguments alike: what each is set to."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxstate.settings._pads import each, pads_of, transposed_pads

ARGUMENTS: Mapping[str, Callable[[Any], str]] = {
    "eps": lambda v: f"epsilon={v:.3g}",
    "momentum": lambda v: f"momentum={1 - v:.6g}" if v is not None else "momentum=... (torch averages)",
    "batch statistics": lambda v: f"use_running_average={not v}",
    "stride": lambda v: f"strides={v}",
    "dilation": lambda v: f"kernel_dilation={v}",
    "groups": lambda v: f"feature_group_count={v}",
    "dropout": lambda v: f"dropout_rate={v}",
    "padding mode": lambda v: f'padding="{v.upper()}"' if v != "zeros" else "padding=... without a mode",
    "computes in": lambda v: f"dtype={v}",
}


def settings(module: Any) -> dict[str, Any]:
    """What a module of NNX or Linen is set to, in torch's words."""
    name = type(module).__name__
    found: dict[str, Any] = {}
    if hasattr(module, "epsilon") and "Norm" in name:
        found["eps"] = float(module.epsilon)
    if name == "BatchNorm":
        found |= {"momentum": round(1 - module.momentum, 12)}
        found |= (
            {} if module.use_running_average is None else {"batch statistics": not module.use_running_average}
        )
    if name == "ConvTranspose":
        found |= _conv(module) | {"padding": transposed_pads(module.padding, *_geometry(module))}
    elif name == "Conv":
        found |= _conv(module) | {"padding": pads_of(module.padding, *_geometry(module))}
        found |= {"padding mode": _mode(module)}
    if name == "GroupNorm" and isinstance(module.num_groups, int):
        found["num_groups"] = module.num_groups
    if hasattr(module, "num_heads"):
        found["num_heads"] = module.num_heads
    if isinstance(rate := getattr(module, "dropout_rate", None), int | float):
        found["dropout"] = float(rate)
    if (dtype := _computing_dtype(module)) is not None:
        found["computes in"] = dtype
    return found


def _geometry(module: Any) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride and dilation."""
    size = module.kernel_size
    kernel = (size,) if isinstance(size, int) else tuple(size)
    return kernel, each(module.strides, len(kernel)), each(module.kernel_dilation, len(kernel))


def _conv(module: Any) -> dict[str, Any]:
    _, stride, dilation = _geometry(module)
    groups = getattr(module, "feature_group_count", 1)
    return {"stride": stride, "dilation": dilation, "groups": groups}


def _mode(module: Any) -> str:
    known = {"CIRCULAR": "circular", "REFLECT": "reflect"}
    return known.get(module.padding.upper(), "zeros") if isinstance(module.padding, str) else "zeros"


def _computing_dtype(module: Any) -> str | None:
    """The dtype in which Flax was told to compute, where that is narrower than float32."""
    dtype = getattr(module, "dtype", None)
    if dtype is None or isinstance(dtype, property):
        return None
    return np.dtype(dtype).name if np.dtype(dtype).itemsize < 4 else None
