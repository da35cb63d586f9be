"""Settings: what a layer was constructed with, beside its weights, in torch's words for both sides.

Each library has its own defaults, so right weights give wrong outputs: an eps of 1e-6 in Flax and 1e-5 in
torch, a padding that is "SAME" here and 0 there. What only one side knows is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Settings = dict[str, Any]
Pads = tuple[tuple[int, int], ...]

SAME = "SAME, which depends on the image's size"


def torch_settings(module: Any) -> Settings:
    """What a torch module is set to."""
    name = type(module).__name__
    found: Settings = {}
    if eps_name(module) and "Norm" in name:
        found["eps"] = _eps(module)
    if "BatchNorm" in name:
        found |= {"momentum": module.momentum, "batch statistics": _uses_batch(module)}
    if "ConvTranspose" in name:
        found |= _torch_conv(module) | {"padding": _torch_transposed(module)}
    elif "Conv" in name and hasattr(module, "kernel_size"):
        found |= _torch_conv(module) | {"padding": _torch_pads(module), "padding mode": module.padding_mode}
    if name == "GroupNorm":
        found["num_groups"] = module.num_groups
    if hasattr(module, "num_heads"):
        found["num_heads"] = module.num_heads
    weight = next(iter(module.parameters()), None)
    if weight is not None and weight.is_floating_point() and weight.element_size() < 4:
        found["computes in"] = str(weight.dtype).removeprefix("torch.")
    return found


def jax_settings(module: Any) -> Settings:
    """The same of a module of NNX or Linen."""
    name = type(module).__name__
    found: Settings = {}
    if hasattr(module, "epsilon") and "Norm" in name:
        found["eps"] = float(module.epsilon)
    if name == "BatchNorm":
        found |= {"momentum": round(1 - module.momentum, 12)}
        found |= (
            {} if module.use_running_average is None else {"batch statistics": not module.use_running_average}
        )
    if name == "ConvTranspose":
        found |= _jax_conv(module) | {"padding": _jax_transposed(module)}
    elif name == "Conv":
        found |= _jax_conv(module) | {"padding": _jax_pads(module), "padding mode": _mode(module)}
    if name == "GroupNorm" and isinstance(module.num_groups, int):
        found["num_groups"] = module.num_groups
    if hasattr(module, "num_heads"):
        found["num_heads"] = module.num_heads
    if (dtype := _computing_dtype(module)) is not None:
        found["computes in"] = dtype
    return found


def spelled(setting: str, value: Any, module: Any) -> str:
    """The argument of the JAX layer that has torch's value."""
    name = type(module).__name__
    arguments: Mapping[str, Callable[[Any], str]] = {
        "eps": lambda v: f"epsilon={v:.3g}",
        "momentum": lambda v: f"momentum={1 - v:.6g}" if v is not None else "momentum=... (torch averages)",
        "batch statistics": lambda v: f"use_running_average={not v}",
        "stride": lambda v: f"strides={v}",
        "dilation": lambda v: f"kernel_dilation={v}",
        "groups": lambda v: f"feature_group_count={v}",
        "padding mode": lambda v: f'padding="{v.upper()}"' if v != "zeros" else "padding=... without a mode",
    }
    return f"{name}(..., {arguments.get(setting, lambda v: f'{setting}={v}')(value)})"


def shown(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def same_pads(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pads:
    """What "SAME" pads an image of this shape with.

    >>> same_pads((8, 9), (3, 3), (2, 2), (1, 1))
    ((0, 1), (1, 1))
    """
    rows = zip(shape, kernel, stride, dilation, strict=True)
    totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in rows]
    return tuple((total // 2, total - total // 2) for total in totals)


def eps_name(module: Any) -> str:
    """The attribute in which a torch norm keeps its eps; "" if it has none."""
    return next((name for name in ("eps", "variance_epsilon") if hasattr(module, name)), "")


def _eps(module: Any) -> float:
    if (eps := getattr(module, eps_name(module))) is not None:
        return float(eps)
    weight = next(iter(module.parameters()), None)
    return float(np.finfo(np.float32 if weight is None else str(weight.dtype).removeprefix("torch.")).eps)


def _uses_batch(module: Any) -> bool:
    return bool(module.training) or module.running_mean is None


def _torch_conv(module: Any) -> Settings:
    return {"stride": tuple(module.stride), "dilation": tuple(module.dilation), "groups": module.groups}


def _torch_pads(module: Any) -> Pads:
    if module.padding == "same":
        return same_pads(module.kernel_size, module.kernel_size, module.stride, module.dilation)
    padding = (0,) * len(module.kernel_size) if module.padding == "valid" else module.padding
    return tuple((int(p), int(p)) for p in padding)


def _torch_transposed(module: Any) -> Pads:
    """As JAX counts it: what a transposed convolution's input is padded with, once it is dilated."""
    rows = zip(module.kernel_size, module.dilation, module.padding, module.output_padding, strict=True)
    return tuple((d * (k - 1) - p, d * (k - 1) - p + op) for k, d, p, op in rows)


def _jax_conv(module: Any) -> Settings:
    rank = len(_kernel(module))
    groups = getattr(module, "feature_group_count", 1)
    return {
        "stride": _each(module.strides, rank),
        "dilation": _each(module.kernel_dilation, rank),
        "groups": groups,
    }


def _jax_pads(module: Any) -> Any:
    padding, kernel = module.padding, _kernel(module)
    stride, dilation = _each(module.strides, len(kernel)), _each(module.kernel_dilation, len(kernel))
    if not isinstance(padding, str):
        return _pairs(padding, len(kernel))
    if padding.upper() == "VALID":
        return ((0, 0),) * len(kernel)
    if padding.upper() == "CAUSAL":
        return ((dilation[0] * (kernel[0] - 1), 0),)
    return same_pads(kernel, kernel, stride, dilation) if set(stride) == {1} else SAME


def _jax_transposed(module: Any) -> Any:
    padding, kernel = module.padding, _kernel(module)
    stride, dilation = _each(module.strides, len(kernel)), _each(module.kernel_dilation, len(kernel))
    if not isinstance(padding, str):
        return _pairs(padding, len(kernel))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    rows = list(zip(reach, stride, strict=True))
    if padding.upper() == "VALID":
        return tuple((k - 1, s - 1 + max(k - s, 0)) for k, s in rows)
    lefts = [k - 1 if s > k - 1 else -(-(k + s - 2) // 2) for k, s in rows]
    return tuple((left, k + s - 2 - left) for left, (k, s) in zip(lefts, rows, strict=True))


def _mode(module: Any) -> str:
    known = {"CIRCULAR": "circular", "REFLECT": "reflect"}
    return known.get(module.padding.upper(), "zeros") if isinstance(module.padding, str) else "zeros"


def _kernel(module: Any) -> tuple[int, ...]:
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return (value or 1,) * rank if value is None or isinstance(value, int) else tuple(value)


def _pairs(padding: Any, rank: int) -> Pads:
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)


def _computing_dtype(module: Any) -> str | None:
    """The dtype in which Flax was told to compute, where that is narrower than float32."""
    dtype = getattr(module, "dtype", None)
    if dtype is None or isinstance(dtype, property):
        return None
    return np.dtype(dtype).name if np.dtype(dtype).itemsize < 4 else None
