"""What stands at a path: its format, the tool that wrote it, and its content or one part of it."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxstate import io, orbax
from jaxstate.containers import Checkpoint, Recognised, load_checkpoint
from jaxstate.errors import CheckpointError, FileError, quoted

FORMATS = {
    "torch": "torch's zip archive",
    "legacy": "torch's stream from before 1.6",
    "safetensors": "safetensors",
    "folder": "a folder",
}
PARTS = ("model", "ema", "scaler", "optimizer", "scheduler")
PART = "a part of the checkpoint: " + ", ".join(PARTS) + ", or a place that `jaxstate inspect` lists"


class Opened(NamedTuple):
    """A checkpoint that was opened; nothing but its index has been read.

    Attributes:
        path: where it stands.
        format: what its bytes are, in words.
        checkpoint: its parts, and the tool that wrote it; None only of a whole of which several parts could
            be the model.
        content: all that it holds, or the part that was asked for.
    """

    path: str
    format: str
    checkpoint: Checkpoint | None
    content: Any


def opened(path: str, part: str | None = None) -> Opened:
    """What stands at a path, whole or one part of it.

    Raises:
        FileError: nothing that can be read, or no part of this name.
        CheckpointError: several parts could be meant.
    """
    if _is_orbax(path):
        checkpoint = _of_orbax(path)
        content = by_place(checkpoint) if part is None else part_of(checkpoint, part)
        return Opened(path, "an Orbax checkpoint", checkpoint, content)
    if part is not None:
        checkpoint = load_checkpoint(path)
        return Opened(path, _format(path), checkpoint, part_of(checkpoint, part))
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError:
        return Opened(path, _format(path), None, io.load(path))
    content = by_place(checkpoint) if os.path.isdir(path) else io.load(path)
    return Opened(path, _format(path), checkpoint, content)


def _format(path: str) -> str:
    return FORMATS[io.format_of(path)]


def _is_orbax(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "_CHECKPOINT_METADATA"))


def _of_orbax(path: str) -> Checkpoint:
    """What jaxstate wrote through Orbax, as torch would have saved it; its arrays are not read yet."""
    parts = orbax.to_torch(path, lazy=True)
    known = {"model": parts.pop("model"), "step": parts.pop("step", None)}
    several = {f"{name}s": {name: parts.pop(name)} for name in ("optimizer", "scheduler") if name in parts}
    return Checkpoint(Recognised("jaxstate", "through Orbax"), **known, **several, extra=parts)


def part_of(checkpoint: Checkpoint, part: str) -> Any:
    """One part of a checkpoint, by its name or by its place.

    Raises:
        FileError: there is no such part.
    """
    places = by_place(checkpoint)
    found = getattr(checkpoint, part) if part in PARTS else places.get(part)
    if found is None:
        raise FileError(f"there is no {part} in this checkpoint; it holds {quoted(places)}")
    return found


def by_place(checkpoint: Checkpoint) -> dict[str, Any]:
    """Every part of a checkpoint under the name of the place where it stands."""
    own = {checkpoint.places.get(name) or name: value for name, value in _single(checkpoint).items()}
    return {**own, **checkpoint.optimizers, **checkpoint.schedulers, **checkpoint.extra}


def by_role(checkpoint: Checkpoint) -> Any:
    """The parts of a checkpoint by what they are; the model itself where it is the only one."""
    several = {
        **_numbered("optimizer", checkpoint.optimizers),
        **_numbered("scheduler", checkpoint.schedulers),
    }
    parts = {**_single(checkpoint), **several}
    return parts["model"] if list(parts) == ["model"] else parts


def _single(checkpoint: Checkpoint) -> dict[str, Any]:
    found = {name: getattr(checkpoint, name) for name in ("model", "ema", "scaler", "epoch", "step")}
    return {name: value for name, value in found.items() if value is not None}


def _numbered(role: str, found: Mapping[str, Any]) -> dict[str, Any]:
    values = list(found.values())
    return {role: values[0]} if len(values) == 1 else {f"{role}_{n}": value for n, value in enumerate(values)}
