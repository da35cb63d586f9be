"""Save: every process writes a file of its own into one folder, and the first one what tells of them all."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.apart import Bijection
from jaxstate.binding import Binding
from jaxstate.convert import fitting
from jaxstate.declared import Tied
from jaxstate.errors import BindingError, FileError
from jaxstate.io._dcp_parts import Part, write_index, write_parts
from jaxstate.io._files import save as save_file
from jaxstate.io._shards import INDEX, index_content
from jaxstate.lazy import LazyArray
from jaxstate.sharded._leaves import gathered, own, shards

MAX_CHUNKS = 256  # that one shard may fall into on torch's side


class Plan(NamedTuple):
    """The same for all processes: what lies where, and who writes it.

    Attributes:
        arrays: torch's, by key, which all processes have to ask for in one order.
        mine: torch's, by key, of which this process has parts.
        chunks: by key the boxes and who writes each; a key without any is gathered, and has one owner.
    """

    arrays: Mapping[str, Any]
    mine: Mapping[str, Any]
    chunks: Mapping[str, Mapping[Any, int]]


def save(
    model: Any,
    folder: str | Path,
    binding: Binding | None = None,
    *,
    format: Literal["safetensors", "dcp"] = "safetensors",
) -> None:
    """Write the state_dict of a model that lies on several processes; each of them calls this.

    No process holds the model. "dcp" is a folder of `torch.distributed.checkpoint` in which every process
    writes the shards that it has; "safetensors" a folder as Hugging Face writes it, with a file for each
    process: a tensor is whole in one file, and is gathered for that, one at a time.

    Args:
        model: an NNX module, a Linen model's variables, or any pytree that the binding fits, of arrays with
            any shardings over all processes.
        folder: where to; one that all processes see, and that does not exist yet.
        binding: needed where the model does not tell its layers.
        format: "safetensors" or "dcp".

    Raises:
        BindingError: leaves that do not fit the binding, or hold what torch has no place for.
        FileError: the folder exists or cannot be written.

    >>> import tempfile, jaxstate as js
    >>> folder, binding = tempfile.mkdtemp() + "/net", Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> save({"w": np.arange(6.0).reshape(3, 2)}, folder, binding)
    >>> js.load(folder)["fc.weight"].tolist()
    [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    writers: dict[str, Callable[[str, Plan], None]] = {"safetensors": _save_safetensors, "dcp": _save_dcp}
    if format not in writers:
        raise FileError(f'format must be "safetensors" or "dcp", not {format!r}')
    plan = _plan(model, binding)
    _make(str(folder))
    writers[format](str(folder), plan)
    _wait("written")


def _plan(model: Any, binding: Binding | None) -> Plan:
    leaves = adapter_of(model).leaves(model)
    binding, collection = fitting(binding, model, leaves)
    leaves = {collection + path: leaf for path, leaf in leaves.items()}
    everywhere = {path: gathered(leaf) for path, leaf in leaves.items()}
    if refused := [line for rule in binding.rules for line in rule.refused_leaves(everywhere)]:
        raise BindingError("torch cannot hold these leaves:\n\t" + "\n\t".join(refused))
    here = {path: own(leaf) for path, leaf in leaves.items()}
    rules = [rule for rule in binding.rules if isinstance(rule, Bijection)]
    mine = {key: array for rule in rules for key, array in rule.lazy_state_dict(here).items()}
    chunks = {key: found for rule in rules for key, found in _chunks(rule, leaves).items()}
    for key, to in (pair for rule in binding.rules if isinstance(rule, Tied) for pair in rule.pairs):
        if to in chunks:
            mine[key], chunks[key] = mine[to], chunks[to]
    return Plan(binding.lazy_state_dict(everywhere), mine, chunks)


def _chunks(rule: Bijection, leaves: Mapping[str, Any]) -> dict[str, dict[Any, int]]:
    """The boxes of torch's arrays that the shards of this rule's leaves are, and who has each."""
    found: dict[str, dict[Any, int]] = {key: {} for key in rule.keys}
    for path in rule.paths:
        for region, process in shards(leaves[path]).items():
            box = tuple(slice(*ends) for ends in region)
            places = rule.places(path, box) if leaves[path].size else []
            if len(places) > MAX_CHUNKS * len(rule.keys):
                return {}
            for key, there in places:
                found[key][tuple((span.start, span.stop) for span in there)] = process
    return {key: boxes for key, boxes in found.items() if boxes}


def _save_dcp(folder: str, plan: Plan) -> None:
    entries = write_parts(folder, jax.process_index(), _parts(plan))
    _wait("written in parts")
    rows = _exchanged(entries)
    if jax.process_index() == 0:
        write_index(folder, {key: (x.dtype, tuple(x.shape)) for key, x in plan.arrays.items()}, rows)


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
