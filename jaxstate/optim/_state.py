"""State: what every torch optimizer knows of its parameters, as one pytree.

torch keeps a dict for each parameter and a dict for each group. Here a buffer of all parameters is a tree
like theirs, the steps are one vector, and the groups carry their hyper-parameters along.
`set_hyperparameters` changes those, wherever in a nest of optax states the State lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._algorithm import Algorithm, is_numeric
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


def find_state(opt: Any) -> State:
    """The one State in a tree of optimizer states.

    Raises:
        OptimizerError: there is none, or there are several.
    """
    found = [leaf for leaf in jax.tree.leaves(opt, is_leaf=_is_state) if _is_state(leaf)]
    if len(found) != 1:
        raise OptimizerError(
            f"the optimizer state holds {len(found) or 'no'} state{'s' * (len(found) != 1)} "
            "of a jaxstate optimizer, and one is needed; for a plain optax state say which torch "
            "optimizer it is: optimizer=js.optim.adamw(lr=..., ...)"
        )
    return found[0]


def replace_state(opt: Any, state: State) -> Any:
    """A tree of optimizer states with another State in place of the one it has."""
    return jax.tree.map(lambda leaf: state if _is_state(leaf) else leaf, opt, is_leaf=_is_state)


def param_groups(opt: Any) -> list[dict[str, Any]]:
    """torch's `optimizer.param_groups`, with the paths of the parameters under `params`.

    >>> import jaxstate.optim, jax.numpy as jnp
    >>> opt = jaxstate.optim.sgd(lr=0.1).init({"w": jnp.ones(3)})
    >>> [(group["lr"], group["params"]) for group in param_groups(opt)]
    [(0.1, ['w'])]
    """
    return [{**group.to_torch(), "params": list(group.paths)} for group in find_state(opt).param_groups]


def set_hyperparameters(opt: Any, *, group: int | None = None, **values: Any) -> Any:
    """Give hyper-parameters other values: torch's `for group in optimizer.param_groups: group["lr"] = ...`.

    Nothing is compiled anew, and values may be traced. A Python float is kept as a float64; an array has
    no more than its own precision.

    Args:
        opt: a state of this package's, or a nest of optax states that holds one.
        group: which of the groups, or all of them.
        **values: by torch's names; a tuple where torch has one.

    Raises:
        OptimizerError: a name that is no number of this optimizer's, or a group that it does not have.

    >>> import jaxstate.optim, jax.numpy as jnp
    >>> opt = jaxstate.optim.adam().init({"w": jnp.ones(3)})
    >>> param_groups(set_hyperparameters(opt, lr=5e-4))[0]["lr"]
    0.0005
    """
    state = find_state(opt)
    count = len(state.param_groups)
    if group is not None and not -count <= group < count:
        raise OptimizerError(f"there is no group {group}: the optimizer has {count}")
    chosen = range(count) if group is None else [range(count)[group]]
    _check_names(state, values)
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


def _is_state(node: Any) -> bool:
    return isinstance(node, State)


def _is_absent(node: Any) -> bool:
    return isinstance(node, Absent)
