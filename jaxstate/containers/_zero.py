"""ZeRO-1 and 2: the weights in float32 and the state of the optimizer, joined from what the ranks hold.

The weights of the module's own file are of 16 bits. The ids in the files are those of flat groups, so the
optimizer is given by the names of its parameters, as `torch.distributed.checkpoint` has it.

https://github.com/deepspeedai/DeepSpeed (deepspeed/runtime/zero/stage_1_and_2.py, utils/zero_to_fp32.py)
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np

from jaxstate.containers._kinds import is_number, is_optimizer
from jaxstate.containers._roles import Part
from jaxstate.containers._slices import Shapes, merged
from jaxstate.errors import CheckpointError, quoted
from jaxstate.io import Opaque

_SLICES, _BASE = "single_partition_of_fp32_groups", "base_optimizer_state"
UNIVERSAL = "convert it with DeepSpeed's ds_to_universal.py"
TO_FP32 = "run `python zero_to_fp32.py . out` in the checkpoint's folder, and load what it writes"


def joined(model: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """The model and its optimizer.

    Args:
        model: what `mp_rank_00_model_states.pt` holds.
        ranks: what the files of the optimizer states hold, from rank 0 on.

    Raises:
        CheckpointError: stage 3, ranks that are missing, slices that do not fit the shapes.
    """
    states, groups = _states(ranks), _groups(model.get("param_shapes"))
    slices = [_slices(state.get(_SLICES), len(groups)) for state in states]
    weights: dict[str, np.ndarray] = {}
    for i, shapes in enumerate(groups):
        weights |= merged([row[i] for row in slices], shapes, f"group {i} of the weights")
    yield Part("model", _SLICES, _with_weights(model, weights))
    yield Part("optimizer", _BASE, _optimizer([state.get(_BASE) for state in states], groups))


def _groups(shapes: Any) -> list[Shapes]:
    groups = shapes if isinstance(shapes, list) else [shapes]
    if not all(isinstance(group, Mapping) and all(map(_is_shape, group.values())) for group in groups):
        raise CheckpointError("DeepSpeed's model has no shapes of parameters under 'param_shapes'")
    return groups


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _slices(found: Any, count: int) -> Sequence[Any]:
    if not isinstance(found, list | tuple) or len(found) != count:
        raise CheckpointError(f"a rank of DeepSpeed does not have {count} groups under {_SLICES!r}")
    return found


def _with_weights(model: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """The model's state_dict in its own order, with the float32 weights; buffers and frozen ones stay."""
    module, names = model["module"], _names(model)
    wrong = [key for key in weights if key not in module]
    wrong += [k for k, name in names.items() if name in weights and weights[name].shape != _shape(module[k])]
    kept = {*weights, *_kept(model)}
    loose = [key for key, name in names.items() if name not in kept]
    if wrong or loose:
        raise CheckpointError(
            f"DeepSpeed's float32 weights do not fit its model: {quoted(wrong)}"
            if wrong
            else f"DeepSpeed has these in 16 bits only, and not as buffers, frozen or shared: {quoted(loose)}"
        )
    made = OrderedDict((key, weights.get(name, module[key])) for key, name in names.items())
    vars(made).update(getattr(module, "__dict__", {}))
    return made


def _names(model: Mapping[str, Any]) -> dict[str, Any]:
    """The name under which a key's weights are: its own, or that of the parameter it is tied to."""
    shared = model.get("shared_params")
    pairs = shared.items() if isinstance(shared, Mapping) else ()
    ties = {key: name for key, name in pairs if isinstance(name, str)}
    return {key: ties.get(key, key) for key in model["module"]}


def _kept(model: Mapping[str, Any]) -> set[str]:
    """The keys that have no float32 weights of their own: buffers, and parameters that are not trained."""
    frozen, buffers = model.get("frozen_param_shapes"), model.get("buffer_names")
    rows = [frozen if isinstance(frozen, Mapping) else (), buffers if isinstance(buffers, list) else ()]
    return {name for row in rows for name in row if isinstance(name, str)}


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _optimizer(bases: Sequence[Any], groups: Sequence[Shapes]) -> dict[str, Any]:
    """The state_dict by names, as js.optim reads it too."""
    if not all(is_optimizer(base) and len(base["param_groups"]) == len(groups) for base in bases):
        raise CheckpointError(
            f"DeepSpeed's optimizer states are of the elastic form, without groups of options; {TO_FP32}"
        )
    state: dict[str, Any] = {}
    options = []
    for i, shapes in enumerate(groups):
        what, rows = f"group {i} of the optimizer", [base["param_groups"][i] for base in bases]
        entries = [_flat_entry(base["state"], row, what) for base, row in zip(bases, rows, strict=True)]
        _check_ranks(entries, rows, what)
        state |= _entries(entries, shapes, what)
        fused = "step" in rows[0] and "step" in entries[0]
        gone = ("params", "step") if fused else ("params",)
        kept = {key: value for key, value in rows[0].items() if key not in gone}
        options.append({**kept, "params": list(shapes)})
    return {"state": state, "param_groups": options}


def _flat_entry(state: Mapping[Any, Any], group: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """What a rank has for a group, which is one flat parameter; nothing before the first step.

    FusedAdam counts in the group, where torch counts in the entry.
    """
    ids = group["params"]
    entry = state.get(ids[0], {}) if len(ids) == 1 and isinstance(ids[0], int) else None
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{what}: a rank does not have one flat parameter")
    return {"step": group["step"], **entry} if entry and "step" in group else entry


def _check_ranks(entries: Sequence[Mapping], groups: Sequence[Mapping], what: str) -> None:
    """Raises CheckpointError for ranks that keep other things, or learn at another rate."""
    apart = [
        key
        for key in dict.fromkeys(key for row in (*entries, *groups) for key in row if key != "params")
        if len({key in entry for entry in entries}) > 1 or not _same([group.get(key) for group in groups])
    ]
    if apart:
        raise CheckpointError(f"{what}: the ranks disagree in {quoted(map(str, apart))}")


def _same(options: Sequence[Any]) -> bool:
    """False for numbers that differ; what is no plain value is not compared."""
    plain = all(
        isinstance(value, bool | int | float | str | tuple | list | np.ndarray | NoneType)
        for value in options
    )
    return not plain or all(np.array_equal(value, options[0]) for value in options)


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


def _states(ranks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What ZeRO keeps on each rank, all of one stage below 3."""
    states = [rank["optimizer_state_dict"] for rank in ranks]
    stages = {_stage(state.get("zero_stage")) for state in states}
    if not stages <= {1, 2}:
        stage = "bfloat16 optimizer without ZeRO" if 0 in stages else f"ZeRO stage {max(stages)}"
        raise CheckpointError(f"a checkpoint of DeepSpeed's {stage}; {UNIVERSAL if 0 in stages else TO_FP32}")
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
