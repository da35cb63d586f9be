"""Flax Linen's side of a comparison: a module bound to its variables is run, or watched as it runs."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import DenyList

from jaxstate.adapters._linen_layers import kind_class
from jaxstate.adapters._linen_places import mounts_of
from jaxstate.adapters._pytree import with_leaves
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.testing._arrays import is_traced, named_arrays
from jaxstate.testing._calls import Call, Module
from jaxstate.tree import flat

Run = Callable[[Any], Any]

WORDS = {"nnx.": "nn."}


def call(model: Any, *inputs: Any, **kwargs: Any) -> Any:
    """The model of the inputs."""
    return model(*inputs, **kwargs)


def outputs_of(model: nn.Module, run: Run) -> dict[str, np.ndarray]:
    """What the model returns, as arrays by name."""
    return named_arrays(_applied(model, run))


def _applied(model: nn.Module, run: Run) -> Any:
    """Running statistics are written to a copy that is dropped."""
    module, variables = unbound(model)
    return nn.apply(run, module, mutable=DenyList("params"))(variables, rngs={"params": jax.random.key(0)})[0]


def unbound(model: nn.Module) -> tuple[nn.Module, Any]:
    """The module and its variables.

    Raises:
        TypeError: a module that is not bound holds no weights.
    """
    if model.scope is None:
        name = type(model).__name__
        raise TypeError(f"{name} is a Linen module without weights: pass {name}(...).bind(variables)")
    return model.unbind()


def drawing(model: nn.Module) -> list[str]:
    """None that would not say so: its call is given the keys that it draws with."""
    return []


def tree_of(model: nn.Module) -> Any:
    """What `state_dict` reads."""
    return unbound(model)[1]


def returned(model: nn.Module, leaves: Mapping[str, Any], run: Run) -> Any:
    """What a model with these leaves returns; it may be traced."""
    module, variables = unbound(model)
    return _applied(module.bind(with_leaves(variables, leaves)), run)


def parted(model: nn.Module) -> tuple[Any, Any, Callable[[Any, Any], nn.Module]]:
    """What an optimizer trains, what it does not, and how both make a model again."""
    module, variables = unbound(model)
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], rest, lambda params, rest: module.bind({"params": params, **rest})


def loss_and_rest(make: Any, params: Any, rest: Any, loss: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """A loss, and what is not trained as it is afterwards: running statistics."""
    module, variables = unbound(make(params, rest))
    value, changed = nn.apply(loss, module, mutable=DenyList("params"))(variables, *batch)
    return value, {**rest, **changed}


def bound(model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Binding:
    """The model's own reading."""
    return bind(unbound(model)[0], *inputs, kwargs=kwargs)


def modules_of(model: nn.Module, run: Run) -> list[Module]:
    """Every module that ran, with the leaves below it; Linen's modules exist only while the model runs."""
    paths = list(flat(unbound(model)[1]))
    found: dict[str, Module] = {}

    def look(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        if context.method_name == "__call__":
            module = context.module
            leaves = _below(paths, [".".join(path) for path in mounts_of(module).values()])
            found[".".join(module.path)] = Module(
                ".".join(module.path), module.clone(parent=None), leaves, kind_class(module) is not None
            )
        return output

    def traced() -> None:
        with nn.intercept_methods(look):
            _applied(model, run)

    with suppress(Exception):  # a model that does not run is looked at until it stops
        jax.eval_shape(traced)
    return list(found.values())


def _below(paths: list[str], prefixes: list[str]) -> frozenset[str]:
    """Leaf paths start with a collection: `params.fc.kernel` is below `fc`."""
    starts = tuple(f"{prefix}." if prefix else "" for prefix in prefixes)
    return frozenset(path for path in paths if path.partition(".")[2].startswith(starts))


def watched(model: nn.Module, run: Run) -> list[Call]:
    """Run the model and note every call of every module in it, in the order in which they end.

    A model that does not run is watched until it stops; what it raised has been said by then.
    """
    calls: list[Call] = []
    counts: Counter[str] = Counter()

    def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        if context.method_name == "__call__" and not is_traced((args, kwargs, output)):
            path, inputs = ".".join(context.module.path), named_arrays((*args, kwargs))
            kind = type(context.module).__name__
            calls.append(Call(path, kind, counts[path], inputs, named_arrays(output)))
            counts[path] += 1
        return output

    with nn.intercept_methods(note), suppress(Exception):
        _applied(model, run)
    return calls
