"""The optimizer's state in a plan: moments lie as their parameters do, and are written where they lie."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import FileError, OptimizerError
from jaxstate.io._nesting import EMPTY, Path, flat
from jaxstate.optim._nest.site import site_of
from jaxstate.optim._parameters import Itself, Parameters
from jaxstate.optim._state import State
from jaxstate.optim._torch_dict.state_dict import dict_of
from jaxstate.rules.apart import Bijection
from jaxstate.sharded._leaves import gathered, own, shards
from jaxstate.sharded._plan import Plan, chunks_of

Entries = dict[str, Any]


def with_optimizer(
    plan: Plan, format: str, opt_state: Any, optimizer: Any = None, label: Any = None, step: int | None = None
) -> Plan:
    """The plan of `{"model": ..., "optimizer": ...}`; see `save`.

    Raises:
        FileError: a format that holds arrays alone.
        OptimizerError: a state that torch has no form for.
    """
    if format != "dcp":
        raise FileError(f'an optimizer\'s state needs format="dcp", and {format} holds arrays alone')
    site = site_of(opt_state, optimizer, label, step=step)
    state = site.state()
    site.check_written(state)
    everywhere, here = (
        dict_of(_mapped(state, f), plan.binding, keys="fqn", lazy=True) for f in (gathered, own)
    )
    entries, paths = _flat({"model": dict(plan.arrays), "optimizer": everywhere})
    arrays = {name: value for name, value in entries.items() if isinstance(value, LazyArray | np.ndarray)}
    mine = _flat({"model": dict(plan.mine), "optimizer": here})[0]
    chunks = {f"model.{key}": boxes for key, boxes in plan.chunks.items()}
    chunks |= {f"optimizer.state.{name}": boxes for name, boxes in _chunks(state, plan).items()}
    objects = {name: value for name, value in entries.items() if name not in arrays}
    return plan._replace(arrays=arrays, mine=mine, chunks=chunks, objects=objects, paths=paths)


def _mapped(state: State, change: Callable[[Any], Any]) -> State:
    """The State with other leaves in its buffers."""
    for name in state.buffers:
        leaves = {path: change(leaf) for path, leaf in state.buffer(name).items()}
        state = state.with_buffer(name, leaves)
    return state


def _flat(obj: dict[str, Any]) -> tuple[Entries, dict[str, Path]]:
    """The entries under torch's flat names, and where they stand; of an empty dict the place alone."""
    rows = list(flat(obj))
    names = [".".join(map(str, path[:-1] if path[-1] is EMPTY else path)) for path, _ in rows]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise OptimizerError(
            f"two entries are {twice[0]!r} when steps are joined by dots; rename a parameter"
        )
    paths = {name: path for name, (path, _) in zip(names, rows, strict=True)}
    full = zip(names, rows, strict=True)
    return {name: value for name, (path, value) in full if path[-1] is not EMPTY}, paths


def _chunks(state: State, plan: Plan) -> dict[str, Mapping[Any, Any]]:
    """By parameter and buffer, the boxes that lie on the processes, and who writes each."""
    parameters = Parameters.of_state(plan.binding, state)
    return {
        f"{name}.{buffer}": boxes
        for buffer in state.buffers
        for name, boxes in _chunks_of(parameters, buffer in state.algorithm.own, state.buffer(buffer))
    }


def _chunks_of(
    parameters: Parameters, is_own: bool, leaves: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Those of one buffer, of which there are leaves for all paths of a family or for none."""
    placed = {parameters.prefix + path: leaf for path, leaf in leaves.items()}
    found: dict[str, Mapping[Any, Any]] = {}
    for family in [family for family in parameters.families if set(family.paths) <= set(placed)]:
        if isinstance(family, Itself) and placed[family.key].size:
            found[family.key] = shards(placed[family.key])
        if isinstance(family, Bijection) and not is_own:
            found |= chunks_of(family.of(placed), placed)
    yield from ((name, found[key]) for name, key in parameters.names.items() if key in found)
