"""Flax Linen: which variables a module makes, in which order torch would register them, and what each is.

A module of Linen holds no arrays and a dictionary of variables has no types, so a binding is made from the
module and then used with its variables. Attributes of `setup` and fields give the order of definition;
what a compact method makes comes in the order of its first call, since in `B()(A()(x))` Python makes B first.

What `nn.map_variables` makes of a variable before a layer sees it cannot be read: give such leaves Rules.
`cache`, `intermediates` and `perturbations` are no part of a state_dict. A module that is made without a name
and handed to another, as a layer to a Sequential or a cell to an RNN, is that other's, as in torch; one that
has a name of its own stands under both, tied.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import jax
from flax import linen as nn
from flax.core import DenyList

from jaxstate.adapters import _pytree
from jaxstate.adapters._linen_layers import HOLDERS, Make, kind_class, kind_of, layer_of, multilayer
from jaxstate.adapters._linen_places import Places, attributes, mounts_of, sharing
from jaxstate.adapters._linen_trace import Path, Seen, Trace, Variable, trace
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Key, Layer, Leaf, Reading
from jaxstate.binding import matches
from jaxstate.errors import BindingError
from jaxstate.rules.rule import Rule
from jaxstate.settings import settings_of


def read(model: nn.Module, options: Options) -> Reading:
    """What the model's variables are, in order: known layers with their rules, and other arrays.

    Raises:
        BindingError: the model does not run with the inputs given; a layer that torch has no twin for.
    """
    look = lambda traced: list(_Walk(traced, options).module((), ()))  # noqa: E731
    template, found = trace(model, options, _pytree.PASSING, look)

    def call(flat: Mapping[str, Any], *inputs: Any) -> Any:
        variables = _pytree.with_leaves(template, flat)
        others = {"rngs": {"params": jax.random.key(0)}, "mutable": DenyList("params")}
        return model.apply(variables, *inputs, **others, **options.kwargs)[0]

    return Reading(found, _pytree.leaves(template), call)


def leaves(model: nn.Module) -> NoReturn:
    """Refuse: the arrays are elsewhere. Raises BindingError."""
    name = type(model).__name__
    raise BindingError(
        f"{name} is a module of Flax Linen and holds no arrays; pass its variables: "
        f"binding = js.bind({name}(...), *example_inputs), then js.state_dict(variables, binding)"
    )


def opened(model: nn.Module) -> NoReturn:
    """Refuse, as `leaves` does."""
    leaves(model)


@dataclass
class _Walk:
    """One pass over the modules of a traced model; remembers what it met, since a module may stand twice."""

    traced: Trace
    options: Options
    met: dict[Any, Key] = field(default_factory=dict)

    def __post_init__(self):
        self.seen = self.traced.seen
        self.below, self.own = _by_module(self.traced)
        self.made: dict[Path, list[Path]] = {}
        for path in self.seen:
            self.made.setdefault(path[:-1], []).append(path) if path else None
        self.held = {
            child.path
            for path, seen in self.seen.items()
            for _, child in attributes(seen.module)
            if child.path[: len(path)] != path
            and (_is_anonymous(child) or kind_class(seen.module) in HOLDERS)
        }

    def module(self, path: Path, key: Key) -> Iterator[Layer | Leaf]:
        seen = self._known(self.seen[path])
        if self._is_multilayer(key) and isinstance(seen.module, nn.Sequential):
            yield from self._rnns([child for _, child in attributes(seen.module)], key)
        elif (make := layer_of(seen, self.options)) is not None:
            yield from self._layer(make, seen.module, mounts_of(seen.module), key)
        else:
            yield from self._arrays(path, key)
            yield from self._children(path, key)

    def _known(self, seen: Seen) -> Seen:
        """Of the modules with one scope the one that is known, if one is."""
        known = (m for m in sharing(seen.module) if layer_of(Seen(m), self.options) is not None)
        return replace(seen, module=next(known, seen.module))

    def _layer(self, make: Make, module: Any, mounts: Mapping[str, Path], key: Key) -> Iterator[Layer]:
        places = Places.of(mounts, self.below)
        found = {leaf.path: leaf for leaf in places.leaves.values()}
        if not found:
            return
        rules = [places.locate(rule) for rule in make(places.shapes)]
        expected = {path: leaf.inside for path, leaf in found.items()}
        actual = {path: leaf.shape for path, leaf in found.items()}
        first = self._first(found, key)
        yield Layer(key, "", kind_of(module), rules, expected, actual, first, settings=settings_of(module))

    def _rnns(self, rnns: list[Any], key: Key) -> Iterator[Layer]:
        mounts = {name: path for n, rnn in enumerate(rnns) for name, path in mounts_of(rnn, f"{n}.").items()}
        yield from self._layer(multilayer(rnns), None, mounts, key)

    def _arrays(self, path: Path, key: Key) -> Iterator[Layer | Leaf]:
        """A module's own arrays: parameters first, then others, each in order of construction."""
        order = list(self.seen[path].names)
        rank = {name: n for n, name in enumerate(order)}
        mine = sorted(self.own.get(path, ()), key=lambda leaf: rank.get(leaf.names[len(path)], len(rank)))
        for leaf in sorted(mine, key=lambda leaf: leaf.collection != "params"):
            yield self._array(leaf, ".".join(leaf.names[len(path) :]), key, type(self.seen[path].module))

    def _array(self, leaf: Variable, name: str, key: Key, owner: type) -> Layer | Leaf:
        """An array without axes, or with one, has one layout, also in a stack; any other is asked for."""
        first, buffer = self._first([leaf.path], key), leaf.collection != "params"
        if len(leaf.inside) > 1:
            same_as = first and (*first, name)
            return Leaf((*key, name), leaf.path, leaf.shape, owner.__name__, buffer, same_as)
        rule = Rule(name, leaf.path, "a -> a" if leaf.inside else "->", buffer=buffer)
        return Layer(key, "", "", [rule], {leaf.path: leaf.inside}, {leaf.path: leaf.shape}, first)

    def _children(self, path: Path, key: Key) -> Iterator[Layer | Leaf]:
        lists: dict[Key, list[Path]] = {}
        children = self._named(path)
        for parts, place in children.items():
            if len(parts) > 1 and self._is_multilayer((*key, *parts[:-1])):
                lists.setdefault(parts[:-1], []).append(place)
        for parts, place in children.items():
            if parts[:-1] not in lists:
                yield from self.module(place, (*key, *parts))
            elif places := lists[parts[:-1]]:
                lists[parts[:-1]] = []
                yield from self._rnns([self.seen[p].module for p in places], (*key, *parts[:-1]))

    def _named(self, path: Path) -> dict[Key, Path]:
        """The submodules of a module: torch's name for each, and where its variables are."""
        seen, children = self.seen[path], {}
        own = [(parts, child.path) for parts, child in attributes(seen.module)]
        attribute_names = {"_".join(parts) for parts, _ in own}
        for parts, place in own:
            here = place[:-1] == path and bool(place)
            if place in self.seen and not (here and place in self.held):
                explicit = here and place[-1] not in attribute_names
                children.setdefault((place[-1],) if explicit else _in_torch(seen.module, parts), place)
        reached = {*children.values(), *self.held}
        made = [place for place in self.made.get(path, ()) if place not in reached]
        return children | {(self._name(place),): place for place in made}

    def _name(self, place: Path) -> str:
        """A module's name; that of the layer inside if only this one was given a name."""
        module = self.seen[place].module
        inner = [child for _, child in attributes(module)] if kind_class(module) in HOLDERS else []
        if len(inner) == 1 and _is_anonymous(module) and inner[0].path[: len(place)] != place:
            return place[-1] if _is_anonymous(inner[0]) else inner[0].path[-1]
        return place[-1]

    def _first(self, paths: Any, key: Key) -> Key | None:
        """The key under which the very same leaves stood before, if they did."""
        first = self.met.setdefault(tuple(sorted(paths)), key)
        return first if first != key else None

    def _is_multilayer(self, key: Key) -> bool:
        return matches(".".join(key), self.options.multilayer)


def _by_module(traced: Trace) -> tuple[dict[Path, list[Variable]], dict[Path, list[Variable]]]:
    """The variables below each module, and those that are its own."""
    below: dict[Path, list[Variable]] = {}
    own: dict[Path, list[Variable]] = {}
    for leaf in traced.leaves():
        paths = [p for n in range(len(leaf.names)) if (p := leaf.names[:n]) in traced.seen]
        for path in paths:
            below.setdefault(path, []).append(leaf)
        own.setdefault(paths[-1], []).append(leaf)
    return below, own


def _in_torch(module: Any, parts: Key) -> Key:
    """torch counts the layers of a Sequential without naming their list."""
    return parts[1:] if isinstance(module, nn.Sequential) and parts[0] == "layers" else parts


def _is_anonymous(module: nn.Module) -> bool:
    """True for a name that Flax made up; a transform puts its own before the class."""
    return re.fullmatch(rf"\w*{type(module).__name__}_\d+", module.name or "") is not None
