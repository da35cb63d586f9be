"""Flax NNX's side of a comparison: run a model, or watch it run, and leave it as it was.

What runs is a clone. To watch it, `__call__` of the classes in it is wrapped for as long as the run takes;
calls of other instances of these classes pass through unseen.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from flax import nnx

from jaxstate.adapters._nnx import with_leaves
from jaxstate.adapters._nnx_layers import kind_class
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.testing._arrays import is_traced, named_arrays
from jaxstate.testing._calls import Call, Module

Run = Callable[[Any], Any]

WORDS: Mapping[str, str] = {}


def call(model: Any, *inputs: Any, **kwargs: Any) -> Any:
    """The model of the inputs."""
    return model(*inputs, **kwargs)


def outputs_of(model: nnx.Module, run: Run) -> dict[str, np.ndarray]:
    """What the model returns, as arrays by name."""
    return named_arrays(run(nnx.clone(model)))


def drawing(model: nnx.Module) -> list[str]:
    """The modules that draw at random whenever they are called."""
    modules = [(".".join(map(str, path)), module) for path, module in nnx.iter_modules(model)]
    rates = [(path, m, getattr(m, "rate", getattr(m, "dropout_rate", 0))) for path, m in modules]
    return [path for path, m, rate in rates if rate and getattr(m, "deterministic", None) is False]


def tree_of(model: nnx.Module) -> Any:
    """What `state_dict` reads."""
    return model


def returned(model: nnx.Module, leaves: Mapping[str, Any], run: Run) -> Any:
    """What a model with these leaves returns; it may be traced."""
    return run(with_leaves(model, leaves))


def parted(model: nnx.Module) -> tuple[Any, Any, Callable[[Any, Any], nnx.Module]]:
    """What an optimizer trains, what it does not, and how both make a model again."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return params, rest, lambda params, rest: nnx.merge(graphdef, params, rest, copy=True)


def loss_and_rest(make: Any, params: Any, rest: Any, loss: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """A loss, and what is not trained as it is afterwards: running statistics, counts."""
    model = make(params, rest)
    return loss(model, *batch), nnx.state(model, nnx.Not(nnx.Param))


def bound(model: nnx.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Binding:
    """The model's own reading."""
    return bind(model, *inputs, kwargs=kwargs)


def modules_of(model: nnx.Module, run: Run) -> list[Module]:
    """Every module, with the leaves below it by the names that a Binding gives them."""
    flat = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)]
    names = {id(node): ".".join(map(str, path)) for path, node in flat}
    return [_module(path, module, names) for path, module in nnx.iter_modules(model)]


def _module(path: tuple[Any, ...], module: nnx.Module, names: Mapping[int, str]) -> Module:
    below = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Variable)]
    leaves = frozenset(names[id(node)] for node in below)
    return Module(".".join(map(str, path)), module, leaves, kind_class(module) is not None)


def watched(model: nnx.Module, run: Run) -> list[Call]:
    """Run a clone of the model and note every call of every module in it, in the order in which they end.

    A model that does not run is watched until it stops; what it raised has been said by then.
    """
    clone, calls = nnx.clone(model), []
    with _watching(clone, calls), suppress(Exception):
        run(clone)
    return calls


@contextmanager
def _watching(model: nnx.Module, calls: list[Call]) -> Iterator[None]:
    paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    kinds = {type(module) for _, module in nnx.iter_modules(model) if callable(module)}
    own = {kind: vars(kind).get("__call__") for kind in kinds}
    inherited = {kind: kind.__call__ for kind in kinds}
    running: set[int] = set()
    try:
        for kind in kinds:
            setattr(kind, "__call__", _noting(inherited[kind], paths, calls, running))  # noqa: B010
        yield
    finally:
        for kind, call in own.items():
            delattr(kind, "__call__") if call is None else setattr(kind, "__call__", call)


def _noting(call: Any, paths: Mapping[int, str], calls: list[Call], running: set[int]) -> Any:
    counts: Counter[str] = Counter()

    def noted(module: Any, *args: Any, **kwargs: Any) -> Any:
        if id(module) not in paths or id(module) in running:  # of another model, or a call of super()
            return call(module, *args, **kwargs)
        running.add(id(module))
        try:
            output = call(module, *args, **kwargs)
        finally:
            running.discard(id(module))
        if not is_traced((args, kwargs, output)):
            path = paths[id(module)]
            inputs = named_arrays((*args, kwargs))
            calls.append(Call(path, type(module).__name__, counts[path], inputs, named_arrays(output)))
            counts[path] += 1
        return output

    return noted
