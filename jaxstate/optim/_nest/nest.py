"""Nest: where among other states the state of an optimizer lies.

optax wraps states in states: tuples of a chain, dicts of a partition, tuples with names for all else. A Part
is a state of the kind looked for, with the path that leads to it. A label is a key or an index on that path.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath, keystr

from jaxstate.errors import OptimizerError, quoted


@dataclass(frozen=True)
class Part:
    """A state of the kind looked for, and where it lies."""

    path: KeyPath
    node: Any


def parts_of(tree: Any, is_part: Callable[[Any], bool], label: Any = None) -> list[Part]:
    """Every state of a kind, in leaf order; only those that a label leads to, if one is given."""
    rows = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_part)[0]
    found = [Part(path, node) for path, node in rows if is_part(node)]
    return [part for part in found if label is None or label in map(name_of, part.path)]


def with_parts(tree: Any, parts: Sequence[Part], nodes: Sequence[Any]) -> Any:
    """The tree with other states in the places of these."""
    places = {id(part.node): node for part, node in zip(parts, nodes, strict=True)}
    return jax.tree.map(lambda x: places.get(id(x), x), tree, is_leaf=lambda x: id(x) in places)


def names_of(parts: Sequence[Part]) -> list[Any]:
    """For each part the first name on its path that tells it from the others."""
    rows = [[name_of(entry) for entry in part.path] for part in parts]
    shared = next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), 0)
    return [row[shared] if shared < len(row) else None for row in rows]


def check_labels(tree: Any, parts: Sequence[Part], label: Any) -> None:
    """Refuse a partition of which a part is left out unasked.

    Raises:
        OptimizerError: labels that hold arrays and none of these parts.
    """
    for path, node in [] if label is not None else _partitions(tree):
        reached = {name_of(part.path[len(path)]) for part in parts if part.path[: len(path)] == path}
        rest = [key for key, child in node.items() if key not in reached and _is_trained(child)]
        if reached and rest:
            raise OptimizerError(
                f"the labels {quoted(map(str, rest))} hold the state of another torch optimizer; take one "
                f"optimizer at a time, here with label={next(iter(reached))!r}"
            )


def fields_of(node: Any) -> frozenset[str]:
    """The names of a state's fields; stores keep tuples with names as dicts."""
    names = node if isinstance(node, Mapping) else getattr(node, "_fields", ())
    return frozenset(name for name in names if isinstance(name, str))


def field(node: Any, name: str) -> Any:
    """One field of a state."""
    return node[name] if isinstance(node, Mapping) else getattr(node, name)


def with_fields(node: Any, **values: Any) -> Any:
    """The state with other values in some fields."""
    return {**node, **values} if isinstance(node, Mapping) else node._replace(**values)


def children(node: Any) -> list[tuple[Any, Any]]:
    """What a node holds, one level down, with the entries that lead there."""
    rows = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return [(path[0], child) for path, child in rows if path]


def at(tree: Any, path: KeyPath) -> Any:
    """The node that a path leads to."""
    for entry in path:
        tree = next(child for key, child in children(tree) if key == entry)
    return tree


def name_of(entry: Any) -> Any:
    """The key, index or name of one step of a path."""
    return next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name))


def where(path: KeyPath) -> str:
    """A path as optax prints it."""
    return keystr(path) or "the whole state"


def _partitions(tree: Any) -> Iterator[tuple[KeyPath, Mapping[Any, Any]]]:
    """The dicts by label of every partition, which is named by its field."""
    for path, node in _nodes((), tree):
        if path and name_of(path[-1]) == "inner_states" and isinstance(node, Mapping):
            yield path, node


def _nodes(path: KeyPath, node: Any) -> Iterator[tuple[KeyPath, Any]]:
    yield path, node
    for entry, child in children(node):
        yield from _nodes((*path, entry), child)


def _is_trained(tree: Any) -> bool:
    return any(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
