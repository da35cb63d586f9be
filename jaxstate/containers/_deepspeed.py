"""DeepSpeed: a folder with the model in one file, and with ZeRO-1 or 2 a file of optimizer states a rank.

Stage 3 and what is cut by model, pipeline or expert parallelism is refused with the tool that joins it.

https://www.deepspeed.ai/tutorials/zero/
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxstate import io
from jaxstate.containers._checkpoint import Checkpoint, Recognised
from jaxstate.containers._folder import names_in
from jaxstate.containers._kinds import is_number, is_optimizer
from jaxstate.containers._roles import Part, taken_apart
from jaxstate.containers._zero import TO_FP32, UNIVERSAL, joined
from jaxstate.errors import CheckpointError, FileError

_MODEL = "mp_rank_00_model_states.pt"
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_ANY = re.compile(r".*(mp_rank_\d\d|layer_\d\d).*_(model|optim)_states\.pt")


def is_deepspeed(folder: str, names: Sequence[str]) -> bool:
    """True of a folder of DeepSpeed's files, and of the one above, which names the latest."""
    if "trainer_state.json" in names:
        return False
    named = os.path.isfile(os.path.join(folder, "latest")) and os.path.isdir(_latest(folder))
    return named or any(map(_ANY.fullmatch, names))


def load(folder: str, names: Sequence[str], mmap: bool) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        CheckpointError: stage 3, model or pipeline parallelism, missing ranks, slices that do not fit.
        FileError: a file that cannot be read.
    """
    if not any(map(_ANY.fullmatch, names)):
        folder = _latest(folder)
        names = names_in(folder)
    _check_names(names)
    ranks = {name: _read(folder, name, mmap) for name in sorted(filter(_RANK.fullmatch, names), key=_number)}
    model = _read(folder, _MODEL, mmap)
    told = [*(joined(model, list(ranks.values())) if ranks else _whole(model)), *_progress(model)]
    evidence = _MODEL + (f" and the optimizer states of {len(ranks)} ranks" if ranks else "")
    files = {name: Path(folder, name) for name in names}
    return taken_apart(Recognised("DeepSpeed", evidence), {**files, _MODEL: model, **ranks}, {}, told, {})


def _latest(folder: str) -> str:
    """The folder that the file `latest` names, which must be a plain name."""
    try:
        with open(os.path.join(folder, "latest"), encoding="utf-8") as file:
            tag = file.read(4096).strip()
    except (OSError, ValueError) as error:
        raise FileError(f"{folder}/latest: cannot be read: {error}") from error
    if tag in ("", ".", "..") or re.search(r"[/\\\0]", tag):
        raise FileError(f"{folder}/latest: {tag[:200]!r} is not the name of a folder")
    return os.path.join(folder, tag)


def _number(name: str) -> int:
    rank = _RANK.fullmatch(name)
    return int(rank[1]) if rank else -1


def _check_names(names: Sequence[str]) -> None:
    others = [name for name in names if _ANY.fullmatch(name) and name != _MODEL and not _RANK.fullmatch(name)]
    if any(re.fullmatch(r"zero_pp_rank_\d+_mp_rank_\d\d_model_states\.pt", name) for name in others):
        raise CheckpointError(f"a checkpoint of DeepSpeed's ZeRO stage 3 ({others[0]}); {TO_FP32}")
    if others:
        raise CheckpointError(
            "a checkpoint of DeepSpeed, cut across ranks by model, pipeline or expert parallelism "
            f"({others[0]}); {UNIVERSAL}"
        )
    if _MODEL not in names:
        raise CheckpointError(f"a checkpoint of DeepSpeed without {_MODEL}; fetch it again")
    found = sorted(_number(name) for name in names if _RANK.fullmatch(name))
    if found != list(range(len(found))):
        raise CheckpointError(
            f"a checkpoint of DeepSpeed with the ranks {found}; some are missing or there twice"
        )


def _read(folder: str, name: str, mmap: bool) -> Mapping[str, Any]:
    value = io.load(os.path.join(folder, name), mmap=mmap)
    needed = "module" if name == _MODEL else "optimizer_state_dict"
    if not isinstance(value, Mapping) or not isinstance(value.get(needed), Mapping):
        raise CheckpointError(f"{name} of DeepSpeed has no dict under {needed!r}")
    return value


def _whole(model: Mapping[str, Any]) -> Iterator[Part]:
    """Without ZeRO, the model's file has it all."""
    if model.get("param_shapes"):
        raise CheckpointError(
            "a checkpoint of DeepSpeed's ZeRO without the files *_optim_states.pt, which have the float32 "
            f'weights; of those in 16 bits take jaxstate.load("{_MODEL}")["module"]'
        )
    yield Part("model", f"{_MODEL}: module", model["module"])
    if is_optimizer(model.get("optimizer")):
        yield Part("optimizer", f"{_MODEL}: optimizer", model["optimizer"])


def _progress(model: Mapping[str, Any]) -> Iterator[Part]:
    for role, key in (("step", "global_steps"), ("epoch", "epoch")):
        if is_number(model.get(key)):
            yield Part(role, f"{_MODEL}: {key}", model[key])
    if isinstance(model.get("lr_scheduler"), Mapping):
        yield Part("scheduler", f"{_MODEL}: lr_scheduler", model["lr_scheduler"])
