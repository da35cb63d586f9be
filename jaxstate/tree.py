"""Pytrees as flat dictionaries `{dotted path: leaf}`, and back into the same structure.

The paths are those that a Binding speaks of. A path that two leaves would share is refused: in a flat
dictionary one of them would be lost.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jaxstate.errors import BindingError


def flat(tree: Any) -> dict[str, Any]:
    """Every leaf of a pytree by its dotted path.

    >>> flat({"fc": {"kernel": 1, "bias": 2}, "blocks": [3, 4]})
    {'blocks.0': 3, 'blocks.1': 4, 'fc.bias': 2, 'fc.kernel': 1}

    Raises:
        BindingError: two leaves with one path, such as `{"a.b": x, "a": {"b": y}}`; keys that have no order.
    """
    try:
        found = jax.tree_util.tree_flatten_with_path(tree)[0]
    except ValueError as error:
        raise BindingError(f"JAX cannot flatten this tree: {error}") from error
    return unique([(dotted(path), leaf) for path, leaf in found])


def children(node: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """What stands directly below a node, each with its key; a dictionary's in the order of its insertion.

    >>> [(dotted(path), child) for path, child in children({"b": [1, 2], "a": 3})]
    [('b', [1, 2]), ('a', 3)]
    """
    if isinstance(node, dict):
        return [((DictKey(key),), child) for key, child in node.items()]
    found = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)[0]
    return [(path, child) for path, child in found if path]


def unflat(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """A pytree of the same structure with these leaves; a path that is not given keeps its leaf.

    >>> unflat({"a": 1, "b": [2]}, {"b.0": 5})
    {'a': 1, 'b': [5]}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(dotted(path), leaf), tree)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a dictionary. Raises BindingError for a path that stands twice."""
    leaves = dict(pairs)
    if len(leaves) < len(pairs):
        paths = [path for path, _ in pairs]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise BindingError(f"several leaves have the same path {twice}; rename one of the dictionary's keys")
    return leaves


def dotted(path: tuple[Any, ...]) -> str:
    """A key path as a Binding writes it: names joined by dots, without the `.value` of an NNX variable."""
    if len(path) > 1 and isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return ".".join(str(_name(entry)) for entry in path)


def _name(entry: Any) -> Any:
    match entry:
        case DictKey(key=name) | FlattenedIndexKey(key=name) | SequenceKey(idx=name) | GetAttrKey(name=name):
            return name
    return entry
