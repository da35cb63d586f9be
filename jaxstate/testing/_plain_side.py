"""A model of any other library: a pytree that can be called. What is inside it cannot be watched."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.testing._arrays import named_arrays
from jaxstate.testing._calls import Call, Module

Run = Callable[[Any], Any]


def outputs_of(model: Any, run: Run) -> dict[str, np.ndarray]:
    """What the model returns, as arrays by name."""
    return named_arrays(run(model))


def tree_of(model: Any) -> Any:
    """What `state_dict` reads."""
    return model


def bound(model: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Binding:
    """The model's own reading, where its library's adapter gives one."""
    return bind(model)


def modules_of(model: Any, run: Run) -> list[Module]:
    """None: modules of this kind of model are not looked at."""
    return []


def watched(model: Any, run: Run) -> list[Call]:
    """No call but the model's own can be seen."""
    return []
