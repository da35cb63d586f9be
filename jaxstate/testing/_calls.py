"""Call: one call of one module, on either side, with what it took and gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxstate.testing._arrays import floating


@dataclass(frozen=True, eq=False)
class Call:
    """A module was called.

    Attributes:
        name: the module's dotted name in torch, or its path in JAX; "" for the model itself.
        kind: the name of its class.
        number: how often it had been called before.
        inputs, outputs: arrays by position and keyword, copied before anything could change them.
        args, kwargs: the arguments themselves, of torch only: a suspicion calls the module with them again.
    """

    name: str
    kind: str
    number: int
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    @property
    def input(self) -> np.ndarray | None:
        """The first argument, if it is an array."""
        return next(iter(self.inputs.values()), None)

    @property
    def output(self) -> np.ndarray | None:
        """The first array of real numbers that it returned, if there is one."""
        return next(iter(floating(self.outputs).values()), None)


@dataclass(frozen=True, eq=False)
class Module:
    """A module of the JAX model.

    Attributes:
        path: where it stands; "" for the model itself.
        module: itself.
        leaves: the paths of all leaves below it, as a Binding writes them.
        is_layer: True if it is a layer of its library, whose inside is its own affair.
    """

    path: str
    module: Any
    leaves: frozenset[str]
    is_layer: bool

    @property
    def kind(self) -> str:
        return type(self.module).__name__
