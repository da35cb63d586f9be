"""Save: every process writes a file of its own into one folder, and the first one what tells of them all."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxstate.binding import Binding
from jaxstate.errors import FileError
from jaxstate.io._dcp_parts import Part, write_index, write_parts
from jaxstate.io._files import save as save_file
from jaxstate.io._shards import INDEX, index_content
from jaxstate.lazy import LazyArray
from jaxstate.sharded._optimizer import with_optimizer
from jaxstate.sharded._plan import Plan, plan_of


def save(
    model: Any,
    folder: str | Path,
    binding: Binding | None = None,
    *,
    format: Literal["safetensors", "dcp"] = "safetensors",
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
        folder: where to; one that all processes see, and that does not exist yet.
        binding: needed where the model does not tell its layers.
        format: "safetensors" or "dcp".
        opt_state: the optimizer's state, which `js.optim.state_dict` takes; for "dcp".
        optimizer, label, step: as for `js.optim.state_dict`.

    Raises:
        BindingError: leaves that do not fit the binding, or hold what torch has no place for.
        OptimizerError: a state that torch has no form for.
        FileError: the folder exists or cannot be written.

    >>> import tempfile, jaxstate as js
    >>> from jaxstate.rule import Rule
    >>> folder, binding = tempfile.mkdtemp() + "/net", Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> save({"w": np.arange(6.0).reshape(3, 2)}, folder, binding)
    >>> js.load(folder)["fc.weight"].tolist()
    [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    writers: dict[str, Callable[[str, Plan], None]] = {"safetensors": _save_safetensors, "dcp": _save_dcp}
    if format not in writers:
        raise FileError(f'format must be "safetensors" or "dcp", not {format!r}')
    plan = plan_of(model, binding)
    if opt_state is not None:
        plan = with_optimizer(plan, format, opt_state, optimizer, label, step)
    _make(str(folder))
    writers[format](str(folder), plan)
    _wait("written")


def _save_dcp(folder: str, plan: Plan) -> None:
    entries = write_parts(folder, jax.process_index(), _parts(plan))
    _wait("written in parts")
    rows = _exchanged(entries)
    if jax.process_index() == 0:
        tensors = {key: (x.dtype, tuple(x.shape)) for key, x in plan.arrays.items()}
        write_index(folder, tensors, rows, plan.paths)


def _parts(plan: Plan) -> Iterator[Part]:
    """What this process writes; meanwhile all of them gather what is not written where it lies."""
    for number, (key, array) in enumerate(plan.arrays.items()):
        if key in plan.chunks:
            for ends, process in plan.chunks[key].items():
                if process == jax.process_index():
                    box = tuple(slice(*pair) for pair in ends)
                    yield Part(key, tuple(span.start for span in box), np.asarray(plan.mine[key][box]))
            continue
        values = np.asarray(array)
        if number % jax.process_count() == jax.process_index():
            yield Part(key, (0,) * values.ndim, values)
    for key, value in plan.objects.items() if jax.process_index() == 0 else ():
        yield Part(key, None, value)


def _save_safetensors(folder: str, plan: Plan) -> None:
    # In the order in which a file's bytes follow each other, so that all gather in the order of all files.
    order = sorted(plan.arrays, key=lambda key: (-plan.arrays[key].dtype.itemsize, key))
    owners = _owners({key: plan.arrays[key].size * plan.arrays[key].dtype.itemsize for key in order})
    count = max(owners.values(), default=0) + 1
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    turns = iter(order)
    mine = {key: plan.arrays[key] for key in plan.arrays if owners[key] == jax.process_index()}
    if jax.process_index() < count:
        file = os.path.join(folder, names[jax.process_index()])
        save_file({key: _in_turn(key, array, turns, plan.arrays) for key, array in mine.items()}, file)
    for key in turns:
        np.asarray(plan.arrays[key])
    _wait("written in files")
    if jax.process_index() == 0:
        where = {key: names[owners[key]] for key in plan.arrays}
        total = sum(x.size * x.dtype.itemsize for x in plan.arrays.values())
        Path(folder, INDEX).write_bytes(index_content(where, total))


def _in_turn(key: str, array: Any, turns: Iterator[str], arrays: Mapping[str, Any]) -> LazyArray:
    """An array that takes part in the gathering of all that come before it."""

    def make() -> np.ndarray:
        for other in turns:
            if other == key:
                break
            np.asarray(arrays[other])
        return np.asarray(arrays[key])

    return LazyArray(tuple(array.shape), array.dtype, make)


def _owners(sizes: Mapping[str, int]) -> dict[str, int]:
    """The process that writes each array: always the one that has least to write."""
    loads, owners = [0] * jax.process_count(), {}
    for key, size in sizes.items():
        owners[key] = loads.index(min(loads))
        loads[owners[key]] += max(1, size)
    return owners


def _make(folder: str) -> None:
    exists = os.path.lexists(folder)
    _wait(f"{folder} is looked for")
    if exists:
        raise FileError(f"{folder} exists; several processes write into a new folder only")
    os.makedirs(folder, exist_ok=True)


def _wait(what: str) -> None:
    """Go on when all processes have come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"jaxstate.sharded: {what}")


def _exchanged(entries: bytes) -> list[bytes]:
    """What each process has."""
    if jax.process_count() == 1:
        return [entries]
    from jax.experimental import multihost_utils

    gather = partial(multihost_utils.process_allgather, tiled=False)
    lengths = np.asarray(gather(np.int32(len(entries)))).reshape(-1).tolist()
    padded = np.frombuffer(entries.ljust(max(lengths)), np.uint8)
    rows = np.asarray(gather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
