"""Paths: what the leaves of a tree are called, in leaf order.

A name is dotted and says where the leaf is: `layers.0.kernel`. The box that NNX keeps an array in is no
place of its own, so a closing `.value` goes unsaid.
"""

from collections import Counter
from typing import Any

import jax
from jax.tree_util import GetAttrKey, KeyPath

from jaxstate.errors import OptimizerError, quoted


def leaf_paths(tree: Any) -> tuple[str, ...]:
    """The dotted path of every leaf, in leaf order.

    Raises:
        OptimizerError: two leaves of one name, as `{"a": {"b": x}, "a.b": y}` has.

    >>> leaf_paths({"layers": [{"w": 1, "b": 2}], "head": 3})
    ('head', 'layers.0.b', 'layers.0.w')
    """
    paths = tuple(_dotted(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise OptimizerError(f"several leaves of the parameters are called {quoted(twice)}")
    return paths


def _dotted(path: KeyPath) -> str:
    boxed = bool(path) and isinstance(path[-1], GetAttrKey) and path[-1].name == "value"
    return ".".join(_entry(entry) for entry in (path[:-1] if boxed else path))


def _entry(entry: Any) -> str:
    return str(next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name)))
