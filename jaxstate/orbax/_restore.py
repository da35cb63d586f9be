"""Restore: a checkpoint into templates, onto a mesh, or into numpy.

Every array is made once, in its final place. What is stored is compared with what is asked for before
anything is read, and with its digests after.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, Sharding

from jaxstate import tree
from jaxstate.binding import Binding
from jaxstate.errors import CheckpointError
from jaxstate.orbax import _engine
from jaxstate.orbax._foreign import Found, find
from jaxstate.orbax._items import (
    MODEL,
    model_items,
    optimizer_leaves,
    with_model_items,
    with_optimizer_leaves,
)
from jaxstate.orbax._leaves import NUMBERS, Leaf, is_placeable, place_of, saved_place
from jaxstate.orbax._own import Held, lacking
from jaxstate.orbax._read import fitted, problems, read_leaves
from jaxstate.orbax._record import Record
from jaxstate.orbax._skeleton import filled
from jaxstate.together import alike, together

Place = Mesh | Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding]
Items = Mapping[str, Mapping[str, Any]]


class Restored(NamedTuple):
    """What a checkpoint held, in the places of the templates.

    Attributes:
        model: of the template's type, with its placement; without a template its leaves by dotted path.
        opt_state: of the template's structure; None if it was not asked for. Without any templates, what
            `js.optim.state_dict` takes: States as they were, and tuples with names for optax's.
        step: as it was saved.
        binding: that of the saved model; None if another program saved it and the model does not tell.
        scheduler: the state as it was saved.
        rngs: random keys.
        extra: as it was saved.
        random: without any templates, NNX's own random state by path: keys, and how often each was used. With
            a template it is in the model.
    """

    model: Any
    opt_state: Any
    step: int | None
    binding: Binding | None
    scheduler: Any = None
    rngs: Any = None
    extra: Any = None
    random: Mapping[str, Any] | None = None


def restore(
    path: str | Path,
    model: Any = None,
    opt_state: Any = None,
    *,
    rngs: Any = None,
    sharding: Place | None = None,
    cast: bool = False,
    at: str | None = None,
) -> Restored:
    """Read a checkpoint: what there are templates for, or all of it if there are none.

    Checkpoints that other programs have written with Orbax are opened too, v0's and v1's, flat or of
    several items: NNX states, pure dicts, Linen variables, `TrainState`. They need templates.

    Args:
        path: what `save` wrote, or one step of a `Checkpointer`.
        model: the template of the model; its leaves may be abstract, and may have any shardings. A tree
            of the parameters alone reads these alone.
        opt_state: the template of the optimizer's state, such as `tx.init(params)` or its
            `jax.eval_shape`, an `nnx.Optimizer` or a `TrainState`.
        rngs: the template of the tree of random keys.
        sharding: where to put arrays that have no template: a mesh, on which they lie as they did on the
            one they were saved from, a sharding, or a function of path and abstract array. By default
            they are numpy arrays.
        cast: accept that values are rounded to the templates' dtypes.
        at: where in another program's checkpoint the model is, as `ema.params`, if that is not clear.

    Raises:
        CheckpointError: no whole checkpoint; leaves that are missing, unexpected, of another shape or
            dtype than the template's, all of them; leaves that the disk has damaged, by name.
    """
    path = Path(path).absolute()
    with _together("looking at the checkpoint"):
        meta = _engine.read_record(path)
        if meta is None and (rngs is not None or sharding is not None):
            raise CheckpointError(
                f"{path} was written by another program: it is read into templates of a model and of an "
                "optimizer's state, and rngs= and sharding= are for checkpoints of jaxstate"
            )
        asked = None if meta is None else _asked(path, meta, (model, opt_state, rngs), sharding, at, cast)
    if asked is None:
        with _together("reading a checkpoint of another program"):
            return _foreign(find(path, model, opt_state, at, cast), model, opt_state, cast)
    alike("js.orbax.restore: the checkpoint", asked.name, CheckpointError)
    found = read_leaves(path, asked.record.leaves, asked.places, asked.held)
    if not asked.templates:
        return _whole(asked.record, found)
    with _together("filling the templates"):
        return _restored(asked.record, _fitted(found, asked.templates, cast), model, opt_state, rngs)


class _Asked(NamedTuple):
    """What of a checkpoint of ours is to be read, and where it is to lie."""

    name: str
    record: Record
    held: Held | None
    templates: Items
    places: Mapping[str, Mapping[str, Sharding | None]]


def _asked(
    path: Path, meta: Any, given: tuple[Any, Any, Any], sharding: Place | None, at: str | None, cast: bool
) -> _Asked:
    record, held = Record.from_json(meta, path), _held(meta, path)
    templates = _templates(record, *given)
    if at is not None:
        raise CheckpointError(f"{path} was written by jaxstate, and at= is for other programs' checkpoints")
    if templates and sharding is not None:
        raise CheckpointError(
            "sharding= is for leaves without templates; give the templates' leaves the sharding that they "
            "are to have, or pass none"
        )
    _check(record, templates, cast)
    places = {item: {p: place_of(leaf) for p, leaf in row.items()} for item, row in templates.items()} or {
        item: {p: None if item == "random" else _place(p, leaf, sharding) for p, leaf in row.items()}
        for item, row in record.leaves.items()
    }
    if held is not None:
        _check_held(path, record, held, places)
    return _Asked(f"{meta['crc32']:08x}", record, held, templates, places)


def _held(meta: Any, path: Path) -> Held | None:
    if meta.get("held") is None:
        return None
    held = Held.from_json(meta["held"])
    if held.processes != jax.process_count():
        raise CheckpointError(
            f"{path} is what process {held.process} of {held.processes} has kept for itself, and here are "
            f"{jax.process_count()}: restore it with as many, save it where all see it, and go on from there"
        )
    return held


def _check_held(path: Path, record: Record, held: Held, places: Mapping[str, Mapping[str, Any]]) -> None:
    lines = [
        f"{item}: {p}{[list(ends) for ends in region]}"
        for item, row in places.items()
        for p, place in row.items()
        if not (leaf := record.leaves[item][p]).is_empty and f"{item}/{p}" not in held.plain
        for region in lacking(leaf.stored.shape, place, held.regions.get(f"{item}/{p}", ()))
    ]
    if lines:
        raise CheckpointError(
            f"{path} is what process {held.process} of {held.processes} has kept of its own shards, and "
            "these parts are needed here and lie on other hosts:\n\t" + "\n\t".join(lines) + "\n"
            "restore with the shardings that were saved, save where all see it, and restore that as you like"
        )


def _together(step: str) -> Any:
    return together(f"js.orbax.restore: {step}", CheckpointError)


def read_record(path: str | Path) -> Record:
    """The record of a checkpoint of ours.

    Raises:
        CheckpointError: another program's checkpoint, or none.
    """
    path = Path(path).absolute()
    if (meta := _engine.read_record(path)) is None:
        raise CheckpointError(
            f"{path} was not written by jaxstate.orbax.save, and does not say what torch calls its leaves: "
            "restore it with templates, then save"
        )
    if meta.get("held") is not None:
        raise CheckpointError(
            f"{path} is what one process of several has kept for itself: restore it with as many processes, "
            "and save it where all see it"
        )
    return Record.from_json(meta, path)


def _templates(record: Record, model: Any, opt_state: Any, rngs: Any) -> Items:
    """What is asked for, by item."""
    given: dict[str, Any] = {} if model is None else model_items(model, record.binding)
    if "random" in given and not given["random"]:
        # A model of the same layers in evaluation has none, and needs none.
        del given["random"]
    given |= {} if opt_state is None else {"optimizer": optimizer_leaves(opt_state)}
    return given | ({} if rngs is None else {"rngs": tree.flat(rngs)})


def _check(record: Record, templates: Items, cast: bool) -> None:
    lines = [
        f"{item}: {problem}"
        for item, row in templates.items()
        for problem in problems({p: x.kind for p, x in record.leaves.get(item, {}).items()}, row, cast)
    ]
    if lines:
        raise CheckpointError("the checkpoint does not fit the templates:\n\t" + "\n\t".join(lines))


def _fitted(found: Items, templates: Items, cast: bool) -> Items:
    return {
        item: {p: fitted(leaf, templates[item][p], cast, f"{item}: {p}") for p, leaf in row.items()}
        for item, row in found.items()
    }


def _restored(record: Record, found: Items, model: Any, opt_state: Any, rngs: Any) -> Restored:
    if opt_state is not None:
        opt_state = with_optimizer_leaves(opt_state, found["optimizer"], record.param_groups)
    return Restored(
        None if model is None else with_model_items(model, found),
        opt_state,
        record.step,
        record.binding,
        record.scheduler,
        None if rngs is None else tree.unflat(rngs, found["rngs"]),
        record.extra,
    )


def _whole(record: Record, found: dict[str, dict[str, Any]]) -> Restored:
    """All of a checkpoint, without templates."""
    for item, row in found.items():
        numbers = {p: NUMBERS[name](row[p]) for p in row if (name := record.leaves[item][p].number)}
        found[item] = {**row, **numbers}
    model = {p: leaf for item in MODEL[:2] for p, leaf in found.get(item, {}).items()}
    opt_state = filled(record.optimizer, found.get("optimizer", {}), record.param_groups)
    rngs = filled(record.rngs, found.get("rngs", {}), [])
    read = Restored(model, opt_state, record.step, record.binding, record.scheduler, rngs, record.extra)
    return read._replace(random=found.get("random"))


def _place(path: str, leaf: Leaf, sharding: Place | None) -> Sharding | None:
    if sharding is None or leaf.number is not None:
        return None
    if not is_placeable(leaf.stored.dtype):
        raise CheckpointError(f"{path} is {leaf.kind}, which JAX makes only with jax_enable_x64")
    if isinstance(sharding, Sharding):
        return sharding
    if isinstance(sharding, Mesh):
        return saved_place(leaf, sharding)
    return sharding(path, jax.ShapeDtypeStruct(leaf.stored.shape, leaf.stored.dtype))


def _foreign(found: Found, model: Any, opt_state: Any, cast: bool) -> Restored:
    items = _fitted(found.leaves, found.templates, cast)
    if opt_state is not None:
        opt_state = with_optimizer_leaves(opt_state, items["optimizer"], None)
    new = None if model is None else with_model_items(model, items)
    return Restored(new, opt_state, found.step, found.binding)
