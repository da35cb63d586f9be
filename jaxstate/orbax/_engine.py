"""Engine: Orbax itself, with our settings. No other file imports it.

Orbax is imported where it is called, since that takes longer than all of jaxstate. Nothing is compressed:
floats hardly shrink, and packing them costs more than writing them. What Orbax raises becomes ours.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxstate.errors import CheckpointError
from jaxstate.orbax._bytes import box_of_bytes, of_bytes

RECORD = "jaxstate"  # an item by our own name: programs choose names like "meta"

Items = Mapping[str, Any]


def write(path: Path, items: Items) -> None:
    """Write these items, whose leaves nobody changes meanwhile; there is all of it in the end, or nothing.

    Raises:
        CheckpointError: it cannot be written. What was begun is removed.
    """
    engine, context = engine_and_context()
    with named(f"{path} was not written"), context:
        try:
            engine.save_checkpointables(path, dict(items))
        except BaseException:
            remove_begun(path)
            raise


def read(path: Path, targets: Items) -> dict[str, Any]:
    """Read items, each leaf as its target says: a `ShapeDtypeStruct` with a sharding, or a numpy array.

    Raises:
        CheckpointError: what is stored is damaged or is not there.
    """
    engine, context = engine_and_context()
    with named(f"{path} cannot be read"), context:
        return engine.load_checkpointables(path, dict(targets))


def read_tree(path: Path, name: str | None, targets: Any) -> Any:
    """Read one tree of a checkpoint that another program wrote, by the name it has there."""
    engine, context = engine_and_context()
    with named(f"{path} cannot be read"), context:
        return engine.load(path, targets, checkpointable_name=name)


def read_region(path: Path, name: str, region: Sequence[tuple[int, int]]) -> Any:
    """A part of one stored array, `item/path`, as numpy, read by this process alone."""
    import tensorstore

    item, _, leaf = name.partition("/")
    # Mapped, so that of a chunk, which may be all of an array, no more is read than the region.
    base = {"driver": "file", "path": f"{path / item}/", "file_io_mode": {"mode": "memmap"}}
    store = {"driver": "ocdbt", "base": base, "path": f"{leaf}/"}
    spec = {"driver": "zarr3", "kvstore": store}
    with named(f"{path} cannot be read"):
        array = tensorstore.open(spec, open=True).result()
        dtype = array.dtype.numpy_dtype
        metadata = of_bytes(array.spec(retain_context=False).to_json()["metadata"], dtype.itemsize)
        if metadata is None:
            return array[tuple(slice(*ends) for ends in region)].read().result()
        spec |= {"metadata": metadata, "open": True, "assume_metadata": True}
        found = tensorstore.open(spec).result()[box_of_bytes(region, dtype.itemsize)].read().result()
        return found.view(dtype)


def read_record(path: Path) -> dict[str, Any] | None:
    """The JSON of a checkpoint of ours, unchecked; None for a checkpoint that has none.

    Raises:
        CheckpointError: there is no whole checkpoint, or its JSON is none.
    """
    engine, _ = engine_and_context()
    if not path.is_dir() or not engine.is_orbax_checkpoint(path):
        raise CheckpointError(_what(path))
    if (path / RECORD).is_dir():
        return read(path, {RECORD: None})[RECORD]
    if f'"{RECORD}":' in _text(path / "_CHECKPOINT_METADATA"):
        raise CheckpointError(f"{path} had a record, {RECORD}/data.json, and has it no more: it is damaged")
    return None


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""


def trees(path: Path) -> dict[str | None, Any]:
    """The trees of any checkpoint, by name, each leaf with its shape and dtype; None names the only one.

    Raises:
        CheckpointError: metadata that cannot be read.
    """
    engine, context = engine_and_context()
    with named(f"{path} cannot be read"), context:
        if (path / "_METADATA").exists():
            return {None: engine.metadata(path, checkpointable_name=None).metadata}
        found = engine.checkpointables_metadata(path).metadata
    if not found:
        raise CheckpointError(_what(path))
    return {name: tree for name, tree in found.items() if tree is not None}


def placeholder() -> Any:
    """The target of a leaf that is not to be read."""
    return engine_and_context()[0].PLACEHOLDER


def steps_in(folder: Path) -> list[int]:
    """The steps whose checkpoints lie in a folder, in order."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def sequence(
    folder: Path,
    every: int,
    last: int | None,
    best: tuple[int, Callable[[Any], float], bool] | None,
    multiples: int | None,
) -> Any:
    """Orbax's own checkpointer of a training.

    Args:
        folder: where to.
        every: only steps that this divides are saved.
        last: how many of the latest to keep.
        best: how many of the best to keep, their measure, and True if less is better.
        multiples: keep the steps that this divides.
    """
    engine, context = engine_and_context()
    keep, take = engine.training.preservation_policies, engine.training.save_decision_policies
    policies = [
        *([] if last is None else [keep.LatestN(last)]),
        *([] if best is None else [keep.BestN(get_metric_fn=best[1], reverse=best[2], n=best[0])]),
        *([] if multiples is None else [keep.EveryNSteps(multiples)]),
    ]
    return engine.training.Checkpointer(
        folder,
        context=context,
        save_decision_policy=take.FixedIntervalPolicy(every),
        preservation_policy=keep.AnyPreservationPolicy(policies) if policies else keep.PreserveAll(),
        cleanup_tmp_directories=True,
    )


@contextmanager
def named(what: str) -> Iterator[None]:
    """Whatever Orbax raises inside, as a CheckpointError that begins with these words."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        first = _first(error)
        raise CheckpointError(f"{what}: {type(first).__name__}: {first}") from error


def _first(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    return error if error.__cause__ is None else _first(error.__cause__)


def remove_begun(path: Path) -> None:
    """Remove what a save that failed has left beside the place it was to stand."""
    for begun in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(begun, ignore_errors=True)


def engine_and_context() -> tuple[Any, Any]:
    """Orbax, and our settings for it."""
    from orbax.checkpoint import v1 as ocp

    registry = ocp.handlers.local_registry()
    # A dictionary of numbers and text would otherwise be stored as a tree of tensors.
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=RECORD)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.array.saving.use_compression = False
    # What may change during a save was copied before.
    context.memory.deepcopy_host_arrays = False
    return ocp, context


def _what(path: Path) -> str:
    if steps := steps_in(path):
        shown: Sequence[int] = steps if len(steps) < 8 else [*steps[:3], *steps[-3:]]
        return f"{path} is a folder of steps {list(shown)}; name one of them, such as {path / str(steps[-1])}"
    return f"{path} is no whole checkpoint of Orbax; jaxstate.orbax.save and its Checkpointer write them"
