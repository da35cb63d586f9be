"""The state_dict of a module, an optimizer or a scheduler that was pickled whole, from the record of it.

`torch.save(model)` stores the attributes of every module, under the name of its class. torch's own
`state_dict` is a walk over three of them (`torch/nn/modules/module.py`, `_save_to_state_dict`), and needs no
class; what a class does beyond that walk cannot be known here, and is refused where it shows.
"""

from collections.abc import Iterator, Mapping

from jaxstate.errors import FileError

from ._machine import is_plain_key
from ._records import Opaque
from ._torchscript import collected


def state_dict_of(record: Opaque) -> dict:
    """What `state_dict()` gave of the module, optimizer or scheduler that a file holds as a whole object.

    Args:
        record: such as `jaxstate.load` gives for a file of `torch.save(model, path)`, or for a part of it.

    Returns:
        Of a module, its parameters and its persistent buffers in torch's order, without `_metadata`: the
        versions are in the classes. A class whose `state_dict` is its own, by an override that leaves no
        trace in its attributes, gives what the class of torch that it extends would. Of an optimizer,
        `{"state": ..., "param_groups": ...}` with torch's integer ids; of a scheduler, its attributes.

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
        raise FileError(
            f"a record of a pickled module, optimizer or scheduler is due, not a {type(record).__name__}"
        )
    state = record.state if type(record.state) is dict else {}
    if {"state", "param_groups", "defaults"} <= set(state):
        return _optimizer(record, state)
    if record.name.startswith("torch.optim.lr_scheduler."):
        return _scheduler(record, state)
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
    "torch.ao.",
    "torch.quantization.",
    "torch.nn.quantized.",
    "torch.nn.quantizable.",
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


def _optimizer(record: Opaque, attributes: Mapping) -> dict:
    """torch's `Optimizer.state_dict`: parameters become the numbers of their first appearance."""
    groups, state = attributes["param_groups"], attributes["state"]
    # torch makes it a defaultdict, whose keys are the parameters themselves: pairs of an inert record.
    pairs = state.items if isinstance(state, Opaque) else list(state.items()) if type(state) is dict else None
    if type(groups) is not list or pairs is None:
        raise FileError(f"{record.name[:200]} is not an optimizer as torch pickles it; {_RESAVE}")
    ids = _ids(groups)
    packed = [{**_options(group), "params": [ids[id(p)] for p in group["params"]]} for group in groups]
    return {"state": {_key(key, ids): value for key, value in pairs}, "param_groups": packed}


def _key(key: object, ids: Mapping[int, int]) -> object:
    """The number of a parameter; torch leaves other keys as they are."""
    if id(key) not in ids and not is_plain_key(key):
        raise FileError(f"the optimizer has state of a {type(key).__name__} that none of its groups names")
    return ids.get(id(key), key)


def _ids(groups: list) -> dict[int, int]:
    ids, start = {}, 0
    for group in groups:
        params = group.get("params") if type(group) is dict else None
        if type(params) is not list:
            raise FileError(f"a group of the optimizer without a list of parameters; {_RESAVE}")
        # As torch counts: one that stands in a group twice has the number of its last place there.
        ids |= {id(param): number for number, param in enumerate(params, start) if id(param) not in ids}
        start += len(params)
    return ids


def _options(group: Mapping) -> dict:
    return {key: value for key, value in group.items() if key != "params"}


_SCHEDULERS = frozenset(
    "StepLR MultiStepLR ConstantLR LinearLR ExponentialLR PolynomialLR CosineAnnealingLR ReduceLROnPlateau "
    "CosineAnnealingWarmRestarts OneCycleLR SequentialLR ChainedScheduler".split()
)
"""Those whose state_dict is their attributes; the others call functions of the user."""


def _scheduler(record: object, attributes: Mapping) -> dict:
    name = record.name.rpartition(".")[2] if isinstance(record, Opaque) else type(record).__name__
    if name not in _SCHEDULERS or not attributes:
        raise FileError(f"the scheduler {name[:200]} keeps functions in its state_dict; {_RESAVE}")
    kept = {key: value for key, value in attributes.items() if key not in ("optimizer", "_schedulers")}
    if "_schedulers" in attributes:
        kept["_schedulers"] = [_scheduler(part, part.state) for part in attributes["_schedulers"]]
    return kept
