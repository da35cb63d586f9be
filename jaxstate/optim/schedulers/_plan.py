"""Plan: the numbers that a scheduler will set, worked out ahead, for compiled programs.

A step of torch's is Python and float64; a compiled program has neither. So the host runs the steps to come,
and the program looks their numbers up, to the last bit. A count outside the plan gives NaN, not a guess.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstate.errors import OptimizerError
from jaxstate.optim._double import Double
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._state import find_state, replace_state
from jaxstate.optim.schedulers._groups import SET, Groups, read_groups, write_groups
from jaxstate.optim.schedulers._scheduler import Scheduler, State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """The numbers of every group for steps 0 (now) to n.

    Args:
        numbers: for each group, by torch's names, Doubles of n+1 rows.
    """

    numbers: tuple[dict[str, Any], ...]

    def apply(self, opt: Any, step: Any) -> Any:
        """The optimizer state with the numbers of a step; compiled once for all steps.

        Args:
            opt: the optimizer state.
            step: int or int32 (), how many steps of the scheduler after the plan was made. NaN is set for one
                that is not in the plan.
        """
        state = find_state(opt)
        rows = zip(state.param_groups, self.numbers, strict=True)
        groups = tuple(_planned(group, numbers, step) for group, numbers in rows)
        return replace_state(opt, replace(state, param_groups=groups))


def plan(scheduler: Scheduler, state: State, opt: Any, steps: int) -> Plan:
    """Run a scheduler ahead, so that a compiled train step can take its numbers: `opt = plan.apply(opt, i)`.

    Neither state nor opt moves on. For torch's state after i of these steps, keep what they are now:
    `scheduler.step(state, js.optim.param_groups(opt), times=i)`.

    Args:
        scheduler, state, opt: as for `scheduler.step`.
        steps: how many to plan.

    Raises:
        OptimizerError: a scheduler that needs a metric; a number that the optimizer cannot take.

    >>> import jaxstate.optim as optim
    >>> opt, halves = optim.sgd(lr=0.8).init({"w": jnp.ones(3)}), optim.schedulers.ExponentialLR(gamma=0.5)
    >>> state, opt = halves.init(opt)
    >>> third = jax.jit(plan(halves, state, opt, steps=5).apply)(opt, 3)
    >>> optim.param_groups(third)[0]["lr"] == 0.8 * 0.5**3
    True
    """
    rows = _rows(scheduler, state, opt, steps)
    write_groups(opt, rows[-1], rows[0])
    dtype = jax.tree.leaves(find_state(opt).param_groups[0].numbers)[0].dtype
    keys = [[key for key in SET if key in group.numbers] for group in find_state(opt).param_groups]
    tables = [
        {key: _table([row[i][key] for row in rows], dtype) for key in names} for i, names in enumerate(keys)
    ]
    return Plan(tuple(tables))


def schedule(
    scheduler: Scheduler,
    state: State,
    groups: Any,
    steps: int,
    *,
    first: int = 0,
    group: int = 0,
    key: str = "lr",
) -> optax.Schedule:
    """A scheduler's lr as an `optax.Schedule`, for optimizers of optax.

    Args:
        scheduler, state, groups: as for `scheduler.step`; groups may be torch's, out of a checkpoint.
        steps: how many to work out; a count outside of them gives NaN.
        first: optax's count now.
        group: of which group.
        key: "lr", or "momentum".

    Raises:
        OptimizerError: a scheduler that needs a metric.

    >>> halves = __import__("jaxstate.optim").optim.schedulers.ExponentialLR(gamma=0.5)
    >>> rate = schedule(halves, *halves.init([{"lr": 0.8}]), steps=5)
    >>> bool(rate(3) == jnp.float32(0.8 * 0.5**3)), bool(jnp.isnan(rate(6)))
    (True, True)
    """
    rows = _rows(scheduler, state, groups, steps)
    values = np.array([float(row[group][key]) for row in rows])
    return lambda count: _looked_up(jnp.asarray(values, jnp.result_type(float)), jnp.asarray(count) - first)


def _rows(scheduler: Scheduler, state: State, opt: Any, steps: int) -> list[Groups]:
    """The groups now, and after each of the steps."""
    if scheduler.argument == "metrics":
        raise OptimizerError(f"{scheduler.name} waits for a metric at every step and cannot be planned")
    groups = read_groups(opt)
    state, groups = scheduler.step(state, groups, times=0)
    rows = [groups]
    for _ in range(steps):
        state, groups = scheduler.advance(state, groups, None)
        rows.append(groups)
    return rows


def _table(values: list[Any], dtype: Any) -> Any:
    if isinstance(values[0], tuple | list):
        return tuple(_table(list(column), dtype) for column in zip(*values, strict=True))
    return Double(jnp.asarray(_parts(np.array(values, np.float64), dtype)))


def _parts(rest: np.ndarray, dtype: Any) -> np.ndarray:
    """(n, 3) of a dtype, of falling size, whose sums are n numbers: all of Double's at once."""
    parts = []
    for _ in range(3):
        parts.append(rest.astype(dtype))
        rest = rest - parts[-1]
    return np.stack(parts, axis=-1)


def _planned(group: ParamGroup, numbers: dict[str, Any], step: Any) -> ParamGroup:
    now = jax.tree.map(lambda rows: _looked_up(rows, step), numbers)
    return replace(group, numbers={**group.numbers, **now})


def _looked_up(rows: Any, step: Any) -> Any:
    step = jnp.asarray(step)
    # A negative index would count from the end.
    return rows.at[jnp.where(step < 0, len(rows), step)].get(mode="fill", fill_value=jnp.nan)
