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

from jaxstate.adapters._nnx_layers import kind_of, layer_of, owner_of
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Key, Layer, Leaf, Reading
from jaxstate.binding import matches
from jaxstate.errors import BindingError
from jaxstate.settings import settings_of
from jaxstate.tree import unique

Path = tuple[Any, ...]

_PASSING = (nnx.RngState, nnx.Cache, nnx.Intermediate)  # what no torch module stores
_NODES = (nnx.Pytree, dict, list, tuple)
_OWN = ("_pytree__nodes", "_pytree__state", "_length")  # what NNX itself puts on a module


def leaves(model: nnx.Module) -> dict[str, Any]:
    """Parameters and buffers by dotted path; values may be abstract. Random state and caches are left out.

    Raises:
        BindingError: a variable whose value is no array.
    """
    state = nnx.to_flat_state(nnx.state(model))
    flat = [(path, _value(leaf)) for path, leaf in state if not isinstance(leaf, _PASSING)]
    if strange := [f"{_dotted(path)} ({type(v).__name__})" for path, v in flat if not hasattr(v, "shape")]:
        raise BindingError(f"these variables hold no array: {', '.join(strange)}")
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
    found = ((path, leaf) for path, leaf in nnx.iter_graph(model) if isinstance(leaf, jax.ShapeDtypeStruct))
    known = {path for path, _ in flat}
    return [(path, leaf) for path, leaf in found if path not in known]


def _put(node: Any, path: Path, value: Any) -> None:
    *parents, last = path
    for part in parents:
        node = getattr(node, str(part)) if isinstance(node, nnx.Pytree) else node[part]
    node.__setitem__(last, value) if isinstance(node, dict | list) else setattr(node, str(last), value)


def without_values(model: nnx.Module) -> list[str]:
    """Paths of random state that is abstract: no file can give it a value."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.RngState))
    return [_dotted(path) for path, leaf in flat if isinstance(_value(leaf), jax.ShapeDtypeStruct)]


def read(model: nnx.Module, options: Options) -> Reading:
    """What the model registered, in order: known layers with their rules, and other arrays."""
    walk, known = _Walk(model, options), leaves(model)
    found = list(walk.module(model, (), ()))
    if idle := [pattern for pattern in options.multilayer if pattern not in walk.multilayers]:
        raise BindingError(f"multilayer={idle}: no nnx.List or nnx.Sequential has such a name")
    if lost := [part.path for part in found if isinstance(part, Leaf) and part.path not in known]:
        raise BindingError(
            f"NNX does not count these arrays as state, so their values are lost: {', '.join(lost)}; "
            "assign them as nnx.data(array), or in a variable: nnx.BatchStat(array) is a buffer"
        )
    call = lambda flat, *inputs: with_leaves(model, flat)(*inputs, **options.kwargs)  # noqa: E731
    return Reading(found, known, call if callable(model) else None)


@dataclass
class _Walk:
    """One pass over a module graph; remembers what it met, since a module or variable may stand twice."""

    model: nnx.Module
    options: Options
    met: dict[int, Key] = field(default_factory=dict)
    above: list[Any] = field(default_factory=list)  # the modules that the walk is in
    multilayers: set[str] = field(default_factory=set)  # the patterns that named a module

    def __post_init__(self):
        # NNX names a shared object by the first of its paths in sorted order, and so do its optimizers.
        graph = nnx.iter_graph(self.model)
        self.canonical = {
            id(node): path for path, node in graph if isinstance(node, nnx.Pytree | nnx.Variable)
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
        arrays = {_dotted(own): leaf for own, leaf in _arrays(module)}
        if arrays:
            actual = {own: tuple(_value(leaf).shape) for own, leaf in arrays.items()}
            expected = {leaf: shape for leaf, shape in rules.expected.items() if leaf in actual}
            prefix = "".join(f"{part}." for part in path)
            places = {own: _dotted(self.canonical.get(id(leaf), ())) for own, leaf in arrays.items()}
            elsewhere = {own: place for own, place in places.items() if place and place != prefix + own}
            found = rules.rules(expected, actual), expected, actual, same_as, elsewhere
            yield Layer(key, prefix, kind_of(module), *found, settings_of(module))

    def _children(self, module: Any, key: Key, path: Path) -> Iterator[Layer | Leaf]:
        """Own parameters first, then buffers, then submodules, as in torch; each in order of assignment."""
        if any(module is other for other in self.above):
            raise BindingError(f"{_dotted(path) or 'the model'} holds itself, below {'.'.join(key)}")
        self.above.append(module)
        items = _items(module)
        own = [self._leaf(v, (*key, str(n)), (*path, n), owner_of(module)) for n, v in items if _is_array(v)]
        yield from sorted(own, key=lambda leaf: leaf.buffer)
        for name, value in items:
            if isinstance(value, _NODES):
                yield from self.module(value, (*key, str(name)), (*path, name))
        self.above.pop()

    def _leaf(self, value: Any, key: Key, path: Path, owner: str) -> Leaf:
        name = _dotted(self.canonical.get(id(value), path))
        first = self.met.setdefault(id(value), key) if isinstance(value, nnx.Variable) else key
        same_as = first if first != key else None
        return Leaf(key, name, tuple(_value(value).shape), owner, not isinstance(value, nnx.Param), same_as)

    def _is_multilayer(self, module: Any, key: Key) -> bool:
        if not isinstance(module, nnx.List | nnx.Sequential):
            return False
        named = {pattern for pattern in self.options.multilayer if matches(".".join(key), [pattern])}
        self.multilayers |= named
        return bool(named)


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
    if not isinstance(leaf, nnx.Variable):
        return leaf if value is None else value
    # A copy also of what stays: a Variable that two models shared would be changed through either.
    return leaf.copy() if value is None or isinstance(leaf, _PASSING) else leaf.replace(value)


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
