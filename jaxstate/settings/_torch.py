"""torch's layers, and transformers', as far as they call things alike: what each is set to."""

from typing import Any

import numpy as np

from jaxstate.settings._pads import Pads, same_pads, torch_transposed_pads


def torch_settings(module: Any) -> dict[str, Any]:
    """What a torch module is set to, by the words that all settings go by."""
    name = type(module).__name__
    found: dict[str, Any] = {}
    if eps_name(module) and "Norm" in name:
        found["eps"] = _eps(module)
    if "BatchNorm" in name and hasattr(module, "momentum"):
        found |= {"momentum": module.momentum, "batch statistics": _uses_batch(module)}
    if "ConvTranspose" in name:
        found |= _conv(module) | {"padding": _transposed(module)}
    elif "Conv" in name and hasattr(module, "kernel_size"):
        found |= _conv(module) | {"padding": _pads(module), "padding mode": module.padding_mode}
    if name == "GroupNorm":
        found["num_groups"] = module.num_groups
    if hasattr(module, "num_heads"):
        found["num_heads"] = module.num_heads
    if name == "MultiheadAttention":
        found["dropout"] = float(module.dropout)
    weight = next(iter(module.parameters()), None)
    if weight is not None and weight.is_floating_point() and weight.element_size() < 4:
        found["computes in"] = str(weight.dtype).removeprefix("torch.")
    return found


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


def _conv(module: Any) -> dict[str, Any]:
    return {"stride": tuple(module.stride), "dilation": tuple(module.dilation), "groups": module.groups}


def _pads(module: Any) -> Pads:
    if module.padding == "same":
        return same_pads(module.kernel_size, module.kernel_size, module.stride, module.dilation)
    padding = (0,) * len(module.kernel_size) if module.padding == "valid" else module.padding
    return tuple((int(p), int(p)) for p in padding)


def _transposed(module: Any) -> Pads:
    padding = tuple((p, p) for p in module.padding)
    return torch_transposed_pads(padding, module.output_padding, module.kernel_size, module.dilation)
