"""The State of stateful Equinox layers: which of its arrays belongs to which place of the model.

A layer holds a StateIndex, and the State that goes through its calls holds the value. Here such a value
stands where its index does: `bn.ema_state_index.0`, so that parameters are called alike with and without a
State. A model from which no State was parted yet (`eqx.nn.make_with_state` does that) has the values itself.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxstate.errors import BindingError
from jaxstate.tree import dotted

Path = tuple[Any, ...]


class Pair(NamedTuple):
    """A model and its State, if it has one of its own."""

    tree: Any
    state: Any = None


def parted(model: Any) -> Pair:
    """`(model, state)` as it is, and any other model without a State."""
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], nn().State):
        return Pair(*model)
    return Pair(model)


def nn() -> Any:
    """`equinox.nn`, which somebody else has imported."""
    return sys.modules["equinox"].nn


def is_index(node: Any) -> bool:
    """True for what a stateful layer holds in place of a value."""
    return isinstance(node, nn().StateIndex)


def value_of(index: Any, state: Any) -> Any:
    """The value of an index: that of the State, or the initial one; None if neither is there."""
    if state is not None:
        return state.get(index)
    return index.init if jax.tree.leaves(index.init) else None


def indices(tree: Any) -> list[tuple[Path, Any]]:
    """Every StateIndex of a model, with its path."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_index)[0]
    return [(path, node) for path, node in found if is_index(node)]


def state_leaves(pair: Pair) -> dict[str, Any]:
    """The arrays of a State, by the place of their index.

    Raises:
        BindingError: values that no layer of the model has an index for.
    """
    if pair.state is None:
        return {}
    places = places_of(pair)
    flat = jax.tree.leaves(pair.state)
    if len(places) < len(flat):
        raise BindingError(
            f"the State holds {len(flat)} arrays, and the model has indices for {len(places)} of them; pass "
            "the whole model, or state.substate(model)"
        )
    return {place: flat[position] for place, position in places.items()}


def with_state_leaves(pair: Pair, new: Mapping[str, Any]) -> Any:
    """A new State with these arrays; the given one stays valid."""
    flat, treedef = jax.tree.flatten(pair.state)
    for place, position in places_of(pair).items():
        flat[position] = new.get(place, flat[position])
    return treedef.unflatten(flat)


def places_of(pair: Pair) -> dict[str, int]:
    """For each place of an array of the State, which of its leaves that is."""
    flat, treedef = jax.tree.flatten(pair.state)
    numbered, places, met = treedef.unflatten(range(len(flat))), {}, set()
    for path, index in indices(pair.tree):
        for below, position in jax.tree_util.tree_flatten_with_path(numbered.get(index))[0]:
            if position not in met:
                places[dotted((*path, *below))] = position
            met.add(position)
    return places
