"""Save: every process writes a file of its own, into one folder of all or into one that only it sees.

Into one folder, the first process writes what tells of them all; in folders of their own, each tells of its
own. What fails in one process is told to all before they meet again, so that none waits for it.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxstate.arrays.lazy import LazyArray
from jaxstate.binding import Binding
from jaxstate.errors import BindingError, FileError
from jaxstate.io._dcp_parts import Part, write_index, write_parts
from jaxstate.io._files import save as save_file
from jaxstate.io._shards import INDEX, index_content
from jaxstate.sharded._optimizer import with_optimizer
from jaxstate.sharded._plan import Plan, check_values, plan_of
from jaxstate.together import alike, exchanged, together


def save(
    model: Any,
    folder: str | Path,
    binding: Binding | None = None,
    *,
    format: Literal["safetensors", "dcp"] = "safetensors",
    shared: bool = True,
    opt_state: Any = None,
    optimizer: Any = None,
    label: Any = None,
    step: int | None = None,
) -> None:
    """Write the state_dict of a model that lies on several processes; each of them calls this.

    No process holds the model. "dcp" is a folder of `torch.distributed.checkpoint` in which every process
    writes the shards that it has; "safetensors" a folder as Hugging Face writes it, with a file for each
    process: a tensor is whole in one file, and is gathered for that, one at a time.

    With an optimizer's state the folder holds `{"model": ..., "optimizer": ...}`, the latter by names, as
    `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` has it, and torch's `load` fills that.

    Args:
        model: an NNX module, a Linen model's variables, or any pytree that the binding fits, of arrays with
            any shardings over all processes.
        folder: where to; one that does not exist yet.
        binding: needed where the model does not tell its layers.
        format: "safetensors" or "dcp".
        shared: whether all processes see the folder. False, for "dcp": each has its own, on a disk of its
            host, and writes into it all that its devices hold, replicas too. `js.load` of it gives arrays
            whose parts can be had as far as they are there, which is what the same devices need;
            `js.load([one, another])`, or of all their files in one folder, gives all of the model.
        opt_state: the optimizer's state, which `js.optim.state_dict` takes; for "dcp".
        optimizer, label, step: as for `js.optim.state_dict`.

    Raises:
        BindingError: leaves that do not fit the binding, or hold what torch has no place for.
        OptimizerError: a state that torch has no form for.
        FileError: the folder exists or cannot be written; another process has failed. What was begun is
            removed.

    >>> import tempfile, jaxstate as js
    >>> from jaxstate.rules.rule import Rule
    >>> folder, binding = tempfile.mkdtemp() + "/net", Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> save({"w": np.arange(6.0).reshape(3, 2)}, folder, binding)
    >>> js.load(folder)["fc.weight"].tolist()
    [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    folder, write = str(folder), _writer(format, shared)
    with _together("looking at the model and the folder"):
        plan = plan_of(model, binding)
        if opt_state is not None:
            plan = with_optimizer(plan, format, opt_state, optimizer, label, step)
        if os.path.lexists(folder):
            raise FileError(f"{folder} exists; several processes write into a new folder only")
    alike("js.sharded.save: what is to be written", plan.fingerprint, BindingError)
    with _together("looking at values"):
        check_values(plan)
    try:
        with _together("making the folder"):
            _make(folder, shared)
        write(folder, plan)
    except Exception:
        if jax.process_index() == 0 or not shared:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _make(folder: str, shared: bool) -> None:
    try:
        os.makedirs(folder, exist_ok=shared)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {error.strerror or error}") from error


def _writer(format: str, shared: bool) -> Callable[[str, Plan], None]:
    if format not in ("safetensors", "dcp"):
        raise FileError(f'format must be "safetensors" or "dcp", not {format!r}')
    if format == "safetensors" and not shared:
        raise FileError(
            "a safetensors file holds whole tensors, and no process has them; a folder of each host's own "
            'is written by format="dcp", shared=False'
        )
    return _save_safetensors if format == "safetensors" else _save_dcp if shared else _save_own_dcp


def _save_dcp(folder: str, plan: Plan) -> None:
    parts = _parts(plan, lambda number, processes: processes[0] == plan.number)
    with _together("writing the parts"), _to_the_end(parts):
        entries = write_parts(folder, plan.number, parts)
    rows = _gathered(entries)
    with _together("writing the index"):
        if plan.number == 0:
            write_index(folder, _tensors(plan), rows, plan.paths)


def _save_own_dcp(folder: str, plan: Plan) -> None:
    save_id = exchanged("js.sharded.save: naming", f"jaxstate-{secrets.token_hex(8)}")[0]
    parts = _parts(plan, lambda number, processes: number in processes)
    with _together("writing the parts"), _to_the_end(parts):
        entries = write_parts(folder, plan.number, parts)
        # Nobody knows what this folder lacks but the others, so it is no checkpoint before all are written.
    with _together("writing the indices"):
        write_index(folder, _tensors(plan), [entries], plan.paths, rank=plan.number, save_id=save_id)


def _parts(plan: Plan, writes: Callable[[int, tuple[int, ...]], bool]) -> Iterator[Part]:
    """What this process writes; meanwhile all of them gather what is not written where it lies.

    Args:
        writes: whether the process of this number writes what these processes have.
    """
    everyone = tuple(range(jax.process_count()))
    for turn, (key, array) in enumerate(plan.arrays.items()):
        if key in plan.chunks:
            for ends, processes in plan.chunks[key].items():
                if writes(plan.number, processes):
                    box = tuple(slice(*pair) for pair in ends)
                    yield Part(key, tuple(span.start for span in box), np.asarray(plan.mine[key][box]))
            continue
        values, first = np.asarray(array), turn % len(everyone)
        if writes(plan.number, everyone[first:] + everyone[:first]):
            yield Part(key, (0,) * values.ndim, values)
    for key, value in plan.objects.items() if writes(plan.number, everyone) else ():
        yield Part(key, None, value)


def _tensors(plan: Plan) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {key: (x.dtype, tuple(x.shape)) for key, x in plan.arrays.items()}


def _save_safetensors(folder: str, plan: Plan) -> None:
    # In the order in which a file's bytes follow each other, so that all gather in the order of all files.
    order = sorted(plan.arrays, key=lambda key: (-plan.arrays[key].dtype.itemsize, key))
    owners = _owners({key: plan.arrays[key].size * plan.arrays[key].dtype.itemsize for key in order})
    count = max(owners.values(), default=0) + 1
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    turns = _turns(order, plan.arrays)
    mine = {key: plan.arrays[key] for key in plan.arrays if owners[key] == plan.number}
    with _together("writing the files"), _to_the_end(turns):
        if plan.number < count:
            file = os.path.join(folder, names[plan.number])
            save_file({key: _in_turn(key, array, turns) for key, array in mine.items()}, file)
    with _together("writing the index"):
        if plan.number == 0:
            where = {key: names[owners[key]] for key in plan.arrays}
            total = sum(x.size * x.dtype.itemsize for x in plan.arrays.values())
            Path(folder, INDEX).write_bytes(index_content(where, total))


def _turns(order: Iterable[str], arrays: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Each array in turn, gathered in all processes."""
    return ((key, np.asarray(arrays[key])) for key in order)


def _in_turn(key: str, array: Any, turns: Iterator[tuple[str, np.ndarray]]) -> LazyArray:
    """An array that takes part in the gathering of all that come before it."""

    def make() -> np.ndarray:
        return next(values for other, values in turns if other == key)

    return LazyArray(tuple(array.shape), array.dtype, make)


def _owners(sizes: Mapping[str, int]) -> dict[str, int]:
    """The process that writes each array: always the one that has least to write."""
    loads, owners = [0] * jax.process_count(), {}
    for key, size in sizes.items():
        owners[key] = loads.index(min(loads))
        loads[owners[key]] += max(1, size)
    return owners


def _together(step: str) -> Any:
    return together(f"js.sharded.save: {step}", FileError)


@contextmanager
def _to_the_end(turns: Iterator[Any]) -> Iterator[None]:
    """Take part in the gathering that is left, also where this process has failed: the others need it."""
    try:
        yield
    finally:
        for _ in turns:
            pass


def _gathered(entries: bytes) -> list[bytes]:
    """What each process has."""
    if jax.process_count() == 1:
        return [entries]
    from jax.experimental import multihost_utils

    gather = partial(multihost_utils.process_allgather, tiled=False)
    lengths = np.asarray(gather(np.int32(len(entries)))).reshape(-1).tolist()
    padded = np.frombuffer(entries.ljust(max(lengths)), np.uint8)
    rows = np.asarray(gather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
