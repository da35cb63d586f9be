"""The entry of LBFGS in torch's state_dict, which stands under the first parameter's id.

Its vectors follow the order of the ids and torch's layouts; ours follow the state's Flat. Its lists run from
the oldest pair to the newest, its step length is an int, a float or a 0-d tensor, and the place of `al` tells
when it was made. All of that is written as torch would have it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxstate.binding import Binding
from jaxstate.optim._lbfgs.curvature import Memory
from jaxstate.optim._lbfgs.flat import Flat
from jaxstate.optim._lbfgs.line import Kind
from jaxstate.optim._lbfgs.state import LBFGSState

# torch's keys in torch's order, but for `al`.
COUNTS = ("func_evals", "n_iter")
KEPT = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")


def lbfgs_entries(state: LBFGSState, binding: Binding, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """torch's `state[p]` by name, of which only the first is not empty, and that not before the first step.

    Args:
        state: of an `lbfgs`.
        binding, names: torch's layouts, and its parameters in the order of their ids.
    """
    there = Flat.of(state.paths, state.flat.shapes, binding, names)
    entries: dict[str, dict[str, Any]] = {name: {} for name in names}
    if names:
        entries[names[0]] = _entry(state, there.index_in(state.flat))
    return entries


def _entry(state: LBFGSState, index: np.ndarray) -> dict[str, Any]:
    memory: Any = jax.tree.map(np.asarray, state.memory)
    if not memory.func_evals:
        return {}
    counts = {"func_evals": int(memory.func_evals), "n_iter": int(state.n_iter)}
    if memory.t_kind == Kind.ABSENT:
        return counts
    if memory.t_kind == Kind.NONE:
        return counts | dict.fromkeys(KEPT)
    kept = _kept(memory, index)
    al = {"al": [np.array(x) if i < memory.count else None for i, x in enumerate(memory.al)]}
    return {0: counts | kept, 1: counts | al | kept, 2: counts | kept | al}[int(memory.al_place)]


def _kept(memory: Memory, index: np.ndarray) -> dict[str, Any]:
    size = len(memory.ro)
    order = [(int(memory.oldest) + i) % size for i in range(memory.count)]
    return {
        "d": memory.d[index],
        "t": _length(memory),
        "old_dirs": [memory.old_dirs[j][index] for j in order],
        "old_stps": [memory.old_stps[j][index] for j in order],
        "ro": [np.array(memory.ro[j]) for j in order],
        "H_diag": np.array(memory.H_diag) if order else 1,
        "prev_flat_grad": memory.prev_flat_grad[index],
        "prev_loss": float(memory.prev_loss),
    }


def _length(memory: Memory) -> Any:
    if memory.t_kind == Kind.TENSOR:
        return np.array(float(memory.t), memory.d.dtype)
    return int(float(memory.t)) if memory.t_kind == Kind.INT else float(memory.t)
