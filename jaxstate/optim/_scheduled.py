"""Scheduled: a transformation whose learning rate a schedule sets, as torch's schedulers do.

torch's group holds the rate of the next step, and the scheduler replaces it after each one. So does this:
what a file or a user puts there is used once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxstate.optim._state import State, check_is_state, find_state

Rate = float | optax.Schedule


class ScheduledState(NamedTuple):
    """How many steps were taken, torch's `scheduler.last_epoch`, beside the optimizer's State."""

    count: Any
    inner_state: Any


def begun(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the first rate in place of a schedule, and beside it as torch's schedulers keep it."""
    if not callable(options.get("lr")):
        return dict(options)
    first = _rate(options["lr"], 0)
    return {**options, "lr": first, "initial_lr": first}


def scheduled(tx: optax.GradientTransformation, rates: Sequence[Rate | None]) -> optax.GradientTransformation:
    """The transformation whose groups have these rates; without a schedule among them, itself.

    >>> from jaxstate.optim import adam, param_groups
    >>> tx, params = adam(lr=lambda count: 0.5 / (1 + count)), {"w": jnp.ones(2)}
    >>> _, opt = tx.update(params, tx.init(params), params)
    >>> param_groups(opt)[0]["lr"]
    0.25
    """
    if not any(map(callable, rates)):
        return tx

    def init(params: Any) -> ScheduledState:
        return ScheduledState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ScheduledState]:
        check_is_state(state, ScheduledState)
        updates, inner = tx.update(updates, state.inner_state, params)
        count = optax.safe_increment(state.count)
        return updates, ScheduledState(count, _with_rates(inner, rates, count))

    made: Any = (init, update)
    return optax.GradientTransformation(*made)


def state_at(optimizer: Any, step: int) -> State:
    """The State of no parameters that an optimizer has after some steps: its groups hold the next rates."""
    empty = optimizer.init({})
    if not isinstance(empty, ScheduledState) or step == 0:
        return find_state(empty)
    return find_state(optimizer.update({}, empty._replace(count=jnp.int32(step - 1)), {})[1])


def is_scheduled(optimizer: Any) -> bool:
    """True if the optimizer's rate follows a schedule."""
    return optimizer is not None and isinstance(optimizer.init({}), ScheduledState)


def _with_rates(state: Any, rates: Sequence[Any], count: Any) -> Any:
    # Groups that were added later have no schedule.
    rates = [*rates, *[None] * (len(state.param_groups) - len(rates))]
    groups = [
        group.changed(lr=jnp.asarray(rate(count))) if callable(rate) else group
        for group, rate in zip(state.param_groups, rates, strict=True)
    ]
    return replace(state, param_groups=tuple(groups))


def _rate(schedule: Any, count: int) -> float:
    with jax.ensure_compile_time_eval():
        return float(schedule(jnp.int32(count)))
