"""A model of any other library: a pytree that can be called. What is inside it cannot be watched."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.testing._arrays import named_arrays
from jaxstate.testing._calls import Call, Module

Run = Callable[[Any], Any]

WORDS = {"nnx.": "jax.nn."}


def call(model: Any, *inputs: Any, **kwargs: Any) -> Any:
    """The model of the inputs."""
    return model(*inputs, **kwargs)


def outputs_of(model: Any, run: Run) -> dict[str, np.ndarray]:
    """What the model returns, as arrays by name."""
    return named_arrays(run(model))


def drawing(model: Any) -> list[str]:
    """None that would not say so: its call is given the keys that it draws with."""
    return []


def tree_of(model: Any) -> Any:
    """What `state_dict` reads."""
    return model


def returned(model: Any, leaves: Mapping[str, Any], run: Run) -> Any:
    """What a model with these leaves returns; it may be traced."""
    return run(adapter_of(model).with_leaves(model, leaves))


def parted(model: Any) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """All arrays, which an optimizer trains, and how they make a model again."""
    leaves, treedef = jax.tree.flatten(model)
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
    params = treedef.unflatten([a if yes else None for a, yes in zip(leaves, is_array, strict=True)])
    others = [None if yes else leaf for leaf, yes in zip(leaves, is_array, strict=True)]

    def make(params: Any, rest: Any) -> Any:
        given = iter(jax.tree.leaves(params))
        return treedef.unflatten([next(given) if yes else o for o, yes in zip(others, is_array, strict=True)])

    return params, (), make


def loss_and_rest(make: Any, params: Any, rest: Any, loss: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """A loss; nothing else changes."""
    return loss(make(params, rest), *batch), rest


def bound(model: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Binding:
    """The model's own reading, where its library's adapter gives one."""
    return bind(model)


def modules_of(model: Any, run: Run) -> list[Module]:
    """None: modules of this kind of model are not looked at."""
    return []


def watched(model: Any, run: Run) -> list[Call]:
    """No call but the model's own can be seen."""
    return []
