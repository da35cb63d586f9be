"""Any pytree: a Linen model's variables, gradients, an average of the weights. It has leaves and no types."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import meta

from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Reading
from jaxstate.errors import BindingError
from jaxstate.tree import flat, unflat

PASSING = ("cache", "intermediates", "perturbations")  # collections of Linen that no torch module stores


def leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by dotted path; numbers and other objects are no leaves.

    Of a Linen model's variables, which have a collection `params`, caches and intermediates are none either.
    """
    if isinstance(tree, Mapping) and "params" in tree:
        tree = {name: part for name, part in tree.items() if name not in PASSING}
    return {path: leaf for path, leaf in flat(meta.unbox(tree)).items() if _is_array(leaf)}


def with_leaves(tree: Any, new: Mapping[str, Any]) -> Any:
    """A pytree of the same structure with these leaves; whatever is not given stays what it was."""
    boxed = jax.tree.leaves(tree, is_leaf=meta.is_axis_metadata)
    if not any(isinstance(leaf, meta.AxisMetadata) for leaf in boxed):
        return unflat(tree, new)
    return meta.replace_boxed(tree, unflat(meta.unbox(tree), new))


def without_values(tree: Any) -> list[str]:
    """Nothing: random state is no part of a plain tree."""
    return []


def read(tree: Any, options: Options) -> Reading:
    """Refuse: a tree of arrays does not say what its layers are.

    Raises:
        BindingError: always.
    """
    raise BindingError(
        f"a {type(tree).__name__} of arrays does not tell what its layers are; for a Linen model bind the "
        "module, binding = js.bind(module, *example_inputs), and pass it: js.state_dict(variables, binding)"
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
