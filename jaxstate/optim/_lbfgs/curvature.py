"""Curvature: what L-BFGS remembers of the function's past, and the direction that follows from it.

Liu and Nocedal, On the limited memory BFGS method for large scale optimization (1989); Nocedal, Updating
quasi-Newton matrices with limited storage (1980), whose two loops are `direction`. Fields have torch's names,
as in the state of https://docs.pytorch.org/docs/stable/generated/torch.optim.LBFGS.html.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxstate.optim._double import Double

# torch takes a pair only if y.s is above this.
LEAST_CURVATURE = 1e-10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What torch keeps between two steps, for N elements and a history of m pairs.

    Args:
        func_evals: int32, evaluations so far.
        al: (m,), the coefficients of the first loop; of its last run, and torch only writes them.
        al_place: int32, where torch's dict has `al`: 0 for nowhere, 1 before `d`, 2 at the end.
        d: (N,), the last direction.
        t: how far the last step went along it.
        t_kind: int32, what torch has `t` as, a Kind of `_line`; below 0 before there is one.
        old_dirs, old_stps: (m, N), rings of y and s; their oldest pair is in row `oldest`, and `count` are
            filled.
        ro: (m,), a ring of 1 / y.s.
        H_diag: the scale of the initial inverse Hessian.
        prev_flat_grad: (N,), the gradient where the last direction was taken.
        prev_loss: the loss there.
        oldest, count: int32.
    """

    func_evals: Any
    al: Any
    al_place: Any
    d: Any
    t: Double
    t_kind: Any
    old_dirs: Any
    old_stps: Any
    ro: Any
    H_diag: Any
    prev_flat_grad: Any
    prev_loss: Double
    oldest: Any
    count: Any


def empty(size: int, history_size: int, dtype: Any, t_kind: int) -> Memory:
    """A memory of nothing."""
    vector, rows = jnp.zeros(size, dtype), jnp.zeros((history_size, size), dtype)
    row, zero = jnp.zeros(history_size, dtype), jnp.zeros((), jnp.int32)
    return Memory(
        func_evals=zero,
        al=row,
        al_place=zero,
        d=vector,
        t=Double.of(0),
        t_kind=jnp.int32(t_kind),
        old_dirs=rows,
        old_stps=rows,
        ro=row,
        H_diag=jnp.ones((), dtype),
        prev_flat_grad=vector,
        prev_loss=Double.of(0),
        oldest=zero,
        count=zero,
    )


def remember(memory: Memory, g: Any, started: Any) -> Memory:
    """The memory with the pair that the last step has made, in place of the oldest one if it is full.

    Args:
        memory: before; `d`, `t` and `prev_flat_grad` are those of the last step.
        g: (N,), the gradient now.
        started: False before the first step, when there is no pair.
    """
    y, s = g - memory.prev_flat_grad, memory.t * memory.d
    ys, size = dot(y, s), len(memory.ro)
    taken = started & (ys > LEAST_CURVATURE)
    slot = (memory.oldest + memory.count) % size
    full = memory.count == size

    def put(ring: Any, row: Any) -> Any:
        return ring.at[slot].set(jnp.where(taken, row, ring[slot]))

    return replace(
        memory,
        old_dirs=put(memory.old_dirs, y),
        old_stps=put(memory.old_stps, s),
        ro=put(memory.ro, 1 / ys),
        H_diag=jnp.where(taken, ys / dot(y, y), memory.H_diag),
        oldest=jnp.where(taken & full, (memory.oldest + 1) % size, memory.oldest),
        count=jnp.where(taken & ~full, memory.count + 1, memory.count),
    )


def direction(memory: Memory, g: Any) -> tuple[Any, Any]:
    """`-H g` for the inverse Hessian H of the remembered pairs, and the new `al`.

    Without a pair H is the identity.
    """
    size = len(memory.ro)

    def newest_first(k: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        q, al = carry
        i = memory.count - 1 - k
        j = (memory.oldest + i) % size
        a = dot(memory.old_stps[j], q) * memory.ro[j]  # alpha_i = rho_i s_i.q
        return q - a * memory.old_dirs[j], al.at[i].set(a)  # q = q - alpha_i y_i

    def oldest_first(i: Any, r: Any) -> Any:
        j = (memory.oldest + i) % size
        b = dot(memory.old_dirs[j], r) * memory.ro[j]  # beta_i = rho_i y_i.r
        return r + (al[i] - b) * memory.old_stps[j]  # r = r + (alpha_i - beta_i) s_i

    q, al = lax.fori_loop(0, memory.count, newest_first, (-g, memory.al))
    return lax.fori_loop(0, memory.count, oldest_first, q * memory.H_diag), al


def dot(x: Any, y: Any) -> Any:
    """The inner product, in the dtype's own precision on every device."""
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


def largest(x: Any) -> Any:
    """The largest absolute value; NaN if there is one."""
    return jnp.max(jnp.abs(x), initial=0)
