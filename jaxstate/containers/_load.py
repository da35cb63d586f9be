"""The door of `containers`: `load_checkpoint`, which recognises the tool and has it say what is what."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxstate import io
from jaxstate.containers import (
    _accelerate,
    _deepspeed,
    _fairseq,
    _hugging_face,
    _lightning,
    _megatron,
    _timm,
    _torchvision,
    _training_loop,
)
from jaxstate.containers._checkpoint import Checkpoint, Recognised, said
from jaxstate.containers._folder import contents_of, names_in
from jaxstate.containers._kinds import is_averaged, is_optimizer, is_shard, is_state_dict
from jaxstate.containers._roles import Asked, Contents, Part, taken_apart
from jaxstate.errors import CheckpointError, FileError, quoted

FILES = (_lightning.TOOL, _timm.TOOL, _torchvision.TOOL, _fairseq.TOOL)
FOLDERS = (_hugging_face.TRAINER, _accelerate.TOOL, _hugging_face.ADAPTER, _hugging_face.PRETRAINED)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    ema: str | None = None,
    scaler: str | None = None,
    epoch: str | None = None,
    step: str | None = None,
    mmap: bool = True,
) -> Checkpoint:
    """What a training tool wrote, taken apart: model, optimizers, schedulers, and all else in `extra`.

    The tool is recognised by what it alone writes. Where several places may be one part, nothing is chosen.

    Args:
        path: a file or a folder: of a training loop of one's own, torchvision's reference scripts, timm,
            Lightning, fairseq, Hugging Face's Trainer and `save_pretrained`, Accelerate, PEFT, DeepSpeed with
            ZeRO-1 or 2, or `torch.distributed.checkpoint`.
        model, ema, scaler, epoch, step: the place of that part, a key of the dict or the name of a file,
            where several may be it, or another than the usual is meant: `model="ema_state_dict"`.
        mmap: as for `js.load`.

    Returns:
        A `Checkpoint`, which prints as a table. Wrappers such as `module.` are taken out of the keys of the
        model, of the average, and of the names in optimizers; `containers.wrap` puts them back.

    Raises:
        CheckpointError: no checkpoint, one whose parts are ambiguous, with all that may be chosen, or of a
            tool whose own converter has to go first.
        FileError: a file that is missing, damaged or hostile.

    >>> import numpy as np, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "last.pt")
    >>> osd = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    >>> io.save({"net": {"module.fc.weight": np.eye(2)}, "opt": osd, "epoch": 7, "loss": 0.5}, path)
    >>> load_checkpoint(path)
    Checkpoint of a training loop (a dict with net, opt, epoch)
    <BLANKLINE>
    part       place  what
    ---------  -----  ------------------------------
    model      net    state_dict, 1 entry, 4 numbers
    optimizer  opt    optimizer, 0 states in 1 group
    epoch      epoch  7
    extra      loss   0.5
    wrappers   net    "module." before every key
    """
    given = {"model": model, "ema": ema, "scaler": scaler, "epoch": epoch, "step": step}
    asked = {role: place for role, place in given.items() if place is not None}
    try:
        return _read(path, asked, mmap)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def _read(path: Any, asked: Asked, mmap: bool) -> Checkpoint:
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if isinstance(name, str) and os.path.isdir(name):
        return _of_folder(name, asked, mmap)
    return _of_object(io.load(path, mmap=mmap), asked)


def _of_object(contents: Any, asked: Asked) -> Checkpoint:
    """The object of one file, which is a dict of parts or one part itself."""
    contents = _without_wholes(contents)
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"no checkpoint, which is a dict, but {said(contents)}")
    _refuse_shards(contents)
    if not asked and (part := _alone(contents)):
        return taken_apart(Recognised("torch", f"one {said(contents)}"), {}, {}, [part], asked)
    _megatron.refuse_file(contents)
    tool, evidence = _recognised(FILES, contents)
    if tool is None:
        tool, evidence = _training_loop.TOOL, _training_loop.TOOL.evidence(contents)
    roles = tool.roles(contents)
    if not roles and not asked:
        raise CheckpointError(f"no part of a checkpoint among {_listed(contents)}")
    return taken_apart(
        Recognised(tool.name, evidence or "a dict"), contents, roles, tool.told(contents), asked
    )


def _without_wholes(contents: Any) -> Any:
    """The same, with the state_dict of each module, optimizer or scheduler that was pickled whole."""
    if not isinstance(contents, Mapping):
        return _state_dict_of(contents)
    found = {place: _state_dict_of(value) for place, value in contents.items()}
    same = all(found[place] is value for place, value in contents.items())
    return contents if same else found  # a state_dict keeps its attributes


def _state_dict_of(value: Any) -> Any:
    try:
        return io.state_dict_of(value) if isinstance(value, io.Opaque) else value
    except FileError:  # another class's record: it stays what it is, in `extra`
        return value


def _refuse_shards(contents: Contents) -> None:
    """Raises CheckpointError for tensors of which other processes have the rest."""
    inside = [value for value in contents.values() if isinstance(value, Mapping)]
    if any(is_shard(value) for values in (contents, *inside) for value in values.values()):
        raise CheckpointError(
            "tensors in it are sharded (DTensor, ShardedTensor), and a file has the part of one process; "
            "save it with torch.distributed.checkpoint, or by get_state_dict with full_state_dict=True"
        )


def _alone(contents: Contents) -> Part | None:
    """The part that a whole file is."""
    if is_averaged(contents):
        return Part("ema", "", contents)
    if is_state_dict(contents):
        return Part("model", "", contents)
    return Part("optimizer", "", contents) if is_optimizer(contents) else None


def _of_folder(folder: str, asked: Asked, mmap: bool) -> Checkpoint:
    names = names_in(folder)
    _megatron.refuse_folder(names)
    if _deepspeed.is_deepspeed(folder, names):
        _refuse_asked(asked)
        return _deepspeed.load(folder, names, mmap)
    if ".metadata" in names:
        return _of_distributed(folder, names, _of_object(io.load(folder, mmap=mmap), asked))
    tool, evidence = _recognised(FOLDERS, frozenset(names))
    if tool is None:
        raise CheckpointError(_unknown(folder, names))
    contents = contents_of(folder, names, tool, asked.values(), mmap)
    return taken_apart(
        Recognised(tool.name, evidence), contents, tool.roles(names), tool.told(contents), asked
    )


def _of_distributed(folder: str, names: Sequence[str], found: Checkpoint) -> Checkpoint:
    """The object that the folder holds, and the paths of the files that are none of its own."""
    others = [name for name in names if name != ".metadata" and not name.endswith(".distcp")]
    tool = Recognised("torch.distributed.checkpoint", f".metadata, and in it {found.tool}")
    return replace(found, tool=tool, extra={**{name: Path(folder, name) for name in others}, **found.extra})


def _recognised(tools: Sequence[Any], contents: Any) -> tuple[Any, str]:
    """The only tool with evidence, or None."""
    found = [(tool, evidence) for tool in tools if (evidence := tool.evidence(contents))]
    if len(found) > 1:
        listed = "; ".join(str(Recognised(tool.name, evidence)) for tool, evidence in found)
        raise CheckpointError(
            f"it has the marks of several tools: {listed}; take it apart with jaxstate.load"
        )
    return found[0] if found else (None, "")


def _refuse_asked(asked: Asked) -> None:
    if asked:
        raise CheckpointError(f"DeepSpeed's files have one place for each part; leave out {quoted(asked)}")


def _unknown(folder: str, names: Sequence[str]) -> str:
    below = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    hint = f"; load one of the folders in it: {_listed(below)}" if below else "; load one of its files"
    return f"a folder that no known tool writes, with {_listed(names)}{hint}"


def _listed(names: Any) -> str:
    names = list(names)
    return quoted(str(name)[:80] for name in names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
