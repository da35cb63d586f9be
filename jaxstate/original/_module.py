"""A torch module as the original: layer by layer, each beside the module of its name."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxstate.original._layers import Known
from jaxstate.settings import Setting, gelu_of, torch_settings, unlike

# What a layer may leave out without there being a doubt: the mode, which some libraries say in the call, a
# narrow dtype, dropout, which a library's attention may not have.
_UNTOLD = {"batch statistics", "computes in", "dropout"}


def is_torch_module(value: Any) -> bool:
    """True for a torch.nn.Module, recognised without importing torch."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].nn.Module)


def settings_unlike(module: Any, layers: Sequence[Known]) -> list[Setting]:
    """The settings that differ from those of the torch modules of the same names."""
    wanted = _settings(module)
    return [
        row
        for layer in layers
        for name in layer.names
        if name in wanted
        for row in unlike(name, wanted[name], layer.path, layer.settings)
    ]


def not_compared(module: Any, layers: Sequence[Known]) -> Iterator[str]:
    """torch's modules that are set to something which the JAX model's layers do not tell."""
    told = {name: set(layer.settings.values) for layer in layers for name in layer.names}
    for name, wanted in _settings(module).items():
        if lacking := [word for word in wanted if word not in _UNTOLD | told.get(name, set())]:
            yield f"{name or 'the model'} ({', '.join(lacking)})"


def gelus_of(module: Any) -> Mapping[str, str]:
    """Which GELU torch computes, by the names of its modules."""
    return {name: kind for name, m in module.named_modules() if (kind := gelu_of(m))}


def _settings(module: Any) -> dict[str, dict[str, Any]]:
    """Of every module that has entries of its own."""
    own = {key.rpartition(".")[0] for key in module.state_dict()}
    modules = dict(module.named_modules())
    return {name: torch_settings(module) for name, module in modules.items() if name in own}
