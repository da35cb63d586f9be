"""The layers of equinox.nn, whose arguments are mostly torch's: what each is set to."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxstate.settings._pads import pads_of, torch_transposed_pads

ARGUMENTS: Mapping[str, Callable[[Any], str]] = {
    "eps": lambda v: f"eps={v:.3g}",
    "momentum": lambda v: f"momentum={1 - v:.6g}" if v is not None else "momentum=... (torch averages)",
    "batch statistics": lambda v: f"inference={not v}",
    "num_groups": lambda v: f"groups={v}",
    "dropout": lambda v: f"dropout_p={v}",
    "padding mode": lambda v: f'padding_mode="{v.upper()}"',
}


def recognises(module: Any) -> bool:
    """True for a module of Equinox's, or of a user's in Equinox."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(module, equinox.Module)


def settings(module: Any) -> dict[str, Any]:
    """What a module is set to, in torch's words."""
    nn, found = sys.modules["equinox"].nn, {}
    if "Norm" in type(module).__name__ and isinstance(getattr(module, "eps", None), int | float):
        found["eps"] = float(module.eps)
    if isinstance(module, nn.BatchNorm):
        found |= {"momentum": round(1 - module.momentum, 12), "batch statistics": not module.inference}
    if isinstance(module, nn.ConvTranspose):
        found |= _conv(module) | _transposed(module)
    elif isinstance(module, nn.Conv):
        found |= _conv(module) | {"padding": pads_of(module.padding, *_geometry(module))}
        found |= {"padding mode": module.padding_mode.lower()}
    if isinstance(module, nn.GroupNorm):
        found["num_groups"] = module.groups
    if isinstance(module, nn.MultiheadAttention):
        found |= {"num_heads": module.num_heads, "dropout": float(module.dropout.p)}
    return found


def _geometry(module: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation)


def _conv(module: Any) -> dict[str, Any]:
    _, stride, dilation = _geometry(module)
    return {"stride": stride, "dilation": dilation, "groups": module.groups}


def _transposed(module: Any) -> dict[str, Any]:
    """Strings are left out: what they cut depends on Equinox's own rule."""
    if isinstance(module.padding, str):
        return {}
    kernel, _, dilation = _geometry(module)
    return {"padding": torch_transposed_pads(module.padding, module.output_padding, kernel, dilation)}
