"""Haiku: which arrays a transformed function makes, in which order torch would register them, what each is.

Parameters are called by the names of modules: `mlp/~/linear_0`. In torch's keys methods go unsaid, `~` among
them, and so does the model itself where all arrays are below one module. What a constructor makes comes in
the order of construction, as torch registers it; what a call makes in the order of its first call.

The variables are what `init` returns: the parameters, or the pair `(params, state)` of a model with state,
whose paths then begin with `0.` and `1.`.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax

from jaxstate.adapters import _pytree
from jaxstate.adapters._haiku_layers import layer_of, neighbour_kind, owner_of
from jaxstate.adapters._haiku_trace import Array, Seen, arrays_of, haiku, parent, parts, trace
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Key, Layer, Leaf, Reading
from jaxstate.binding import matches
from jaxstate.errors import BindingError
from jaxstate.settings import settings_of


def recognises(model: Any) -> bool:
    """True for what `hk.transform` and `hk.transform_with_state` return."""
    return haiku() is not None and isinstance(model, haiku().Transformed | haiku().TransformedWithState)


def leaves(model: Any) -> NoReturn:
    """Refuse: the arrays are elsewhere. Raises BindingError."""
    raise BindingError(
        "a transformed function of Haiku holds no arrays; pass what its init returned: "
        "binding = js.bind(transformed, *example_inputs), then js.state_dict(params, binding), or "
        "js.state_dict((params, state), binding)"
    )


def opened(model: Any) -> NoReturn:
    """Refuse, as `leaves` does."""
    leaves(model)


def read(model: Any, options: Options) -> Reading:
    """What the function's arrays are, in order: known layers with their rules, and other arrays.

    Raises:
        BindingError: the function does not run with the inputs given; a layer that torch has no twin for.
    """
    has_state = isinstance(model, haiku().TransformedWithState)
    variables, seen = trace(model, options)
    walk = _Walk.of(seen, list(arrays_of(variables, seen, has_state)), options)
    found = list(walk.model())
    if idle := [pattern for pattern in options.multilayer if pattern not in walk.multilayers]:
        raise BindingError(f"multilayer={idle}: no recurrent core has such a name")
    call = _call_of(model, variables, has_state, options)
    return Reading(found, _pytree.leaves(variables), call, walk.stacked())


def _call_of(model: Any, variables: Any, has_state: bool, options: Options) -> Any:
    rng = [jax.random.key(0)] if "rng" in inspect.signature(model.apply).parameters else []

    def call(flat: Mapping[str, Any], *inputs: Any) -> Any:
        filled = _pytree.with_leaves(variables, flat)
        result = model.apply(*(filled if has_state else (filled,)), *rng, *inputs, **options.kwargs)
        return result[0] if has_state else result

    return call


@dataclass
class _Walk:
    """One pass over the modules of a traced function; `below` has the arrays in and below each module."""

    seen: Seen
    options: Options
    below: Mapping[str, list[Array]]
    root: str
    multilayers: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, seen: Seen, arrays: list[Array], options: Options) -> "_Walk":
        below: dict[str, list[Array]] = {"": arrays}
        for array in arrays:
            name = array.module
            while name:
                below.setdefault(name, []).append(array)
                name = parent(name)
        tops = {array.module.split("/")[0] for array in arrays}
        root = tops.pop() if len(tops) == 1 else ""
        return cls(seen, options, below, "" if root.startswith("~") else root)

    def model(self) -> Iterator[Layer | Leaf]:
        yield from self.module(self.root)

    def module(self, name: str) -> Iterator[Layer | Leaf]:
        module, arrays, key = self.seen.module(name), self.below.get(name, []), self.key(name)
        shapes = {_relative(array, name): array.inside for array in arrays}
        make = None if module is None else layer_of(module, shapes, self.options, self._suffix(key))
        if make is None:
            yield from self._own(name, module, key)
            for child in self._children(name):
                yield from self.module(child)
        elif arrays:
            rules = [_absolute(rule, name, arrays) for rule in make(shapes)]
            expected = {array.path: array.inside for array in arrays}
            actual = {array.path: array.shape for array in arrays}
            kind, settings = neighbour_kind(module), settings_of(module)
            yield Layer(key, "", kind, rules, expected, actual, settings=settings)

    def key(self, name: str) -> Key:
        """torch's name of a module."""
        return parts(name)[1:] if self.root else parts(name)

    def stacked(self) -> dict[str, int]:
        """The modules whose arrays have an axis of layers in front."""
        return {
            ".".join(self.key(name)): 0
            for name in self.seen.lifted
            if any(array.shape != array.inside for array in self.below.get(name, ()))
        }

    def _own(self, name: str, module: Any, key: Key) -> Iterator[Leaf]:
        """A module's own arrays: parameters, then states."""
        own = [a for a in self.below.get(name, ()) if a.module == name or (not name and a.module == "~")]
        for array in own:
            names = (*key, *array.name.split("."))
            yield Leaf(names, array.path, array.shape, owner_of(module), array.is_state)

    def _children(self, name: str) -> list[str]:
        """The modules below: those of the constructor as they were made, the others as they were called."""
        found = [other for other in self.below if other and other != "~" and parent(other) == name]
        made, called = (
            {n: rank for rank, n in enumerate(order)} for order in (self.seen.made, self.seen.called)
        )
        last = len(made) + len(called)

        def rank(child: str) -> tuple[bool, int]:
            by_init = name != "" and child.removeprefix(f"{name}/").startswith("~/")
            return not by_init, (made if by_init else called).get(child, last)

        return sorted(found, key=rank)

    def _suffix(self, key: Key) -> str:
        named = {pattern for pattern in self.options.multilayer if matches(".".join(key), [pattern])}
        self.multilayers |= named
        return "_l0" if named else ""


def _relative(array: Array, name: str) -> str:
    """An array as the rules of a layer call it: by what follows the layer's name."""
    return f"{array.module[len(name) :]}.{array.name}"


def _absolute(rule: Any, name: str, arrays: list[Array]) -> Any:
    """A rule of a layer with the paths of the variables, where a state stands apart from parameters."""
    found = (array for array in arrays if _relative(array, name) in rule.paths)
    first = next(found, None)
    return rule if first is None else rule.at("", first.path.removesuffix(_relative(first, name)))
