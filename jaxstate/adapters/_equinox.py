"""Equinox: which arrays a module has, in the order of its fields, and what each layer is.

A module is a pytree, and its fields stand in the order of their declaration, as torch's registration. A
stateful model is the pair `(model, state)` of `eqx.nn.make_with_state`. A module that stands in two places is
two modules, as in JAX; only `eqx.nn.Shared` ties. Static fields are no leaves, and nothing changes them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import _equinox_layers as layers
from jaxstate.adapters._equinox_state import (
    Path,
    indices,
    is_index,
    nn,
    parted,
    places_of,
    state_leaves,
    value_of,
    with_state_leaves,
)
from jaxstate.adapters._opened import Opened
from jaxstate.adapters._options import Options
from jaxstate.adapters._pytree import is_array, is_trained
from jaxstate.adapters._reading import Key, Layer, Leaf, Reading
from jaxstate.binding import matches
from jaxstate.errors import BindingError
from jaxstate.settings import settings_of
from jaxstate.tree import children, dotted, flat, unflat


def recognises(model: Any) -> bool:
    """True for a tree with an Equinox module in it."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return False
    try:
        found = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, equinox.Module))
    except ValueError:  # JAX cannot flatten it; whoever asks for its leaves says so
        return False
    return any(isinstance(node, equinox.Module) for node in found)


def leaves(model: Any) -> dict[str, Any]:
    """The arrays of a model, and of its State, by dotted path; random keys are left out."""
    pair = parted(model)
    own = {path: leaf for path, leaf in flat(_without_indices(pair)).items() if _is_value(leaf)}
    return {**own, **state_leaves(pair)}


def with_leaves(model: Any, new: Mapping[str, Any]) -> Any:
    """A new model, or pair, with these leaves; whatever is not given stays what it was."""
    pair = parted(model)
    tree = unflat(pair.tree, new)
    return tree if pair.state is None else (tree, with_state_leaves(pair, new))


def opened(model: Any) -> Opened:
    """The leaves of a model, and how to make one of others."""
    found = flat(parted(model).tree).items()
    keys = [path for path, leaf in found if isinstance(leaf, jax.ShapeDtypeStruct) and _is_key(leaf)]
    return Opened(leaves(model), lambda new: with_leaves(model, new), keys)


def read(model: Any, options: Options) -> Reading:
    """The model's layers with their rules, and its other arrays, in the order of its fields.

    Raises:
        BindingError: a stateful model without its State; a layer that torch has no twin for.
    """
    pair = parted(model)
    state_places = {} if pair.state is None else places_of(pair)
    lost = [dotted(path) for path, index in indices(pair.tree) if value_of(index, pair.state) is None]
    if lost:
        raise BindingError(
            f"the values of {', '.join(lost)} are in the model's State; pass both: js.bind((model, state)), "
            "js.state_dict((model, state)), model, state = js.load_state_dict((model, state), state_dict)"
        )
    walk = _Walk(pair.state, options, {position: place for place, position in state_places.items()})
    found = list(walk.node(pair.tree, (), ()))
    if idle := [pattern for pattern in options.multilayer if pattern not in walk.multilayers]:
        raise BindingError(f"multilayer={idle}: no cell and no list of cells has such a name")
    return Reading(found, leaves(model), _call_of(model, options) if callable(pair.tree) else None)


def _call_of(model: Any, options: Options) -> Any:
    def call(leaves: Mapping[str, Any], *inputs: Any) -> Any:
        tree, state = parted(with_leaves(model, leaves))
        tree = nn().inference_mode(tree)
        return tree(*inputs, *([] if state is None else [state]), **options.kwargs)

    return call


def _without_indices(pair: Any) -> Any:
    """The model; its own initial values count only where there is no State."""
    if pair.state is None:
        return pair.tree
    return jax.tree.map(lambda node: None if is_index(node) else node, pair.tree, is_leaf=is_index)


def _is_key(leaf: Any) -> bool:
    return is_array(leaf) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_value(leaf: Any) -> bool:
    return is_array(leaf) and not _is_key(leaf)


@dataclass
class _Walk:
    """One pass over a model. `places`: the paths of the State's arrays, and of what a Shared ties."""

    state: Any
    options: Options
    positions: Mapping[int, str]
    places: dict[int, str] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    multilayers: set[str] = field(default_factory=set)

    def __post_init__(self):
        """Stand-ins for the State's arrays, so that each is known by its identity."""
        if self.state is not None:
            arrays, treedef = jax.tree.flatten(self.state)
            names = [self.positions.get(n, "") for n in range(len(arrays))]
            self.state = treedef.unflatten(
                [self._named(a, name) for a, name in zip(arrays, names, strict=True)]
            )

    def node(self, node: Any, key: Key, path: Path) -> Iterator[Layer | Leaf]:
        if isinstance(node, nn().Shared):
            yield from self.node(self._expanded(node, path), key, (*path, *_entry(node, "pytree")))
        elif (cells := self._cells(node, key)) is not None:
            known = layers.recurrent(cells, cells[0] is node)
            yield from self._layer(node, known, key, path)
        elif (known := layers.layer_of(node, self.options)) is not None:
            yield from self._layer(node, known, key, path)
        elif isinstance(node, nn().Sequential):  # torch counts its layers without naming their list
            yield from self.node(node.layers, key, (*path, *_entry(node, "layers")))
        else:
            yield from self._children(node, key, path)

    def _layer(self, node: Any, known: layers.Known, key: Key, path: Path) -> Iterator[Layer]:
        arrays = {dotted(own): (dotted((*path, *place)), leaf) for own, place, leaf in self._arrays(node)}
        if not arrays:
            return
        prefix = "".join(f"{dotted((part,))}." for part in path)
        actual = {own: tuple(leaf.shape) for own, (_, leaf) in arrays.items()}
        expected = {own: shape for own, shape in known.expected.items() if own in actual}
        places = {own: self.places.get(id(leaf), place) for own, (place, leaf) in arrays.items()}
        elsewhere = {own: place for own, place in places.items() if place != prefix + own}

        def rules(depth: int) -> Any:
            return known.rules({own: expected.get(own, shape[depth:]) for own, shape in actual.items()})

        found = rules, expected, actual, None, elsewhere
        yield Layer(key, prefix, layers.neighbour_kind(node), *found, settings_of(node))

    def _children(self, node: Any, key: Key, path: Path) -> Iterator[Layer | Leaf]:
        """Own parameters first, then buffers, then submodules, as in torch; each in the order of fields."""
        below = [((*key, dotted(entry)), (*path, *entry), child) for entry, child in children(node)]
        found = [part for name, place, child in below for part in self._own(node, child, name, place)]
        yield from sorted(found, key=lambda leaf: leaf.buffer)
        for name, place, child in below:
            if not is_array(child) and not is_index(child):
                yield from self.node(child, name, place)

    def _own(self, owner: Any, child: Any, key: Key, path: Path) -> Iterator[Leaf]:
        """A module's own arrays, and the values of its own indices, which no optimizer trains."""
        name = layers.owner_of(owner)
        if is_index(child):
            for below, kept, leaf in self._value(child):
                names = (*key, *(dotted((part,)) for part in below))
                place = self.places.get(id(leaf), dotted((*path, *kept)))
                yield Leaf(names, place, tuple(leaf.shape), name, True)
        elif _is_value(child):
            place = self.places.get(id(child), dotted(path))
            trained = is_trained(child) and not isinstance(child, np.ndarray)
            yield Leaf(key, place, tuple(child.shape), name, not trained)

    def _arrays(self, node: Any, path: Path = ()) -> Iterator[tuple[Path, Path, Any]]:
        """Every array below a layer: what the layer's rules call it, where it is kept, and itself."""
        for entry, child in children(node):
            here = (*path, *entry)
            if is_index(child):
                yield from (((*here, *own), (*here, *kept), leaf) for own, kept, leaf in self._value(child))
            elif _is_value(child):
                yield here, here, child
            elif not is_array(child):
                yield from self._arrays(child, here)

    def _value(self, index: Any) -> list[tuple[Path, Path, Any]]:
        """The arrays of an index, by their path in its value, and by that in the index that keeps it."""
        initial = _entry(index, "init") if self.state is None else ()
        found = jax.tree_util.tree_flatten_with_path(value_of(index, self.state))[0]
        return [(path, (*initial, *path), leaf) for path, leaf in found]

    def _expanded(self, shared: Any, path: Path) -> Any:
        """What a Shared stands for, each array known by the place where it is kept.

        Raises:
            BindingError: it computes the shared array, which torch then has no parameter for.
        """
        named = jax.tree_util.tree_map_with_path(
            lambda below, leaf: self._named(leaf, dotted((*path, *below))) if _is_value(leaf) else leaf,
            shared,
        )
        try:
            return named()
        except Exception as error:
            raise BindingError(
                f"{dotted(path) or 'the model'} shares what it computes ({type(error).__name__}: {error}), "
                "and torch ties whole parameters; give rules: js.bind(model, layers={eqx.nn.Shared: ...})"
            ) from error

    def _named(self, leaf: Any, place: str) -> jax.ShapeDtypeStruct:
        stand_in = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        self.kept.append(stand_in)  # an identity is good for as long as its object lives
        self.places[id(stand_in)] = self.places.get(id(leaf), place)
        return stand_in

    def _cells(self, node: Any, key: Key) -> Sequence[Any] | None:
        named = {pattern for pattern in self.options.multilayer if matches(".".join(key), [pattern])}
        self.multilayers |= named
        if not named:
            return None
        return list(node) if isinstance(node, list | tuple) else [node]


def _entry(node: Any, name: str) -> Path:
    """The key of a field, as JAX gives it."""
    return next(entry for entry, _ in children(node) if dotted(entry) == name)
