"""Any pytree: a Linen model's variables, gradients, an average of the weights. It has leaves and no types.

So it is bound by what the caller says: Rules, or that arrays have torch's axes already. Its keys are its
paths, its order that of the tree, dictionaries as they were filled; or that of Rules that name every leaf.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.core import meta

from jaxstate.adapters._opened import Opened
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Key, Leaf, Reading
from jaxstate.errors import BindingError
from jaxstate.tree import children, dotted, flat, unflat

PASSING = ("cache", "intermediates", "perturbations")  # collections of Linen that no torch module stores


def leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by dotted path; numbers and other objects are no leaves.

    Of a Linen model's variables, which have a collection `params`, caches and intermediates are none either.
    """
    if isinstance(tree, Mapping) and "params" in tree:
        tree = {name: part for name, part in tree.items() if name not in PASSING}
    return {path: leaf for path, leaf in flat(_unboxed(tree)).items() if is_array(leaf)}


def with_leaves(tree: Any, new: Mapping[str, Any]) -> Any:
    """A pytree of the same structure with these leaves; whatever is not given stays what it was."""
    if not _is_boxed(tree):
        return unflat(tree, new)
    return meta.replace_boxed(tree, unflat(meta.unbox(tree), new))


def opened(tree: Any) -> Opened:
    """The leaves of a tree, and how to make one of others."""
    return Opened(leaves(tree), lambda new: with_leaves(tree, new))


def read(tree: Any, options: Options) -> Reading:
    """The arrays of a tree, none of a layer that is known.

    Raises:
        BindingError: the caller says nothing of their layouts, or says what only a model can be asked for.
    """
    _check_said(tree, options)
    known = leaves(tree)
    given = {path for rule in options.rules for path in rule.paths}
    found = [] if given >= set(known) else list(_found(_unboxed(tree), (), (), known))
    return Reading(found, known)


def is_array(leaf: Any) -> bool:
    """True for what a Binding moves; an abstract array is one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def is_trained(leaf: Any) -> bool:
    """True if an optimizer could train this array: torch gives gradients to numbers with a fraction only."""
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact))


def _is_boxed(tree: Any) -> bool:
    """True if Flax has put names of mesh axes around arrays of this tree."""
    return any(
        isinstance(leaf, meta.AxisMetadata) for leaf in jax.tree.leaves(tree, is_leaf=meta.is_axis_metadata)
    )


def _unboxed(tree: Any) -> Any:
    """A tree without such boxes; one that has none keeps its order, which JAX would sort."""
    flat(tree)
    return meta.unbox(tree) if _is_boxed(tree) else tree


def _check_said(tree: Any, options: Options) -> None:
    if not (options.rules or options.as_is):
        raise BindingError(
            f"a {type(tree).__name__} of arrays does not tell what its layers are; say js.bind(tree, "
            'rules=[...]), or as_is="*" if torch has the same axes everywhere; a model of Linen or Haiku is '
            "bound itself, binding = js.bind(module, *example_inputs), then js.state_dict(variables, binding)"
        )
    names = ("inputs", "kwargs", "layers", "attention", "multilayer")
    if idle := [name for name in names if getattr(options, name)]:
        raise BindingError(f"{', '.join(idle)}: a {type(tree).__name__} of arrays has no layers and no call")


def _found(node: Any, key: Key, path: tuple[Any, ...], known: Mapping[str, Any]) -> Iterator[Leaf]:
    """Arrays before what is nested, as torch has them: parameters, buffers, submodules."""
    below = [((*key, dotted(entry)), (*path, *entry), child) for entry, child in children(node)]
    own = [
        Leaf(name, dotted(place), tuple(child.shape), type(node).__name__, not is_trained(child))
        for name, place, child in below
        if is_array(child) and dotted(place) in known
    ]
    yield from sorted(own, key=lambda leaf: leaf.buffer)
    for name, place, child in below:
        if not is_array(child):
            yield from _found(child, name, place, known)
