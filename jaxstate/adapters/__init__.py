"""Which adapter reads a model: one file a library, chosen by the model's type.

An adapter's file has `leaves(model)`, `with_leaves(model, leaves)` and `opened(model)`, which is both of one
reading; and `read(model, options)`. Equinox and Haiku are known by what somebody else imported.
"""

from types import ModuleType
from typing import Any

from flax import linen, nnx

from jaxstate.adapters import _equinox, _haiku, _linen, _nnx, _pytree


def adapter_of(model: Any) -> ModuleType:
    """The file that knows this kind of model; any pytree is one."""
    if isinstance(model, nnx.Module):
        return _nnx
    if isinstance(model, linen.Module):
        return _linen
    if _haiku.recognises(model):
        return _haiku
    return _equinox if _equinox.recognises(model) else _pytree
