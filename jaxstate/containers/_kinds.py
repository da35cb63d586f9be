"""Kinds: what a value in a checkpoint is by its own structure, whatever name it goes by."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxstate.io import Global, Opaque

_SCALER = frozenset({"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"})


def is_state_dict(value: Any) -> bool:
    """True of a module's state_dict: text keys, and arrays but for the extra state that modules may add.

    >>> is_state_dict({"weight": np.zeros(2)}), is_state_dict({"lr": 0.1}), is_state_dict({})
    (True, False, False)
    """
    if not isinstance(value, Mapping) or is_optimizer(value):
        return False
    entries = [(key, item) for key, item in value.items() if not str(key).endswith("_extra_state")]
    return bool(entries) and all(isinstance(key, str) and is_tensor(item) for key, item in entries)


def is_tensor(value: Any) -> bool:
    """True of an array, and of what stands for a tensor that numpy cannot hold."""
    if isinstance(value, Opaque):
        return value.name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild"))
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_shard(value: Any) -> bool:
    """True of a `DTensor` or a `ShardedTensor`, of which a file has the part of one process."""
    names = (
        [arg.name for arg in (value.function, *value.args) if isinstance(arg, Global)]
        if isinstance(value, Opaque)
        else []
    )
    return any(name.endswith((".DTensor", ".ShardedTensor")) for name in names)


def is_optimizer(value: Any) -> bool:
    """True of an optimizer's state_dict, by ids, by names, or flat.

    >>> is_optimizer({"state": {}, "param_groups": []}), is_optimizer({"param_groups.fc.weight.lr": 0.1})
    (True, True)
    """
    if not isinstance(value, Mapping) or not value:
        return False
    groups = value.get("param_groups")
    if isinstance(value.get("state"), Mapping) and isinstance(groups, list | tuple):
        return all(map(_is_group, groups))
    return is_flat_optimizer(value)


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("params"), list | tuple)


def is_flat_optimizer(value: Mapping[Any, Any]) -> bool:
    """True of the form in which `torch.distributed.checkpoint` stores one: a key for each number."""
    flat = all(isinstance(key, str) and key.startswith(("state.", "param_groups.")) for key in value)
    return flat and any(key.startswith("param_groups.") for key in value)


def is_scheduler(value: Any) -> bool:
    """True of what torch's learning rate schedulers write: all of them count epochs."""
    return isinstance(value, Mapping) and "last_epoch" in value


def is_scaler(value: Any) -> bool:
    """True of what `torch.amp.GradScaler` writes."""
    return isinstance(value, Mapping) and _SCALER <= set(value)


def is_averaged(value: Any) -> bool:
    """True of what `torch.optim.swa_utils.AveragedModel` writes."""
    if not (isinstance(value, Mapping) and "n_averaged" in value and len(value) > 1):
        return False
    return all(isinstance(key, str) and (key == "n_averaged" or key.startswith("module.")) for key in value)


def is_number(value: Any) -> bool:
    """True of a count: a number, or an array of one.

    >>> is_number(3), is_number(np.int64(3)), is_number(True), is_number("3")
    (True, True, False, False)
    """
    if isinstance(value, bool | np.bool_):
        return False
    array = isinstance(value, np.ndarray | np.generic) and value.shape == () and value.dtype.kind in "iuf"
    return array or isinstance(value, int | float)


def is_namespace(value: Any) -> bool:
    """True of `argparse.Namespace`, in which scripts keep their arguments."""
    return isinstance(value, Opaque) and value.name == "argparse.Namespace"
