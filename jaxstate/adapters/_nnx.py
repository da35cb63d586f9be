"""Flax NNX: which leaves a live module has, in which order it registered them, and what each module is.

NNX sorts attributes whenever a module passes through split, merge, jit or clone. The order in which
`__init__` assigned them survives in the module's own table of attributes, and that is the order read here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxstate.adapters._nnx_layers import kind_of, layer_of, owner_of
from jaxstate.adapters._opened import Opened
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Key, Layer, Leaf, Reading
from jaxstate.binding import matches
from jaxstate.errors import BindingError
from jaxstate.settings import settings_of
from jaxstate.tree import unique

Path = tuple[Any, ...]

_PASSING = (nnx.RngState, nnx.Cache, nnx.Intermediate)  # what no torch module stores
_NODES = (nnx.Pytree, dict, list, tuple)
_PLAIN = (int, float, str, type(None), type, FunctionType)  # what holds no array
_OWN = ("_pytree__nodes", "_pytree__state", "_length")  # what NNX itself puts on a module


class _Split(NamedTuple):
    """What NNX counts as a module's state, by dotted path, and how to make a module of other such leaves."""

    flat: Sequence[tuple[str, Any]]
    merge: Callable[[Sequence[Any]], nnx.Module]
    is_tree: bool


def leaves(model: nnx.Module) -> dict[str, Any]:
    """Parameters and buffers by dotted path; values may be abstract. Random state and caches are left out.

    Raises:
        BindingError: a variable whose value is no array.
    """
    return _own(model, _split(model))


def with_leaves(model: nnx.Module, new: Mapping[str, Any]) -> nnx.Module:
    """A new module with these leaves; whatever is not given stays what it was."""
    return _merged(model, _split(model), new)


def opened(model: nnx.Module) -> Opened:
    """The leaves of a module, and how to make one of others; its graph is read once."""
    split = _split(model)
    random = [name for name, leaf in split.flat if _is_abstract(leaf) and isinstance(leaf, nnx.RngState)]
    return Opened(_own(model, split), lambda new: _merged(model, split, new), random)


def _split(model: nnx.Module) -> _Split:
    return _as_tree(model) or _as_graph(model)


def _as_tree(model: nnx.Module) -> _Split | None:
    """A module as JAX's pytree, at a fifth of the cost of a graph; None if anything stands in it twice."""
    met, again = set(), []

    def is_leaf(node: Any) -> bool:
        is_variable = isinstance(node, nnx.Variable)
        if is_variable or isinstance(node, nnx.Pytree):
            again.append(node) if id(node) in met else met.add(id(node))
        return is_variable or bool(again)

    found, treedef = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_leaf)
    if again or any(isinstance(leaf, nnx.Pytree) for _, leaf in found):
        return None
    flat = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in found]
    return _Split(flat, treedef.unflatten, True)


def _as_graph(model: nnx.Module) -> _Split:
    graphdef, state = nnx.split(model)
    found = nnx.to_flat_state(state)

    def merge(new: Sequence[Any]) -> nnx.Module:
        paths = (path for path, _ in found)
        return nnx.merge(graphdef, nnx.from_flat_state(zip(paths, new, strict=True)))

    return _Split([(_dotted(path), leaf) for path, leaf in found], merge, False)


def _own(model: nnx.Module, split: _Split) -> dict[str, Any]:
    found = [(name, _value(leaf)) for name, leaf in split.flat if not isinstance(leaf, _PASSING)]
    if strange := [f"{name} ({type(v).__name__})" for name, v in found if not hasattr(v, "shape")]:
        raise BindingError(f"these variables hold no array: {', '.join(strange)}")
    return unique([*found, *((_dotted(path), leaf) for path, leaf in _bare(model, split))])


def _merged(model: nnx.Module, split: _Split, new: Mapping[str, Any]) -> nnx.Module:
    result = split.merge([_replaced(leaf, new.get(name)) for name, leaf in split.flat])
    for path, leaf in _bare(model, split):
        _put(result, path, new.get(_dotted(path), leaf))
    return result


def _bare(model: nnx.Module, split: _Split) -> list[tuple[Path, jax.ShapeDtypeStruct]]:
    """Abstract arrays outside of any Variable: NNX takes these for static attributes, not for state."""
    if split.flat and not any(_is_abstract(leaf) for _, leaf in split.flat):
        return []
    found = ((path, leaf) for path, leaf in nnx.iter_graph(model) if isinstance(leaf, jax.ShapeDtypeStruct))
    known = {name for name, _ in split.flat}
    return [(path, leaf) for path, leaf in found if _dotted(path) not in known]


def _put(node: Any, path: Path, value: Any) -> None:
    *parents, last = path
    for part in parents:
        node = getattr(node, str(part)) if isinstance(node, nnx.Pytree) else node[part]
    node.__setitem__(last, value) if isinstance(node, dict | list) else setattr(node, str(last), value)


def read(model: nnx.Module, options: Options) -> Reading:
    """What the model registered, in order: known layers with their rules, and other arrays."""
    split = _split(model)
    walk, known = _Walk(options, {} if split.is_tree else _canonical(model)), _own(model, split)
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


def _canonical(model: nnx.Module) -> dict[int, Path]:
    """NNX names a shared object by the first of its paths in sorted order, and so do its optimizers."""
    graph = nnx.iter_graph(model)
    return {id(node): path for path, node in graph if isinstance(node, nnx.Pytree | nnx.Variable)}


@dataclass
class _Walk:
    """One pass over a module graph; remembers what it met, since a module or variable may stand twice."""

    options: Options
    canonical: Mapping[int, Path]  # empty if nothing stands twice
    met: dict[int, Key] = field(default_factory=dict)
    above: list[tuple[Any, Path]] = field(default_factory=list)  # the modules that the walk is in
    multilayers: set[str] = field(default_factory=set)  # the patterns that named a module

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
        for other, place in self.above:
            if module is other:
                raise BindingError(f"{_dotted(place) or 'the model'} holds itself, below {'.'.join(key)}")
        self.above.append((module, path))
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
    return [(name, own[name]) for name in names if name not in _OWN and not isinstance(own[name], _PLAIN)]


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


def _is_abstract(leaf: Any) -> bool:
    return isinstance(_value(leaf), jax.ShapeDtypeStruct)


def _replaced(leaf: Any, value: Any) -> Any:
    if not isinstance(leaf, nnx.Variable):
        return leaf if value is None else value
    # A copy also of what stays: a Variable that two models shared would be changed through either.
    return leaf.copy() if value is None or isinstance(leaf, _PASSING) else leaf.replace(value)


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
