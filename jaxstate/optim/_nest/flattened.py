"""Flattened: a State whose parameters `optax.flatten` has made one vector, and the same State by parameter.

The vector is the leaves of the parameters, one after the other in JAX's order. It says neither how many there
are nor what they are called, so the parameters are asked for.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.placement import place
from jaxstate.errors import OptimizerError
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._state import State


def unflattened(state: State, params: Any) -> State:
    """The State by parameter, if it is one of a vector; buffers become flat dicts by path.

    Args:
        params: the parameters, which may be abstract; None where nothing is flattened.

    Raises:
        OptimizerError: parameters of another number of elements.
    """
    if not _is_vector(state, params):
        return state
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    ordered = tuple(paths[i] for i in order)
    rows = {name: _pieces(state.buffer(name)[""], leaves) for name in state.buffers}
    return replace(
        state,
        step=jnp.broadcast_to(state.step, (len(paths),)),
        buffers={name: {paths[i]: row[i] for i in order} for name, row in rows.items()},
        param_groups=tuple(replace(g, paths=ordered if g.paths else ()) for g in state.param_groups),
        paths=ordered,
    )


def flattened(template: State, state: State, params: Any) -> State:
    """The inverse of `unflattened`: the State of a vector with these values; others stay as they are.

    Raises:
        OptimizerError: parameters of one vector that were not updated equally often.
    """
    if not _is_vector(template, params):
        return state
    if len(steps := sorted(set(np.asarray(state.step).tolist()))) > 1:
        raise OptimizerError(f"the parameters are one vector with one step, and the file has {steps}")
    rows = {name: [state.buffer(name)[path] for path in leaf_paths(params)] for name in template.buffers}
    vectors = {name: np.concatenate([np.ravel(x) for x in row]) for name, row in rows.items()}
    new = template
    for name, vector in vectors.items():
        new = new.with_buffer(name, {"": place(vector, template.buffer(name)[""])})
    groups = [replace(group, paths=like.paths) for group, like in _pairs(state, template)]
    return replace(new, step=jnp.asarray(np.array(steps, np.int32)), param_groups=tuple(groups))


def _is_vector(state: State, params: Any) -> bool:
    return state.paths == ("",) and params is not None and leaf_paths(params) != ("",)


def _pairs(state: State, template: State) -> list[tuple[Any, Any]]:
    return list(zip(state.param_groups, template.param_groups, strict=True))


def _pieces(vector: Any, leaves: Sequence[Any]) -> list[Any]:
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    if sum(sizes) != vector.size:
        raise OptimizerError(f"the vector has {vector.size} elements, and params= has {sum(sizes)}")
    if isinstance(vector, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(leaf.shape, vector.dtype) for leaf in leaves]
    stops = np.cumsum(sizes)
    return [
        vector[stop - size : stop].reshape(leaf.shape)
        for leaf, size, stop in zip(leaves, sizes, stops, strict=True)
    ]
