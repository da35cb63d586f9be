"""The state_dict of a module or an optimizer that was pickled whole, from the record of it.

`torch.save(model)` stores the attributes of every module, under the name of its class. torch's own
`state_dict` is a walk over three of them (`torch/nn/modules/module.py`, `_save_to_state_dict`), and needs no
class; what a class does beyond that walk cannot be known here, and is refused where it shows.
"""

from collections.abc import Iterator, Mapping

from jaxstate.errors import FileError

from ._records import Opaque
from ._torchscript import collected


def state_dict_of(record: Opaque) -> dict:
    """What `state_dict()` of the module or optimizer gave, which a file holds as a whole object.

    Args:
        record: such as `jaxstate.load` gives for a file of `torch.save(model, path)`, or for a part of it.

    Returns:
        Of a module, its parameters and its persistent buffers, in torch's order, without `_metadata`: the
        versions are in the classes. Of an optimizer, `{"state": ..., "param_groups": ...}` with torch's
        integer ids.

    Raises:
        FileError: not such a record; or an object that computes its state_dict in a way of its own.

    >>> from jaxstate.io import Global
    >>> empty = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    >>> linear = Opaque(Global("m", "Linear"), state={**empty, "_parameters": {"weight": 1}})
    >>> net = Opaque(Global("m", "Net"), state={**empty, "_modules": {"fc": linear}})
    >>> dict(state_dict_of(net))
    {'fc.weight': 1}
    """
    if not isinstance(record, Opaque):
        raise FileError(f"a record of a pickled module or optimizer is due, not a {type(record).__name__}")
    if _is_optimizer(record):
        return _optimizer(record)
    return collected(_module(record, ""))


_TABLES = ("_parameters", "_buffers", "_modules")


def _module(module: object, prefix: str) -> Iterator[tuple[str, object]]:
    state = _checked(module, prefix)
    transient = _names(state.get("_non_persistent_buffers_set"), prefix)
    for name, value in state["_parameters"].items():
        if value is not None:
            yield prefix + name, value
    for name, value in state["_buffers"].items():
        if value is not None and name not in transient:
            yield prefix + name, value
    for name, value in state["_modules"].items():
        if value is not None:
            yield from _module(value, f"{prefix}{name}.")


def _checked(module: object, prefix: str) -> Mapping:
    """The attributes of a module, if torch's own walk is all that its state_dict can be."""
    state = module.state if isinstance(module, Opaque) else None
    where = f"module {prefix[:-1]!r}" if prefix else "the record"
    if not isinstance(module, Opaque) or type(state) is not dict:
        kind = module.name if isinstance(module, Opaque) else type(module).__name__
        raise FileError(f"{where} ({kind[:200]}) is not a module with its attributes; {_RESAVE}")
    tables = [state.get(name) for name in _TABLES]
    if not all(isinstance(t, dict) and all(type(name) is str for name in t) for t in tables):
        raise FileError(f"{where} ({module.name[:200]}) lacks one of {', '.join(_TABLES)}; {_RESAVE}")
    hooks = [name for name in ("_state_dict_hooks", "_state_dict_pre_hooks") if state.get(name)]
    if hooks or module.name.startswith(_COMPUTED):
        raise FileError(
            f"{where} ({module.name[:200]}) computes its state_dict by code of its own, which is not run; "
            f"{_RESAVE}"
        )
    return state


_RESAVE = (
    "where you trust the file, save the state_dict of `torch.load(path, weights_only=False)` with torch.save"
)
_COMPUTED = (
    "torch.ao.nn.",
    "torch.nn.quantized.",
    "torch.nn.intrinsic.",
    "torch.nn.qat.",
    "torch.distributed.fsdp.",
    "torch.jit.",
    "torch.fx.",
)
"""torch's own classes that override `state_dict` or keep weights outside of the three tables."""


def _names(value: object, prefix: str) -> frozenset | set:
    """The names of the buffers that are not saved; torch before 1.6 had none such."""
    if value is None:
        return frozenset()
    if not isinstance(value, (set, frozenset)):
        raise FileError(f"module {prefix[:-1]!r} has `_non_persistent_buffers_set` that is no set")
    return value


def _is_optimizer(record: Opaque) -> bool:
    state = record.state
    return type(state) is dict and {"state", "param_groups", "defaults"} <= set(state)


def _optimizer(record: Opaque) -> dict:
    """torch's `Optimizer.state_dict`: parameters become the numbers of their first appearance."""
    groups, ids = record.state["param_groups"], {}  # pyright: ignore
    packed = [_packed(group, ids) for group in groups] if type(groups) is list else None
    state = record.state["state"]  # pyright: ignore
    pairs = state.items if isinstance(state, Opaque) else list(state.items()) if type(state) is dict else None
    if packed is None or pairs is None:
        raise FileError(f"{record.name[:200]} is not an optimizer as torch pickles it; {_RESAVE}")
    return {"state": {ids.get(id(key), key): value for key, value in pairs}, "param_groups": packed}


def _packed(group: object, ids: dict[int, int]) -> dict:
    params = group.get("params") if type(group) is dict else None
    if type(group) is not dict or type(params) is not list:
        raise FileError(f"a group of the optimizer without a list of parameters; {_RESAVE}")
    for param in params:
        ids.setdefault(id(param), len(ids))
    return {**{k: v for k, v in group.items() if k != "params"}, "params": [ids[id(p)] for p in params]}
