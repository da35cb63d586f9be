"""`--model module:factory`: the user's own function that makes the JAX model, imported by its name."""

import importlib
import os
import sys
from typing import Any, NamedTuple

import jax
from flax import linen

from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.errors import BindingError

HELP = (
    "a function without arguments, as module:function, that returns the model, or (model, example_inputs) "
    "where inputs are needed: for Linen, and where images are flattened. It may be abstract: "
    "nnx.eval_shape(lambda: Net(nnx.Rngs(0)))"
)


class Template(NamedTuple):
    """A model to be filled.

    Attributes:
        model: what `js.load_state_dict` fills: the model, or a Linen model's abstract variables.
        module: what `js.bind` reads.
        inputs: example inputs of its call.
    """

    model: Any
    module: Any
    inputs: tuple[Any, ...]

    def bind(self, like: Any = None) -> Binding:
        """The model's Binding, with what the file knows."""
        return bind(self.module, *self.inputs, like=like)


def template(name: str) -> Template:
    """The model that `module:function` makes.

    Raises:
        BindingError: no such function, or one that fails.
    """
    made = _function(name)()
    pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], tuple | list)
    module, inputs = (made[0], tuple(made[1])) if pair else (made, ())
    return Template(_variables(module, inputs, name), module, inputs)


def _variables(module: Any, inputs: tuple[Any, ...], name: str) -> Any:
    if not isinstance(module, linen.Module):
        return module
    if not inputs:
        raise BindingError(f"{name} returns a Linen module; let it return (module, (example_input, ...))")
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def _function(name: str) -> Any:
    module, colon, function = name.partition(":")
    if not colon:
        raise BindingError(f"--model is written module:function, such as mynet.model:make; not {name!r}")
    # As `python -m` does, so that a file in the folder where one stands is found.
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BindingError(f"--model {name}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    return found
