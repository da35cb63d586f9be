"""Flax NNX: which leaves a live module has, in which order it registered them, and what each module is.

NNX sorts attributes whenever a module passes through split, merge, jit or clone. The order in which
`__init__` assigned them survives in the module's own table of attributes, and that is the order read here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxstate.adapters._nnx_layers import kind_of, layer_of
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Key, Layer, Leaf, Reading
from jaxstate.binding import matches
from jaxstate.tree import unique

Path = tuple[Any, ...]

_PASSING = (nnx.RngState, nnx.Cache, nnx.Intermediate)  # what no torch module stores
_NODES = (nnx.Module, dict, list, tuple)
_OWN = ("_pytree__nodes", "_pytree__state", "_length")  # what NNX itself puts on a module


def leaves(model: nnx.Module) -> dict[str, Any]:
    """Parameters and buffers by dotted path; values may be abstract. Random state and caches are left out."""
    flat = [(p, _value(leaf)) for p, leaf in nnx.to_flat_state(nnx.state(model)) if _is_array(leaf)]
    return unique([(_dotted(path), leaf) for path, leaf in [*flat, *_bare(model, flat)]])


def with_leaves(model: nnx.Module, new: Mapping[str, Any]) -> nnx.Module:
    """A new module with these leaves; whatever is not given stays what it was."""
    graphdef, state = nnx.split(model)
    old = [(path, leaf, _dotted(path)) for path, leaf in nnx.to_flat_state(state)]
    flat = [(path, _replaced(leaf, new.get(name))) for path, leaf, name in old]
    result = nnx.merge(graphdef, nnx.from_flat_state(flat))
    for path, leaf in _bare(model, [(path, _value(leaf)) for path, leaf, _ in old]):
        _put(result, path, new.get(_dotted(path), leaf))
    return result


def _bare(model: nnx.Module, flat: Sequence[tuple[Path, Any]]) -> list[tuple[Path, jax.ShapeDtypeStruct]]:
    """Abstract arrays outside of any Variable: NNX takes these for static attributes, not for state."""
    if flat and not any(isinstance(leaf, jax.ShapeDtypeStruct) for _, leaf in flat):
        return []
    return [(path, leaf) for path, leaf in nnx.iter_graph(model) if isinstance(leaf, jax.ShapeDtypeStruct)]


def _put(node: Any, path: Path, value: Any) -> None:
    *parents, last = path
    for part in parents:
        node = getattr(node, str(part)) if isinstance(node, nnx.Module) else node[part]
    node.__setitem__(last, value) if isinstance(node, dict | list) else setattr(node, str(last), value)


def without_values(model: nnx.Module) -> list[str]:
    """Paths of random state that is abstract: no file can give it a value."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.RngState))
    return [_dotted(path) for path, leaf in flat if isinstance(_value(leaf), jax.ShapeDtypeStruct)]


def read(model: nnx.Module, options: Options) -> Reading:
    """What the model registered, in order: known layers with their rules, and other arrays."""
    found = list(_Walk(model, options).module(model, (), ()))
    call = lambda flat, *inputs: with_leaves(model, flat)(*inputs, **options.kwargs)  # noqa: E731
    return Reading(found, leaves(model), call if callable(model) else None)


@dataclass
class _Walk:
    """One pass over a module graph; remembers what it met, since a module or variable may stand twice."""

    model: nnx.Module
    options: Options
    met: dict[int, Key] = field(default_factory=dict)

    def __post_init__(self):
        # NNX names a shared object by the first of its paths in sorted order, and so do its optimizers.
        graph = nnx.iter_graph(self.model)
        self.canonical = {
            id(node): path for path, node in graph if isinstance(node, nnx.Module | nnx.Variable)
        }

    def module(self, module: Any, key: Key, path: Path) -> Iterator[Layer | Leaf]:
        path = self.canonical.get(id(module), path)
        first = self.met.setdefault(id(module), key)
        same_as = first if first != key else None
        rules = layer_of(module, self.options, self._is_multilayer(module, key))
        if rules is not None:
            yield from self._layer(module, key, path, rules, same_as)
        elif isinstance(module, nnx.Sequential):
            yield from self.module(module.layers, key, (*path, "layers"))
        else:
            yield from self._children(module, key, path)

    def _layer(self, module: Any, key: Key, path: Path, rules: Any, same_as: Key | None) -> Iterator[Layer]:
        actual = {_dotted(p): tuple(_value(leaf).shape) for p, leaf in _arrays(module)}
        if actual:
            expected = {leaf: shape for leaf, shape in rules.expected.items() if leaf in actual}
            prefix = "".join(f"{part}." for part in path)
            yield Layer(
                key, prefix, kind_of(module), rules.rules(expected, actual), expected, actual, same_as
            )

    def _children(self, module: Any, key: Key, path: Path) -> Iterator[Layer | Leaf]:
        """Own arrays first, then submodules, as in torch; each in order of assignment."""
        items = [(name, value) for name, value in _items(module)]
        for name, value in items:
            if _is_array(value):
                yield self._leaf(value, (*key, str(name)), (*path, name), type(module).__name__)
        for name, value in items:
            if isinstance(value, _NODES):
                yield from self.module(value, (*key, str(name)), (*path, name))

    def _leaf(self, value: Any, key: Key, path: Path, owner: str) -> Leaf:
        path = self.canonical.get(id(value), path)
        first = self.met.setdefault(id(value), key) if isinstance(value, nnx.Variable) else key
        shape = tuple(_value(value).shape)
        return Leaf(
            key,
            _dotted(path),
            shape,
            owner,
            not isinstance(value, nnx.Param),
            first if first != key else None,
        )

    def _is_multilayer(self, module: Any, key: Key) -> bool:
        return matches(".".join(key), self.options.multilayer) and isinstance(
            module, nnx.List | nnx.Sequential
        )


def _items(module: Any) -> list[tuple[Any, Any]]:
    """The attributes of a module, or the items of a container, in order of assignment."""
    if isinstance(module, dict):
        return list(module.items())
    if isinstance(module, list | tuple):
        return list(enumerate(module))
    if isinstance(module, nnx.List):
        return list(enumerate(module))
    own = vars(module)
    order = [name for name in getattr(module, "_pytree__nodes", ()) if name in own]
    names = order + [name for name in own if name not in order]
    return [(name, own[name]) for name in names if name not in _OWN]


def _arrays(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every array below a node of a known layer, which has no cycles."""
    for name, value in _items(node):
        if _is_array(value):
            yield (*path, name), value
        elif isinstance(value, _NODES):
            yield from _arrays(value, (*path, name))


def _is_array(value: Any) -> bool:
    if isinstance(value, nnx.Variable):
        return not isinstance(value, _PASSING) and hasattr(_value(value), "shape")
    return isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _value(leaf: Any) -> Any:
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf


def _replaced(leaf: Any, value: Any) -> Any:
    if value is None or isinstance(leaf, _PASSING):
        return leaf
    return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
