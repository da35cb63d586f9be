"""Engine: Orbax itself, with our settings. No other file imports it.

Orbax is imported where it is called, since that takes longer than all of jaxstate. Nothing is compressed:
floats hardly shrink, and packing them costs more than writing them. What Orbax raises becomes ours.

Its processes wait for each other at barriers, minutes long. So they write together only where they write one
checkpoint; what one can do alone it does as Orbax's only process, and tells the others how it went.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from jaxstate.errors import CheckpointError
from jaxstate.orbax._bytes import box_of_bytes, of_bytes
from jaxstate.together import client, exchanged, together

RECORD = "jaxstate"  # an item by our own name: programs choose names like "meta"

Items = Mapping[str, Any]


def write(path: Path, items: Items, shared: bool = True) -> None:
    """Write these items, whose leaves nobody changes meanwhile; there is all of it in the end, or nothing.

    Raises:
        CheckpointError: it cannot be written, in this process or another. What was begun is removed.
    """
    with saving(path, shared):
        begin(path, items, shared).result()


def begin(path: Path, items: Items, shared: bool) -> Any:
    """Begin to write these items; what is returned has a `result()` to wait for."""
    if shared:
        _count_alike()
    engine, context = engine_and_context(alone=not shared)
    with context:
        return engine.save_checkpointables_async(path, dict(items))


@contextmanager
def saving(path: Path, shared: bool, what: str = "") -> Iterator[None]:
    """What Orbax does inside for one checkpoint is done in all processes, or raises in all.

    Args:
        path: of the checkpoint.
        shared: whether it is one of all processes.
        what: how failures begin.

    Raises:
        CheckpointError: it failed in this process or another. What was begun is removed.
    """
    what, cut_off = what or f"{path} was not written", None
    try:
        with together("js.orbax: writing", lambda words: CheckpointError(f"{what}: {words}")):
            try:
                with named(what):
                    yield
            except CheckpointError as error:
                if shared and jax.process_count() > 1:
                    _release()
                if _BARRIER not in str(error):
                    raise
                cut_off = error  # the process that failed says why
        if cut_off is not None:
            raise cut_off
    except BaseException:
        remove_begun(path, whole=not shared)
        raise


_BARRIER = "CoordinationService/Barrier"
_ITEMS = ("params", "buffers", "random", "optimizer", "rngs")


def _barriers(operation: str) -> Iterator[str]:
    """Where Orbax's processes wait for each other during a save: as long as 20 minutes for each item."""
    for moment in ("maybe_overwrite_existing:pre", "maybe_overwrite_existing:post", "finalize"):
        yield f"[op={operation}] save_checkpointables_async:{moment}"
    yield f"[op={operation}] create_directory:post"
    for item in _ITEMS:
        for moment in ("commit", "finalize"):
            yield f"[op={operation}.{item}] save_and_finalize_{operation}.{item}_{moment}_complete"


def _release() -> None:
    """End the waiting of the other processes for this one, which has failed.

    A barrier fails for all as soon as one comes to it with another list of who takes part. Where Orbax calls
    its barriers otherwise, the others wait for as long as Orbax lets them.
    """
    operation = _operations().get_current_operation_id()
    for barrier in _barriers(operation):
        with suppress(jax.errors.JaxRuntimeError):
            client().wait_at_barrier(barrier, 10, [jax.process_index()])


def _count_alike() -> None:
    """Orbax counts its operations to name its barriers; a process that failed at one has not counted it."""
    mine = int(_operations().get_current_operation_id()) if jax.process_count() > 1 else 0
    count = max(map(int, exchanged("js.orbax: counting", str(mine)).values()))
    for _ in range(count - mine):
        _operations().next_operation_id()


def _operations() -> Any:
    from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

    return OperationIdGenerator


def read(path: Path, targets: Items) -> dict[str, Any]:
    """Read items, each leaf as its target says: a `ShapeDtypeStruct` with a sharding, or a numpy array.

    Raises:
        CheckpointError: what is stored is damaged or is not there.
    """
    engine, context = engine_and_context(alone=True)
    with named(f"{path} cannot be read"), context:
        return engine.load_checkpointables(path, dict(targets))


def read_tree(path: Path, name: str | None, targets: Any) -> Any:
    """Read one tree of a checkpoint that another program wrote, by the name it has there."""
    engine, context = engine_and_context(alone=True)
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
        with named(f"{path} cannot be read"):
            return json.loads((path / RECORD / "data.json").read_text())
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
    """Orbax's own checkpointer of a training, for one process: of several, each would wait for its finding
    out that another one has failed.

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


def remove_begun(path: Path, whole: bool = False) -> None:
    """Remove what a save that failed has left beside the place it was to stand, and there if it is whole."""
    if whole:
        shutil.rmtree(path, ignore_errors=True)
    for begun in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(begun, ignore_errors=True)


def engine_and_context(alone: bool = False) -> tuple[Any, Any]:
    """Orbax, and our settings for it; with `alone`, as if there were no other process."""
    from orbax.checkpoint import v1 as ocp

    registry = ocp.handlers.local_registry()
    # A dictionary of numbers and text would otherwise be stored as a tree of tensors.
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=RECORD)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.array.saving.use_compression = False
    # What may change during a save was copied before.
    context.memory.deepcopy_host_arrays = False
    if jax.process_count() > 1:
        # A directory that cannot be made is found at a barrier then, which can be released.
        context.asynchronous.create_directories_asynchronously = False
    if jax.process_count() > 1 and alone:
        context.array.saving.use_replica_parallel = False  # the replicas are elsewhere
        context.multiprocessing.primary_host = None
        context.multiprocessing.active_processes = {jax.process_index()}
    return ocp, context


def _what(path: Path) -> str:
    if steps := steps_in(path):
        shown: Sequence[int] = steps if len(steps) < 8 else [*steps[:3], *steps[-3:]]
        return f"{path} is a folder of steps {list(shown)}; name one of them, such as {path / str(steps[-1])}"
    return f"{path} is no whole checkpoint of Orbax; jaxstate.orbax.save and its Checkpointer write them"
