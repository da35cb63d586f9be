"""LBFGSState: a State that remembers curvature. torch keeps it once, not once a parameter."""

from dataclasses import dataclass, field
from typing import Any

import jax

from jaxstate.optim._curvature import Memory
from jaxstate.optim._flat import Flat
from jaxstate.optim._state import State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LBFGSState(State):
    """The state of L-BFGS; its `step` counts iterations, of which all parameters have had the same.

    Args:
        memory: what torch keeps under its first parameter.
        flat: which element of the memory's vectors is which of the parameters'.
    """

    memory: Memory
    flat: Flat = field(metadata={"static": True})

    @property
    def n_iter(self) -> Any:
        """int32, iterations so far."""
        return self.step.max(initial=0)
