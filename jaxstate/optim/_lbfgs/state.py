"""LBFGSState: a State that remembers curvature. torch keeps it once, not once a parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._lbfgs.curvature import Memory, empty
from jaxstate.optim._lbfgs.flat import Flat
from jaxstate.optim._lbfgs.line import Kind
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

    @classmethod
    def of(cls, state: State, params: Any, binding: Binding | None) -> "LBFGSState":
        """The state before the first step, abstract where the parameters are.

        Raises:
            OptimizerError: parameters that are not all float32 or all float64.
        """
        leaves = dict(zip(state.paths, jax.tree.leaves(params), strict=True))
        dtype = _dtype(leaves)
        flat = Flat.of(state.paths, tuple(tuple(leaf.shape) for leaf in leaves.values()), binding)

        def make() -> Any:
            return empty(flat.size, state.param_groups[0]["history_size"], dtype, Kind.ABSENT)

        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
        memory: Any = jax.eval_shape(make) if abstract else make()
        kept = {field.name: getattr(state, field.name) for field in fields(State)}
        return cls(**kept, memory=memory, flat=flat)

    @property
    def n_iter(self) -> Any:
        """int32, iterations so far."""
        return self.step.max(initial=0)


def _dtype(leaves: Mapping[str, Any]) -> str:
    found = {str(leaf.dtype) for leaf in leaves.values()} or {"float32"}
    if len(found) > 1 or not found <= {"float32", "float64"}:
        listed = ", ".join(f"{path} ({leaf.dtype})" for path, leaf in leaves.items())
        raise OptimizerError(f"LBFGS here takes parameters all of float32 or all of float64, not {listed}")
    return found.pop()
