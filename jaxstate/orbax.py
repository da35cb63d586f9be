"""Save and restore through Orbax: the one file that knows it.

A checkpoint is one atomic directory: `params` and `buffers` as flat trees of the model's leaves in JAX's
layout, `optimizer` as a flat tree of the optimizer's, and `meta`, which holds the step, the Binding, torch's
param_groups, and the shape and dtype of every leaf. Plain Orbax opens it too. Orbax itself casts and
narrows without a word; so what is stored is compared with what is asked for before anything is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstate import tree
from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.errors import CheckpointError, near_names
from jaxstate.optim._torch_dict.groups_json import folded, groups_from_json, groups_to_json, spelled_out

ITEMS = ("params", "buffers", "optimizer")

Leaves = Mapping[str, Any]


class Restored(NamedTuple):
    """What a checkpoint held, in the places of the templates.

    Attributes:
        model: of the template's type, with its placement.
        opt_state: of the template's structure; None if no template was given.
        step: as it was saved.
        binding: that of the saved model.
    """

    model: Any
    opt_state: Any
    step: int | None
    binding: Binding


def save(
    path: str | Path,
    model: Any,
    opt_state: Any = None,
    *,
    step: int | None = None,
    binding: Binding | None = None,
) -> None:
    """Write a model, and its optimizer's state, as one Orbax checkpoint. It is there whole or not at all.

    Args:
        path: a directory that does not exist yet.
        model: an NNX module, a Linen model's variables, or any pytree that the binding fits.
        opt_state: any optimizer state; jaxstate's own keep their param_groups verbatim.
        step: how far training has come.
        binding: needed where the model does not tell its layers.

    Raises:
        CheckpointError: the directory exists, or a leaf that Orbax cannot keep, by its path.
    """
    leaves = adapter_of(model).leaves(model)
    binding = (binding or bind(model)).of(leaves)
    items = {**_parted(leaves, binding), "optimizer": _flat_optimizer(opt_state)}
    meta = {
        "jaxstate": 1,
        "step": step,
        "binding": binding.to_json(),
        "param_groups": groups_to_json(opt_state),
        "leaves": {item: {p: _kind(leaf) for p, leaf in found.items()} for item, found in items.items()},
    }
    _write(_new(path), {item: _storable(item, found) for item, found in items.items()}, meta)


def restore(path: str | Path, model: Any, opt_state: Any = None) -> Restored:
    """Read a checkpoint into templates: every array is made once, with its template's sharding.

    Args:
        path: what `save` wrote.
        model: the template of the model; its leaves may be abstract.
        opt_state: the template of the optimizer's state, such as `tx.init(params)` or its
            `jax.eval_shape`; without one only the model is read.

    Raises:
        CheckpointError: no checkpoint of ours, or leaves that are missing, unexpected, or of another shape
            or dtype than the template's, all of them.
    """
    meta = _read_meta(Path(path).absolute())
    binding = Binding.from_json(meta["binding"])
    leaves = adapter_of(model).leaves(model)
    wanted = _parted(leaves, binding) | (
        {} if opt_state is None else {"optimizer": _flat_optimizer(opt_state)}
    )
    _check(meta["leaves"], wanted)
    found = _read(Path(path).absolute(), {item: _targets(leaves) for item, leaves in wanted.items()})
    new_model = adapter_of(model).with_leaves(model, {**found["params"], **found["buffers"]})
    if opt_state is not None:
        opt_state = groups_from_json(_unflat_optimizer(opt_state, found["optimizer"]), meta["param_groups"])
    return Restored(new_model, opt_state, meta["step"], binding)


def _parted(leaves: Leaves, binding: Binding) -> dict[str, dict[str, Any]]:
    """The leaves that an optimizer trains, and the others."""
    trained = set(binding.of_parameters().paths)
    lacking = sorted(set(binding.paths) - set(leaves))
    if lacking:
        raise CheckpointError(f"the checkpoint's model has leaves that the template lacks: {lacking}")
    params = {path: leaf for path, leaf in leaves.items() if path in trained}
    return {"params": params, "buffers": {path: leaf for path, leaf in leaves.items() if path not in trained}}


def _flat_optimizer(opt_state: Any) -> dict[str, Any]:
    return {} if opt_state is None else tree.flat(spelled_out(opt_state))


def _unflat_optimizer(opt_state: Any, leaves: Leaves) -> Any:
    """The state with these leaves; a leaf that was a Python number is one again."""
    before = spelled_out(opt_state)
    flat = tree.flat(before)
    kept = {path: _as_before(flat[path], leaf) for path, leaf in leaves.items()}
    return folded(tree.unflat(before, kept), opt_state)


def _as_before(before: Any, leaf: Any) -> Any:
    return type(before)(leaf) if isinstance(before, bool | int | float) else leaf


def _kind(leaf: Any) -> list[Any]:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return [list(array.shape), str(array.dtype)]


def _storable(item: str, leaves: Leaves) -> dict[str, Any]:
    """The leaves as Orbax keeps them: it takes no empty arrays, which carry nothing, and no numpy scalars."""
    abstract = [path for path, leaf in leaves.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if abstract:
        raise CheckpointError(f"{item}: these leaves are abstract and have no values: {abstract}")
    arrays = {path: leaf if isinstance(leaf, jax.Array) else np.array(leaf) for path, leaf in leaves.items()}
    strange = [path for path, array in arrays.items() if array.dtype.kind not in "biufcV"]
    if strange:
        raise CheckpointError(f"{item}: these leaves are no arrays of numbers: {strange}")
    return {path: array for path, array in arrays.items() if array.size}


def _check(stored: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Leaves]) -> None:
    lines = []
    for item, leaves in wanted.items():
        there, here = stored.get(item, {}), {path: _kind(leaf) for path, leaf in leaves.items()}
        lines += [f"{item}: {path} is not in the checkpoint" for path in here if path not in there]
        lines += [
            f"{item}: {path} is in the checkpoint and not in the template"
            for path in there
            if path not in here
        ]
        near = near_names([path for path in here if path not in there], there)
        lines += [f"{item}: did you mean {found} for {path}?" for path, found in near.items()]
        lines += [
            f"{item}: {path} is {there[path]} in the checkpoint and {[shape, dtype]} in the template"
            for path, (shape, dtype) in here.items()
            if path in there and there[path] != [shape, dtype]
        ]
    if lines:
        raise CheckpointError("the checkpoint does not fit the templates:\n\t" + "\n\t".join(lines))


def _targets(leaves: Leaves) -> dict[str, Any]:
    return {path: _target(leaf) for path, leaf in leaves.items() if np.prod(np.shape(leaf), dtype=int)}


def _target(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.empty(np.shape(leaf), np.asarray(leaf).dtype)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _new(path: str | Path) -> Path:
    path = Path(path).absolute()
    if path.exists():
        raise CheckpointError(f"{path} exists; a checkpoint is never written over another: take a new name")
    return path


def _write(path: Path, items: Mapping[str, Leaves], meta: Mapping[str, Any]) -> None:
    engine, context = _engine()
    with context:
        engine.save_checkpointables(
            path, {**{item: leaves for item, leaves in items.items() if leaves}, "meta": meta}
        )


def _read_meta(path: Path) -> dict[str, Any]:
    engine, context = _engine()
    if not (path / "meta").is_dir() or not engine.is_orbax_checkpoint(path):
        raise CheckpointError(f"{path} is no checkpoint that jaxstate.orbax.save wrote")
    with context:
        return engine.load_checkpointables(path, {"meta": None})["meta"]


def _read(path: Path, targets: Mapping[str, Leaves]) -> dict[str, Leaves]:
    engine, context = _engine()
    with context:
        found = engine.load_checkpointables(
            path, {item: leaves for item, leaves in targets.items() if leaves}
        )
    return {item: found.get(item, {}) for item in targets}


def _engine() -> tuple[Any, Any]:
    """Orbax and our settings for it. Imported here, since it takes longer than all of jaxstate."""
    from orbax.checkpoint import v1 as ocp

    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return ocp, context
