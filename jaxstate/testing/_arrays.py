"""What a call took or gave, as arrays by name: of torch and of JAX, nested in whatever they nest it in."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.foreign import as_array
from jaxstate.tree import flat


def named_arrays(value: Any) -> dict[str, np.ndarray]:
    """Every array in a nest of tuples, lists and dictionaries by its dotted name; what is none is left out,
    and so are keys of random numbers, which recurrent cells carry.

    >>> sorted(named_arrays((np.zeros(2), {"mask": np.ones(3), "train": False})))
    ['0', '1.mask']
    >>> list(named_arrays(np.zeros(2)))
    ['']
    """
    return _named(value, "", lambda v: None if _is_key(v) else as_array(v))


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def named_live(value: Any) -> dict[str, Any]:
    """The same as what they are: tensors with their gradients' history, traced arrays."""
    torch = sys.modules.get("torch")
    kinds = (jax.Array, *([torch.Tensor] if torch else []))
    return _named(value, "", lambda v: v if isinstance(v, kinds) else None)


def _named(value: Any, name: str, as_leaf: Callable[[Any], Any]) -> dict[str, Any]:
    if (leaf := as_leaf(value)) is not None:
        return {name: leaf}
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif value is not None and _is_foreign_tree(value):
        items = flat(value).items()
    found: dict[str, Any] = {}
    for key, item in items:
        found |= _named(item, f"{name}.{key}" if name else str(key), as_leaf)
    return found


def floating(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of them that hold real or complex numbers: no indices, no masks."""
    return {name: a for name, a in arrays.items() if a.dtype.kind not in "biu"}


def is_traced(value: Any) -> bool:
    """True if a call ran inside a transformation, where there are no values to look at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def _is_foreign_tree(value: Any) -> bool:
    """True for a registered pytree of another class, such as a flax.struct.dataclass."""
    torch = sys.modules.get("torch")
    module = torch is not None and isinstance(value, torch.nn.Module)
    return not module and not jax.tree_util.all_leaves([value])
