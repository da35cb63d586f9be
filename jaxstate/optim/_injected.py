"""Injected: hyper-parameters that are given as arrays, and so are whatever the caller makes of them.

`optax.inject_hyperparams(js.optim.adamw)(lr=schedule)` calls the constructor at every step, with arrays. What
is an array wins over the number in the state; what is Python's is the state's to keep and a file's to change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import optax
from jax.core import Tracer

from jaxstate.optim._algorithm import Algorithm
from jaxstate.optim._state import State, check_is_state

# Numbers that ask for a buffer where they are not zero. An array may be that later.
ASKING = {"momentum": 0.9}


def arrays_in(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are arrays, or pairs with one."""
    return {
        key: value
        for key, value in options.items()
        if any(isinstance(x, jax.Array) for x in jax.tree.leaves(value))
    }


def checkable(algorithm: Algorithm, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as Python numbers. What is traced has no value to check, and stands as one that passes."""
    passing = {**dict(algorithm.defaults), **ASKING}
    return {**options, **{key: _number(x, passing.get(key)) for key, x in arrays_in(options).items()}}


def makeable(algorithm: Algorithm, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as Python numbers that ask for every buffer that the arrays may come to need."""
    asking = {key: ASKING[key] for key in arrays_in(options) if key in ASKING}
    return {**checkable(algorithm, options), **asking}


def injecting(
    tx: optax.GradientTransformation, rows: Sequence[Mapping[str, Any]]
) -> optax.GradientTransformation:
    """The transformation that takes these arrays, group by group, in place of its state's numbers."""
    if not any(rows):
        return tx
    made: Any = tx

    def init(params: Any) -> Any:
        return _with(made.init(params), rows)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        check_is_state(state)
        return made.update(updates, _with(state, rows), params)

    functions: Any = (init, update)
    return optax.GradientTransformation(*functions)


def _with(state: State, rows: Sequence[Mapping[str, Any]]) -> State:
    rows = [*rows, *[{}] * (len(state.param_groups) - len(rows))]
    groups = [
        replace(group.changed(**row), injected=tuple(row)) if row else group
        for group, row in zip(state.param_groups, rows, strict=True)
    ]
    return replace(state, param_groups=tuple(groups))


def _number(value: Any, passing: Any) -> Any:
    if isinstance(value, (tuple, list)):
        pairs = zip(value, passing, strict=True)
        return type(value)(_number(item, instead) for item, instead in pairs)
    if isinstance(value, Tracer):
        return passing
    return value.item() if isinstance(value, jax.Array) and value.size == 1 else value
