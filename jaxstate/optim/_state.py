"""State: what every torch optimizer knows of its parameters, as one pytree.

torch keeps a dict for each parameter and a dict for each group. Here a buffer of all parameters is a tree
like theirs, the steps are one vector, and the groups carry their hyper-parameters along.
`set_hyperparameters` changes those, wherever in a nest of optax states the State lies.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxstate.arrays.placement import place
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._algorithm import Algorithm, is_numeric
from jaxstate.optim._kinds import check_number
from jaxstate.optim._nest.flax_states import closed, opened
from jaxstate.optim._nest.nest import Part, check_labels, names_of, parts_of, with_parts
from jaxstate.optim._param_groups import ParamGroup


@jax.tree_util.register_static
@dataclass(frozen=True)
class Absent:
    """Stands in a buffer's tree for a parameter whose group has no such buffer."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of one optimizer.

    Args:
        step: int32 (n,), how often each parameter was updated, in leaf order.
        buffers: by torch's names, trees like the parameters.
        param_groups: each parameter is in exactly one.
        algorithm: which optimizer this is.
        paths: the n dotted paths of the parameters, in leaf order.

    >>> import jaxstate.optim
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    >>> opt = jaxstate.optim.adam(lr=0.5).init(params)
    >>> opt.paths, opt.step.tolist(), list(opt.buffers)
    (('b', 'w'), [0, 0], ['exp_avg', 'exp_avg_sq'])
    >>> jax.tree.structure(opt.buffers["exp_avg"]) == jax.tree.structure(params)
    True
    """

    step: Any
    buffers: dict[str, Any]
    param_groups: tuple[ParamGroup, ...]
    algorithm: Algorithm = field(metadata={"static": True})
    paths: tuple[str, ...] = field(metadata={"static": True})

    @property
    def groups(self) -> dict[str, ParamGroup]:
        """The group of each path."""
        return {path: group for group in self.param_groups for path in group.paths}

    def buffer(self, name: str) -> dict[str, Any]:
        """The leaves of a buffer by path; those that are absent are left out."""
        if name not in self.buffers:
            return {}
        leaves = flatten_buffer(self.buffers[name])[0]
        pairs = zip(self.paths, leaves, strict=True)
        return {path: leaf for path, leaf in pairs if not isinstance(leaf, Absent)}

    def with_buffer(self, name: str, leaves: dict[str, Any]) -> "State":
        """This state with other leaves in a buffer, by path."""
        treedef = flatten_buffer(self.buffers[name])[1]
        tree = treedef.unflatten([leaves.get(path, Absent()) for path in self.paths])
        return replace(self, buffers={**self.buffers, name: tree})


def flatten_buffer(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of a buffer, with Absent among them, and its structure."""
    return jax.tree.flatten(tree, is_leaf=_is_absent)


def find_state(opt: Any, label: Any = None) -> State:
    """The State in a tree of optimizer states; those of a partition are one, with their groups in order.

    Args:
        opt: a nest of optax states, an `nnx.Optimizer` or a `TrainState`.
        label: a key or an index that leads to the States wanted, where the tree has several optimizers.

    Raises:
        OptimizerError: there is none, or there are several that no one torch optimizer holds.
    """
    tree = opened(opt)
    parts = parts_of(tree, is_state, label)
    if not parts:
        raise OptimizerError(
            f"the optimizer state holds no states of a jaxstate optimizer{_under(label)}, and one is needed; "
            "for a plain optax state say which torch optimizer it is: optimizer=js.optim.adamw(lr=..., ...)"
        )
    _check_one_algorithm(parts)
    check_labels(tree, parts, label)
    return join([part.node for part in parts])


def replace_state(opt: Any, state: State, label: Any = None) -> Any:
    """A tree of optimizer states with another State in place of the one that `find_state` finds."""
    tree = opened(opt)
    parts = parts_of(tree, is_state, label)
    return closed(opt, with_parts(tree, parts, split(state, [part.node for part in parts])))


def join(states: Sequence[State]) -> State:
    """One State of all their parameters, whose buffers are flat dicts by path.

    Raises:
        OptimizerError: a parameter that several of them hold.
    """
    if len(states) == 1:
        return states[0]
    paths = [path for state in states for path in state.paths]
    if twice := sorted(path for path, count in Counter(paths).items() if count > 1):
        raise OptimizerError(
            f"the optimizer state holds {len(states)} states of a jaxstate optimizer, and more than one "
            f"for {quoted(twice)}; torch keeps one for each parameter"
        )
    order = sorted(range(len(paths)), key=paths.__getitem__)
    rows = {name: _row(states, name) for state in states for name in state.buffers}
    ordered = tuple(paths[i] for i in order)
    return replace(
        states[0],
        step=_taken(states, order),
        buffers={name: {path: row.get(path, Absent()) for path in ordered} for name, row in rows.items()},
        param_groups=tuple(group for state in states for group in state.param_groups),
        paths=ordered,
    )


def split(state: State, states: Sequence[State]) -> list[State]:
    """The inverse of `join`: States like those that were joined, with the values of the whole."""
    if len(states) == 1:
        return [state]
    ends = [*accumulate(len(like.param_groups) for like in states)]
    starts = [0, *ends[:-1]]
    return [
        _part(state, like, state.param_groups[start:end])
        for like, start, end in zip(states, starts, ends, strict=True)
    ]


def _part(state: State, like: State, groups: tuple[ParamGroup, ...]) -> State:
    index = {path: i for i, path in enumerate(state.paths)}
    step = state.step[np.array([index[path] for path in like.paths], np.intp)]
    # What was loaded lies where the template lies; what is traced has no place yet.
    step = step if isinstance(step, Tracer) else place(np.asarray(step), like.step)
    new = replace(like, step=step, param_groups=groups)
    for name in like.buffers:
        leaves = state.buffer(name)
        new = new.with_buffer(name, {path: leaves[path] for path in like.buffer(name)})
    return new


def _row(states: Sequence[State], name: str) -> dict[str, Any]:
    return {
        path: leaf for state in states if name in state.buffers for path, leaf in state.buffer(name).items()
    }


def _taken(states: Sequence[State], order: Sequence[int]) -> Any:
    """All steps in another order."""
    steps = [state.step for state in states]
    if any(isinstance(step, jax.ShapeDtypeStruct) for step in steps):
        return jax.ShapeDtypeStruct((len(order),), jnp.int32)
    return jnp.concatenate(steps)[np.array(order, np.intp)]


def _check_one_algorithm(parts: Sequence[Part]) -> None:
    rows = list(zip(names_of(parts), [part.node for part in parts], strict=True))
    if len({state.algorithm for _, state in rows}) > 1:
        calls = [f"{label!r}: torch.optim.{state.algorithm.name}" for label, state in rows]
        raise OptimizerError(
            f"the optimizer state holds several torch optimizers, {', '.join(calls)}; take one at a time, "
            f"here with label={rows[0][0]!r}"
        )


def check_is_state(state: Any, kind: type = State) -> None:
    """Raise OptimizerError unless `update` was given what `init` made."""
    if not isinstance(state, kind):
        raise OptimizerError(
            f"update(grads, state, params) takes the state that init made, a {kind.__name__}, and not what "
            f"is of type {type(state).__name__}"
        )


def check_optimizer(optimizer: Any) -> None:
    """Raise OptimizerError for what is no transformation: a name, a class, a constructor not called."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise OptimizerError(
            "optimizer= is what a constructor of js.optim makes, such as js.optim.adamw(lr=1e-3), and not "
            f"{optimizer!r}"
        )


def _under(label: Any) -> str:
    return "" if label is None else f" under the label {label!r}"


def param_groups(opt: Any) -> list[dict[str, Any]]:
    """torch's `optimizer.param_groups`, with the paths of the parameters under `params`.

    Args:
        opt: a state of this package's, a nest of optax states that holds one, an `nnx.Optimizer` or a
            `TrainState`.

    Returns:
        A dict for each group: torch's options in torch's order, numbers of Python's. Changing them changes
        no state; `set_hyperparameters` does.

    Raises:
        OptimizerError: no state of this package's, or those of several optimizers.

    >>> import jaxstate.optim, jax.numpy as jnp
    >>> opt = jaxstate.optim.sgd(lr=0.1).init({"w": jnp.ones(3)})
    >>> [(group["lr"], group["params"]) for group in param_groups(opt)]
    [(0.1, ['w'])]
    """
    return [{**group.to_torch(), "params": list(group.paths)} for group in find_state(opt).param_groups]


def set_hyperparameters(opt: Any, *, group: int | None = None, **values: Any) -> Any:
    """Give hyper-parameters other values: torch's `for group in optimizer.param_groups: group["lr"] = ...`.

    Nothing is compiled anew, and values may be traced. A Python float is kept as a float64; an array has
    no more than its own precision. A weight decay of 0 is no array but left out of the program, which is
    compiled anew, once, when it becomes another; `weight_decay=jnp.zeros(())` makes it one before that.

    Args:
        opt: a state of this package's, or a nest of optax states that holds one.
        group: which of the groups, or all of them.
        **values: by torch's names; a tuple where torch has one.

    Raises:
        OptimizerError: a name that is no number of this optimizer's, a value that its constructor refuses,
            or a group that it does not have.

    >>> import jaxstate.optim, jax.numpy as jnp
    >>> opt = jaxstate.optim.adam().init({"w": jnp.ones(3)})
    >>> param_groups(set_hyperparameters(opt, lr=5e-4))[0]["lr"]
    0.0005
    """
    state = find_state(opt)
    count = len(state.param_groups)
    if group is not None and not (type(group) is int and -count <= group < count):
        raise OptimizerError(f"there is no group {group!r}: the optimizer has {count}")
    chosen = range(count) if group is None else [range(count)[group]]
    _check_names(state, values)
    _check_injected([state.param_groups[i] for i in chosen], values)
    _check_buffers(state, [state.param_groups[i] for i in chosen], values)
    groups = [g.changed(**values) if i in chosen else g for i, g in enumerate(state.param_groups)]
    return replace_state(opt, replace(state, param_groups=tuple(groups)))


def _check_names(state: State, values: dict[str, Any]) -> None:
    algorithm = state.algorithm
    if strange := [key for key in values if key not in algorithm.hyperparameters]:
        raise OptimizerError(
            f"{quoted(strange)} cannot be set: the numbers of {algorithm.name} are "
            f"{quoted(algorithm.hyperparameters)}; what is no number is chosen in the constructor"
        )
    for key, value in values.items():
        count = _length(state.param_groups[0].numbers[key])
        if _length(value) != count:
            raise OptimizerError(
                f"{key} takes {f'{count} numbers' if count else 'one number'}, not {value!r}"
            )
    _check_values(algorithm, values)


def _check_values(algorithm: Algorithm, values: dict[str, Any]) -> None:
    """Refuse what the constructor would; what is traced has no value yet."""
    defaults = dict(algorithm.defaults)
    known = {
        key: x for key, x in values.items() if not any(isinstance(y, Tracer) for y in jax.tree.leaves(x))
    }
    for key, value in known.items():
        check_number(key, value, defaults[key])
    algorithm.check({**defaults, **jax.tree.map(float, known)})


def _check_injected(groups: Sequence[ParamGroup], values: dict[str, Any]) -> None:
    if given := [key for key in values if any(key in group.injected for group in groups)]:
        raise OptimizerError(
            f"{quoted(given)} is an array given to the constructor, and wins over the state's number; "
            'change it there, as inject_hyperparams does: opt.hyperparams["lr"] = ...'
        )


def _check_buffers(state: State, groups: Sequence[ParamGroup], values: dict[str, Any]) -> None:
    """Numbers may ask for a buffer that was not made, as SGD's momentum does; a traced one always might."""
    assumed = {key: value if is_numeric(value) else 1.0 for key, value in values.items()}
    wanted = state.algorithm.asks_for({**dict(state.algorithm.defaults), **assumed})
    for name in wanted:
        made = state.buffer(name)
        if not all(path in made for group in groups for path in group.paths):
            call = state.algorithm.call({**dict(state.algorithm.defaults), **values})
            raise OptimizerError(f"the state has no {name}; make it with {call}")


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, (tuple, list)) else None


def is_state(node: Any) -> bool:
    """True for a State."""
    return isinstance(node, State)


def _is_absent(node: Any) -> bool:
    return isinstance(node, Absent)
