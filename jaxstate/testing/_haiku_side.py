"""Haiku's side of a comparison: `(transformed, variables)`, run or watched as it runs.

The variables are what `init` returned: the parameters, or `(params, state)`. A call is given the transformed
function with these inside, so that it is called as a module would be. Nothing is drawn: it gets no key.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import _haiku, _pytree
from jaxstate.adapters._haiku_layers import kind_of
from jaxstate.adapters._haiku_trace import haiku
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.errors import BindingError
from jaxstate.testing._arrays import named_arrays
from jaxstate.testing._calls import Call, Module
from jaxstate.testing._vmapped import Notes

Run = Callable[[Any], Any]

WORDS = {"nnx.max_pool": "hk.max_pool", "nnx.avg_pool": "hk.avg_pool", "nnx.": "jax.nn."}


@dataclass(eq=False)
class Bound:
    """A transformed function with its variables: it is called with inputs, and keeps the state it made."""

    transformed: Any
    variables: Any

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        apply = self.transformed.apply
        key = [None] if "rng" in inspect.signature(apply).parameters else []
        if not self.has_state:
            return apply(self.variables, *key, *inputs, **kwargs)
        output, state = apply(*self.variables, *key, *inputs, **kwargs)
        self.variables = (self.variables[0], state)
        return output

    @property
    def has_state(self) -> bool:
        return isinstance(self.transformed, haiku().TransformedWithState)


def recognises(model: Any) -> bool:
    """True for a transformed function with its variables.

    Raises:
        TypeError: a transformed function without any holds no weights.
    """
    if _haiku.recognises(model):
        raise TypeError("a transformed function of Haiku holds no weights: pass (transformed, variables)")
    return isinstance(model, tuple) and len(model) == 2 and _haiku.recognises(model[0])


def call(model: Bound, *inputs: Any, **kwargs: Any) -> Any:
    """The model of the inputs."""
    return model(*inputs, **kwargs)


def outputs_of(model: Any, run: Run) -> dict[str, np.ndarray]:
    """What the model returns, as arrays by name."""
    return named_arrays(run(Bound(*model)))


def drawing(model: Any) -> list[str]:
    """None that would not say so: its call gets no key."""
    return []


def tree_of(model: Any) -> Any:
    """What `state_dict` reads."""
    return model[1]


def returned(model: Any, leaves: Mapping[str, Any], run: Run) -> Any:
    """What a model with these leaves returns; it may be traced."""
    transformed, variables = model
    return run(Bound(transformed, _pytree.with_leaves(variables, leaves)))


def parted(model: Any) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """What an optimizer trains, what it does not, and how both make a model again."""
    transformed, variables = model
    if not Bound(*model).has_state:
        return variables, (), lambda params, rest: (transformed, params)
    return *variables, lambda params, rest: (transformed, (params, rest))


def loss_and_rest(make: Any, params: Any, rest: Any, loss: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """A loss, and the state as it is afterwards: running statistics."""
    model = Bound(*make(params, rest))
    value = loss(model, *batch)
    return value, model.variables[1] if model.has_state else rest


def bound(model: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Binding:
    """The model's own reading. A flag that is down may mean evaluation, in which `init` makes no state."""
    transformed = model[0]
    try:
        return bind(transformed, *inputs, kwargs=kwargs)
    except BindingError:
        return bind(transformed, *inputs, kwargs={name: v is False or v for name, v in kwargs.items()})


def modules_of(model: Any, run: Run) -> list[Module]:
    """Every module that ran, with the leaves below it; Haiku's modules exist only while the model runs."""
    found: dict[str, Module] = {}
    paths = list(_pytree.leaves(model[1]))
    counted = Bound(*model).has_state

    def look(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        name, module = context.module.module_name, context.module
        if context.method_name == "__call__" and name not in found:
            found[name] = Module(name, module, _below(paths, name, counted), kind_of(module) != "")
        return output

    with haiku().intercept_methods(look), suppress(Exception):  # it is looked at until it stops
        jax.eval_shape(lambda: run(Bound(*model)))
    return list(found.values())


def _below(paths: list[str], name: str, counted: bool) -> frozenset[str]:
    """The leaves of a module; in a pair of parameters and state their paths begin with a number."""
    starts = (f"{name}.", f"{name}/")
    return frozenset(p for p in paths if (p.partition(".")[2] if counted else p).startswith(starts))


def watched(model: Any, run: Run) -> list[Call]:
    """Run the model and note every call of every module in it, in the order in which they end.

    Nothing is jitted, since inside a jit there are no values. A model that does not run is watched until it
    stops; what it raised has been said by then.
    """
    notes = Notes()

    def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        if context.method_name == "__call__":
            name, kind = context.module.module_name, type(context.module).__name__
            notes.take(name, kind, (*args, kwargs), output)
        return output

    with jax.disable_jit(), haiku().intercept_methods(note), suppress(Exception):
        run(Bound(*model))
    return notes.calls
