"""DeepSpeed with ZeRO-1 or 2: weights in 16 bits in one file, in float32 with the moments over the ranks.

The optimizer is given by the names of its parameters, as `torch.distributed.checkpoint` has it, since the ids
in the files are those of flat groups. Stage 3 cuts every parameter; DeepSpeed's own tool must join them.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxstate import io
from jaxstate.containers._checkpoint import Checkpoint, Recognised
from jaxstate.containers._folder import names_in
from jaxstate.containers._kinds import is_number, is_optimizer
from jaxstate.containers._roles import Part, taken_apart
from jaxstate.containers._zero import Shapes, merged
from jaxstate.errors import CheckpointError, FileError, quoted
from jaxstate.io import Opaque

_MODEL = "mp_rank_00_model_states.pt"
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_ANY = re.compile(r".*(mp_rank_\d\d|layer_\d\d).*_(model|optim)_states\.pt")
_SLICES, _BASE = "single_partition_of_fp32_groups", "base_optimizer_state"
_UNIVERSAL = "convert it with DeepSpeed's ds_to_universal.py"
_TOOL = "run `python zero_to_fp32.py . out` in the checkpoint's folder, and load what it writes"


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
    told = [*(_of_ranks(model, _states(ranks)) if ranks else _whole(model)), *_progress(model)]
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
        raise CheckpointError(f"a checkpoint of DeepSpeed's ZeRO stage 3 ({others[0]}); {_TOOL}")
    if others:
        raise CheckpointError(
            "a checkpoint of DeepSpeed, cut across ranks by model, pipeline or expert parallelism "
            f"({others[0]}); {_UNIVERSAL}"
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


def _states(ranks: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What ZeRO keeps on each rank, all of one stage below 3."""
    states = [rank["optimizer_state_dict"] for rank in ranks.values()]
    stages = {_stage(state.get("zero_stage")) for state in states}
    if not stages <= {1, 2}:
        stage = "bfloat16 optimizer without ZeRO" if 0 in stages else f"ZeRO stage {max(stages)}"
        raise CheckpointError(f"a checkpoint of DeepSpeed's {stage}; {_UNIVERSAL if 0 in stages else _TOOL}")
    counts = {count for state in states for count in _counts(state.get("partition_count"))}
    if counts - {len(states)}:
        raise CheckpointError(
            f"DeepSpeed cut this over {sorted(counts)} ranks, and the folder has {len(states)}"
        )
    return states


def _stage(value: Any) -> int:
    """The stage, which newer versions write as a member of an enum; 0 if there is none."""
    if isinstance(value, Opaque) and value.name.endswith("ZeroStageEnum") and len(value.args) == 1:
        value = value.args[0]
    return value if type(value) is int else 0


def _counts(value: Any) -> list[int]:
    return [
        int(count) for count in (value if isinstance(value, list | tuple) else [value]) if is_number(count)
    ]


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


def _of_ranks(model: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    groups = _groups(model.get("param_shapes"))
    slices = [_slices(state.get(_SLICES), len(groups)) for state in states]
    weights: dict[str, np.ndarray] = {}
    for i, shapes in enumerate(groups):
        weights |= merged([row[i] for row in slices], shapes, f"group {i} of the weights")
    yield Part("model", _SLICES, _with_weights(model, weights))
    yield Part("optimizer", _BASE, _optimizer([state.get(_BASE) for state in states], groups))


def _groups(shapes: Any) -> list[Shapes]:
    groups = shapes if isinstance(shapes, list) else [shapes]
    if not all(isinstance(group, Mapping) and all(map(_is_shape, group.values())) for group in groups):
        raise CheckpointError(f"{_MODEL} of DeepSpeed has no shapes of parameters under 'param_shapes'")
    return groups


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _slices(found: Any, count: int) -> Sequence[Any]:
    if not isinstance(found, list | tuple) or len(found) != count:
        raise CheckpointError(f"a rank of DeepSpeed does not have {count} groups under {_SLICES!r}")
    return found


def _with_weights(model: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """The model's state_dict in its own order, with the float32 weights; buffers and frozen ones stay."""
    module, shared = model["module"], model.get("shared_params")
    ties = shared if isinstance(shared, Mapping) else {}
    names = {key: key if key in weights else ties.get(key, key) for key in module}
    wrong = [key for key in weights if key not in module]
    wrong += [
        key for key, name in names.items() if name in weights and weights[name].shape != _shape(module[key])
    ]
    if wrong:
        raise CheckpointError(f"DeepSpeed's float32 weights do not fit its model: {quoted(wrong)}")
    made = OrderedDict((key, weights.get(name, module[key])) for key, name in names.items())
    vars(made).update(getattr(module, "__dict__", {}))
    return made


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _optimizer(bases: Sequence[Any], groups: Sequence[Shapes]) -> dict[str, Any]:
    """The state_dict by names, as js.optim reads it too."""
    if not all(is_optimizer(base) and len(base["param_groups"]) == len(groups) for base in bases):
        raise CheckpointError(
            f"DeepSpeed's optimizer states are of the elastic form, without groups of options; {_TOOL}"
        )
    state: dict[str, Any] = {}
    options = []
    for i, shapes in enumerate(groups):
        what, group = f"group {i} of the optimizer", bases[0]["param_groups"][i]
        entries = [_flat_entry(base, i, what) for base in bases]
        step = {} if "step" in entries[0] or "step" not in group else {"step": group["step"]}
        state |= _entries([{**step, **entry} for entry in entries], shapes, what)
        kept = {key: value for key, value in group.items() if key not in ("params", *step)}
        options.append({**kept, "params": list(shapes)})
    return {"state": state, "param_groups": options}


def _flat_entry(base: Mapping[str, Any], i: int, what: str) -> Mapping[str, Any]:
    """What a rank has for a group, which is one flat parameter; nothing before the first step."""
    ids = base["param_groups"][i]["params"]
    entry = base["state"].get(ids[0], {}) if len(ids) == 1 and isinstance(ids[0], int) else None
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{what}: a rank does not have one flat parameter")
    return entry


def _entries(entries: Sequence[Mapping[str, Any]], shapes: Shapes, what: str) -> dict[str, Any]:
    """The entry of each parameter. What is no slice is one number, which every parameter gets for itself."""
    made: dict[str, dict[str, Any]] = {name: {} for name in shapes} if entries[0] else {}
    for key in entries[0]:
        values: list[Any] = [entry.get(key) for entry in entries]
        if all(map(is_number, values)) and len({float(value) for value in values}) == 1:
            arrays: Mapping[str, Any] = {name: np.array(values[0], np.float32) for name in shapes}
        else:
            arrays = merged(values, shapes, f"{key} in {what}")
        for name, array in arrays.items():
            made[name][key] = array
    return made


def _progress(model: Mapping[str, Any]) -> Iterator[Part]:
    for role, key in (("step", "global_steps"), ("epoch", "epoch")):
        if is_number(model.get(key)):
            yield Part(role, f"{_MODEL}: {key}", model[key])
    if isinstance(model.get("lr_scheduler"), Mapping):
        yield Part("scheduler", f"{_MODEL}: lr_scheduler", model["lr_scheduler"])
