"""One abstract run of a Linen model's `init`: which modules ran, in which order, with which variables.

Variables are a nested dictionary without types. The modules that own them exist only while the model runs,
so it is run once on shapes alone, and every call of a method is looked at on its way. Inside a scan or a
vmap a module sees its variables without the stacked axis: both shapes are kept.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
from flax import linen as nn
from flax.core import meta

from jaxstate.adapters._options import Options
from jaxstate.errors import BindingError
from jaxstate.tree import dotted, flat, unflat

Path = tuple[str, ...]
Shape = tuple[int, ...]
Found = TypeVar("Found")

# Flax runs `setup` and an empty lambda on throwaway copies of a module, whose path is not the module's.
_CHECKS = ("setup", "<lambda>")


@dataclass
class Seen:
    """A module that ran.

    Attributes:
        module: itself, bound; inside a transform it is of its own class. None if only submodules ran.
        names: of its variables, in order of construction; those of submodules are among them.
        texts: strings that it was called with, such as the equation of an einsum.
    """

    module: Any = None
    names: dict[str, None] = field(default_factory=dict)
    texts: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Variable:
    """A leaf of the variables: its collection, the names below it, its shape as its module saw it."""

    path: str
    collection: str
    names: Path
    shape: Shape
    inside: Shape


@dataclass(frozen=True)
class Trace:
    """What one run tells: the variables without boxes, and the modules in order of first call."""

    variables: Any
    seen: Mapping[Path, Seen]
    inside: Mapping[str, Shape]

    @property
    def is_partial(self) -> bool:
        """True if a variable has an owner that was not seen."""
        return any(leaf.names[:-1] not in self.seen for leaf in self.leaves())

    def leaves(self) -> Iterator[Variable]:
        """Every variable; parameters first, otherwise in the tree's order."""
        pairs = jax.tree_util.tree_flatten_with_path(self.variables)[0]
        for path, leaf in sorted(pairs, key=lambda pair: dotted(pair[0][:1]) != "params"):
            collection, *names = (dotted((entry,)) for entry in path)
            inside = self.inside.get(dotted(path), tuple(leaf.shape))
            yield Variable(dotted(path), collection, tuple(names), tuple(leaf.shape), inside)


def trace(
    model: nn.Module, options: Options, passing: tuple[str, ...], look: Callable[[Trace], Found]
) -> tuple[Any, Found]:
    """Run a model's `init` on shapes: its variables, and what `look` finds while the modules exist.

    Args:
        model: a module that is not bound.
        options: the inputs and keyword arguments of its call.
        passing: collections to leave out.
        look: what is to be read; its result must hold no module.

    Raises:
        BindingError: `init` does not run with these arguments, or `look` raises it.
    """
    variables, found = _run(model, options, passing, look)
    if found is None:
        with jax.disable_jit():  # Flax runs no method of what it has jitted before
            variables, found = _run(model, options, passing, look)
    return variables, found  # type: ignore[return-value]


def _run(
    model: nn.Module, options: Options, passing: tuple[str, ...], look: Callable[[Trace], Found]
) -> tuple[Any, Found | None]:
    recorder, result = _Recorder(), []
    arrays, rebuilt = abstract((options.inputs, dict(options.kwargs)))

    def init(key: Any, arrays: list[Any]) -> Any:
        inputs, kwargs = rebuilt(arrays)
        variables = _init(model, recorder, key, inputs, kwargs)
        kept = meta.unbox({name: tree for name, tree in variables.items() if name not in passing})
        traced = Trace(kept, _with_parents(recorder.seen), recorder.inside)
        again = traced.is_partial and not jax.config.jax_disable_jit  # type: ignore[attr-defined]
        result.append(None if again else look(traced))
        recorder.seen.clear()  # modules hold what is traced, and this must not outlive the run
        return kept

    return jax.eval_shape(init, jax.random.key(0), arrays), result[0]


def _init(model: nn.Module, recorder: "_Recorder", key: Any, inputs: Any, kwargs: Any) -> Any:
    try:
        with nn.intercept_methods(recorder):
            return model.init(key, *inputs, **kwargs)
    except Exception as error:
        raise BindingError(_failed(model, error)) from error


def abstract(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a tree, and how to put others in their places; flags and numbers stay what they are."""
    found = {path: leaf for path, leaf in flat(tree).items() if hasattr(leaf, "shape")}
    return list(found.values()), lambda arrays: unflat(tree, dict(zip(found, arrays, strict=True)))


@dataclass
class _Recorder:
    """An interceptor of method calls; it changes nothing."""

    seen: dict[Path, Seen] = field(default_factory=dict)
    inside: dict[str, Shape] = field(default_factory=dict)

    def __call__(self, next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name in _CHECKS:
            return next_fun(*args, **kwargs)
        module = context.module
        seen = self.seen.setdefault(module.path, Seen(module))
        texts = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
        result = next_fun(*args, **kwargs)
        seen.texts |= dict.fromkeys(texts)
        seen.names |= dict.fromkeys(module.scope.reservations)
        self._shapes(module)
        return result

    def _shapes(self, module: nn.Module) -> None:
        """Calls end from the inside out, so the first shape of a variable is that of its own module."""
        for collection, tree in meta.unbox(dict(module.variables)).items():
            for name, leaf in flat(tree).items():
                self.inside.setdefault(".".join((collection, *module.path, name)), tuple(leaf.shape))


def _with_parents(seen: Mapping[Path, Seen]) -> dict[Path, Seen]:
    """Modules that run no method of their own are there for those below them."""
    paths = [path[:stop] for path in seen for stop in range(len(path) + 1)]
    return {path: seen.get(path) or Seen() for path in dict.fromkeys(paths)}


def _failed(model: nn.Module, error: Exception) -> str:
    name = type(model).__name__
    return (
        f"{name}.init does not run with these inputs: {type(error).__name__}: {error}\n\t"
        f"give js.bind(model, *inputs, kwargs={{...}}) what {name}.__call__ takes: example arrays or "
        'jax.ShapeDtypeStructs, and flags as keywords, such as kwargs={"train": False}'
    )
