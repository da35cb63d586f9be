"""Transformation: an Algorithm, mapped over the leaves of a tree, as an optax.GradientTransformation.

What torch does for every optimizer alike is here: options of groups fall back on the constructor's, buffers
have their parameter's dtype, arithmetic is done in float32 at least, a gradient of None skips the parameter.
A complex parameter is a pair of real ones; its gradient is torch's, the conjugate of what jax.grad gives.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._algorithm import Algorithm
from jaxstate.optim._arrays import as_both_parts
from jaxstate.optim._gradient import check_gradient, slopes_of, widened
from jaxstate.optim._injected import arrays_in, checkable, injecting, makeable
from jaxstate.optim._kinds import check_kinds, check_spelling
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._scheduled import begun, scheduled
from jaxstate.optim._select import checked_selector, select
from jaxstate.optim._state import Absent, State, check_is_state, flatten_buffer


def transformation(
    algorithm: Algorithm,
    options: Mapping[str, Any],
    param_groups: Sequence[Mapping[str, Any]] | None,
    binding: Binding | None,
) -> optax.GradientTransformation:
    """The transformation of an algorithm with these options of torch's constructor.

    Raises:
        OptimizerError: options that torch refuses, in torch's words; options of another kind than torch's;
            a group without `params`.
    """
    every = [{"params": "*"}] if param_groups is None else _listed(param_groups)
    rows = [_complete(algorithm, group, options) for group in every]
    groups, defaults = [begun(row) for row in rows], begun(options)
    for checked in (checkable(algorithm, row) for row in (defaults, *groups)):
        check_kinds(algorithm, checked)
        algorithm.check(checked)
    made = [makeable(algorithm, group) for group in groups]
    init: Any = _init(algorithm, makeable(algorithm, defaults), made, binding)
    update: Any = _update
    tx = injecting(optax.GradientTransformation(init, update), [arrays_in(group) for group in groups])
    return scheduled(tx, [row.get("lr") for row in rows])


def _listed(param_groups: Any) -> list[Any]:
    if isinstance(param_groups, Mapping | str) or not isinstance(param_groups, Iterable):
        raise OptimizerError(
            f'param_groups is a list of dicts, [{{"params": "*.bias", ...}}, ...], not {param_groups!r}'
        )
    if not (every := list(param_groups)):
        raise OptimizerError("optimizer got an empty parameter list")
    return every


def _complete(algorithm: Algorithm, group: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(group, Mapping) or "params" not in group:
        raise OptimizerError(
            f'a group says what its parameters are: {{"params": "*.bias", ...}}, not {group}'
        )
    check_spelling(algorithm, group)
    group = {**group, "params": checked_selector(group["params"])}
    return {**group, **{key: value for key, value in options.items() if key not in group}}


def _init(
    algorithm: Algorithm,
    defaults: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    binding: Binding | None,
) -> Callable[[Any], State]:
    def init(params: Any) -> State:
        _check_placeholder(params)
        paths = leaf_paths(params)
        _check_dtypes(algorithm, dict(zip(paths, jax.tree.leaves(params), strict=True)))
        chosen = (
            select(paths, [group["params"] for group in groups], binding) if paths else [()] * len(groups)
        )
        options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        made = tuple(ParamGroup.of(algorithm, *pair) for pair in zip(options, chosen, strict=True))
        option_of = {path: pair[0] for pair in zip(options, chosen, strict=True) for path in pair[1]}
        step = jnp.zeros(len(paths), jnp.int32)
        leaves, treedef = jax.tree.flatten(params)
        rows = [
            _started(algorithm, p, algorithm.buffers(option_of[path]), defaults)
            for path, p in zip(paths, leaves, strict=True)
        ]
        buffers = {
            name: treedef.unflatten([row.get(name, Absent()) for row in rows])
            for name in dict.fromkeys(name for row in rows for name in row)
        }
        return State(step, buffers, made, algorithm, paths)

    return init


def _started(
    algorithm: Algorithm, p: Any, names: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The buffers of one parameter before the first step."""
    likes = {name: algorithm.like(name, p) for name in names}
    return {
        name: _full(p, like, algorithm.start(name, options))
        for name, like in likes.items()
        if like is not None
    }


def _full(p: Any, like: jax.ShapeDtypeStruct, value: Any) -> Any:
    """An array of one value; it lies where the parameter lies if it is shaped like it."""
    value = as_both_parts(value, like.dtype)
    if isinstance(p, jax.ShapeDtypeStruct):
        return p if (like.shape, like.dtype) == (p.shape, p.dtype) else like
    if like.shape == p.shape:
        return jnp.full_like(p, value, like.dtype)
    return jnp.full(like.shape, value, like.dtype)


def _check_placeholder(params: Any) -> None:
    if type(params).__name__ == "_ParamsPlaceholder":
        raise OptimizerError(
            "optax.tree_map_params inits with a placeholder, and a State knows its parameters by path: map "
            "over state.buffers instead, whose trees are like the parameters"
        )
    if params is None:
        raise OptimizerError("init takes the tree of the parameters, not None")


def _check_dtypes(algorithm: Algorithm, leaves: Mapping[str, Any]) -> None:
    kind = jnp.inexact if algorithm.complex else jnp.floating
    strange = {path: dtype for path, leaf in leaves.items() if not _is_kind(dtype := _dtype(leaf), kind)}
    if strange:
        listed = ", ".join(f"{path} ({dtype})" for path, dtype in strange.items())
        numbers = "floating-point" if algorithm.complex else "real floating-point"
        raise OptimizerError(f"only {numbers} parameters can be optimized, not {listed}")


def _dtype(leaf: Any) -> Any:
    """An array's dtype; of anything else its type, as it stands in a message."""
    return getattr(leaf, "dtype", type(leaf).__name__)


def _is_kind(dtype: Any, kind: Any) -> bool:
    return isinstance(dtype, np.dtype) and jnp.issubdtype(dtype, kind)


def _update(updates: Any, state: State, params: Any = None) -> tuple[Any, State]:
    if params is None:
        raise OptimizerError("torch's optimizers read the parameters: update(grads, state, params)")
    check_is_state(state)
    leaves, treedef = jax.tree.flatten(params)
    _check_paths(leaf_paths(params), state.paths)
    groups, slopes, entries = state.groups, slopes_of(updates, treedef), _entries(state)
    moved = [
        _one(state.algorithm, path, groups[path], *row)
        for path, *row in zip(state.paths, leaves, slopes, entries, _coefficients(state), strict=True)
    ]
    new = _with_entries(state, [entry for _, entry in moved])
    return treedef.unflatten([update for update, _ in moved]), new


def _check_paths(found: Sequence[str], expected: Sequence[str]) -> None:
    if found != expected:
        raise OptimizerError(f"these are not the parameters of init: {[*found]} instead of {[*expected]}")


def _entries(state: State) -> list[dict[str, Any]]:
    """torch's `state[p]` of every parameter, in leaf order."""
    buffers = {name: flatten_buffer(tree)[0] for name, tree in state.buffers.items()}
    return [
        {"step": state.step[i]}
        | {name: row[i] for name, row in buffers.items() if not isinstance(row[i], Absent)}
        for i in range(len(state.paths))
    ]


def _with_entries(state: State, entries: Sequence[Mapping[str, Any]]) -> State:
    step = jnp.stack([entry["step"] for entry in entries]) if entries else state.step
    buffers = {
        name: flatten_buffer(tree)[1].unflatten([entry.get(name, Absent()) for entry in entries])
        for name, tree in state.buffers.items()
    }
    return replace(state, step=step, buffers=buffers)


def _coefficients(state: State) -> list[dict[str, Any]]:
    """The coefficients of each parameter: a program that works them out one by one takes long to compile."""
    index, found, scalars = {path: i for i, path in enumerate(state.paths)}, {}, _scalars(state)
    for group in state.param_groups if index else ():
        numbers = state.algorithm.coefficients(scalars, group)
        found |= {path: jax.tree.map(itemgetter(index[path]), numbers) for path in group.paths}
    return [found[path] for path in state.paths]


def _scalars(state: State) -> dict[str, Any]:
    """What torch keeps in one number for each parameter, as vectors."""
    rows = {name: list(state.buffer(name).values()) for name in state.algorithm.own}
    single = {name: row for name, row in rows.items() if row and not any(map(jnp.ndim, row))}
    return {"step": state.step + 1} | {name: jnp.stack(row) for name, row in single.items()}


def _one(
    algorithm: Algorithm, path: str, group: ParamGroup, p: Any, g: Any, entry: dict[str, Any], numbers: Any
) -> tuple[Any, dict[str, Any]]:
    """The update and the state of one parameter."""
    if g is None:
        # Minus zero, added, changes no bit; plus zero would turn a -0.0 around.
        return -jnp.zeros_like(p), entry
    check_gradient(algorithm, path, g, p)
    return _moved(algorithm, replace(group, paths=(), param_names=None), p, g, entry, numbers)


# A function of its own, so that parameters of one group and shape are traced together.
@partial(jax.jit, static_argnums=0)
def _moved(
    algorithm: Algorithm, group: ParamGroup, p: Any, g: Any, entry: dict[str, Any], numbers: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The update and the state, rounded to the dtypes they are kept in."""
    g = widened(g, jnp.promote_types(p.dtype, jnp.float32))
    dtype = jnp.finfo(g.dtype).dtype
    wide = {name: _as_real(x, dtype) for name, x in entry.items() if name != "step"}
    slope = g if algorithm.sparse else _as_real(g, dtype)
    known = {**wide, **numbers, "step": entry["step"]}
    update, new = algorithm.recursion(_as_real(p, dtype), slope, known, group)
    return _as(p.dtype, update), {name: _as(entry[name].dtype, x) for name, x in new.items()}


def _as_real(x: Any, dtype: Any) -> Any:
    """The array in a real dtype; of a complex one, the real and the imaginary parts as its last axis."""
    x = jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x
    return jnp.asarray(x, dtype)


def _as(dtype: Any, x: Any) -> Any:
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return x.astype(dtype)
    return lax.complex(x[..., 0], x[..., 1]).astype(dtype)
