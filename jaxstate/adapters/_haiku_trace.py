"""One abstract run of a Haiku model's `init`: which modules ran, in which order, with which arrays.

Parameters are a dictionary by the names of modules, and the modules exist only while the model runs. So it is
run once on shapes alone, and every call of a method is looked at on its way. Inside a `layer_stack` the names
are short and the arrays of one layer; the module that lifts them out knows the rest of the name.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxstate.adapters._linen_trace import abstract
from jaxstate.adapters._options import Options
from jaxstate.errors import BindingError
from jaxstate.tree import flat

Shape = tuple[int, ...]

_LOOKS = ("params_dict", "state_dict")


@dataclass(frozen=True)
class Array:
    """A parameter or a state: its path, its module, its name there, its shape, and that without a stack."""

    path: str
    module: str
    name: str
    shape: Shape
    inside: Shape
    is_state: bool


@dataclass
class Seen:
    """What ran: modules by name, in the order in which they were made and in that of their first call.

    `inside` has the shape of every array as its module saw it, in order of creation; `lifted` the names of
    modules that lift others out of a transformation.
    """

    made: dict[str, Any] = field(default_factory=dict)
    called: dict[str, Any] = field(default_factory=dict)
    inside: dict[tuple[str, str], Shape] = field(default_factory=dict)
    lifted: dict[str, None] = field(default_factory=dict)

    def module(self, name: str) -> Any:
        """The module of this name, or None."""
        return self.made.get(name)


def haiku() -> Any:
    """Haiku, which somebody else has imported; None if nobody has."""
    return sys.modules.get("haiku")


def trace(model: Any, options: Options) -> tuple[Any, Seen]:
    """Run `init` on shapes: the parameters, or the pair of parameters and state, and what ran.

    Raises:
        BindingError: `init` does not run with these inputs.
    """
    seen = Seen()
    arrays, rebuilt = abstract((options.inputs, dict(options.kwargs)))

    def init(key: Any, arrays: list[Any]) -> Any:
        inputs, kwargs = rebuilt(arrays)
        return model.init(key, *inputs, **kwargs)

    try:
        with haiku().intercept_methods(_Recorder(seen)):
            return jax.eval_shape(init, jax.random.key(0), arrays), seen
    except Exception as error:
        raise BindingError(
            f"init does not run with these inputs: {type(error).__name__}: {error}\n\t"
            "give js.bind(transformed, *inputs, kwargs={...}) what the function takes: example arrays or "
            'jax.ShapeDtypeStructs, and flags as keywords, such as kwargs={"is_training": True}, without '
            "which BatchNorm makes no statistics"
        ) from error


def arrays_of(variables: Any, seen: Seen, has_state: bool) -> Iterator[Array]:
    """Every array of the variables, a module's own in the order of their creation."""
    pair = variables if has_state else (variables,)
    for n, collection in enumerate(pair):
        own = [(module, name, leaf) for module, row in collection.items() for name, leaf in flat(row).items()]
        order = {place: rank for rank, place in enumerate(seen.inside)}
        for module, name, leaf in sorted(own, key=lambda one: order.get(one[:2], len(order))):
            path = f"{n}.{module}.{name}" if has_state else f"{module}.{name}"
            inside = seen.inside.get((module, name), tuple(leaf.shape))
            yield Array(path, module, name, tuple(leaf.shape), inside, n == 1)


@dataclass
class _Recorder:
    """An interceptor of method calls; it changes nothing."""

    seen: Seen
    prefix: str = ""

    def __call__(self, next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name in _LOOKS or not haiku().running_init():  # a stack also runs what it has made
            return next_fun(*args, **kwargs)
        module = context.module
        if context.method_name == "__init__":
            result = next_fun(*args, **kwargs)
            self.seen.made.setdefault(self.prefix + module.module_name, module)
            return result
        name = self.prefix + module.module_name
        self.seen.made.setdefault(name, module)
        self.seen.called.setdefault(name, module)
        with self._lifting(module, name):
            result = next_fun(*args, **kwargs)
        self._look(module)
        return result

    @contextmanager
    def _lifting(self, module: Any, name: str) -> Iterator[None]:
        before = self.prefix
        if type(module).__name__ == "LiftingModule":
            self.prefix = f"{module.prefix_name}/" if module.prefix_name else ""
            self.prefix = before + self.prefix
            self.seen.lifted.setdefault(name)
        try:
            yield
        finally:
            self.prefix = before

    def _look(self, module: Any) -> None:
        """Calls end from the inside out, so the first shape of an array is that in its own module."""
        if not haiku().running_init():
            return
        own: Mapping[str, Any] = {**module.state_dict(), **module.params_dict()}
        for full, leaf in own.items():
            owner, _, name = full.rpartition("/")
            self.seen.inside.setdefault((self.prefix + owner, name), tuple(leaf.shape))


def parent(name: str) -> str:
    """The module in which a module was made; its methods are no modules.

    >>> parent("net/~/mlp/~/linear_0"), parent("net/~encode/linear"), parent("net")
    ('net/~/mlp', 'net', '')
    """
    return re.sub(r"(/~[^/]*)*/[^/]*$|^[^/]*$", "", name)


def parts(name: str) -> tuple[str, ...]:
    """The names of a module and of those that it stands in.

    >>> parts("net/~/mlp/~/linear_0")
    ('net', 'mlp', 'linear_0')
    """
    return tuple(part for part in name.split("/") if part and not part.startswith("~"))
