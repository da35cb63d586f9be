"""To torch: the dicts of torch's files from a checkpoint alone, without the program that made it.

The Binding says what torch calls each leaf and how it lies, the record of the optimizer's structure which
array is which moment. Nothing of the model's code is asked for.
"""

from pathlib import Path
from typing import Any

from jaxstate import optim
from jaxstate.convert import state_dict
from jaxstate.errors import CheckpointError
from jaxstate.optim.schedulers import state_dict as scheduler_state_dict
from jaxstate.orbax._lazily import lazy_moments
from jaxstate.orbax._record import Record
from jaxstate.orbax._restore import Restored, read_record, restore
from jaxstate.orbax._skeleton import filled, has_states
from jaxstate.orbax._state_dict import state_dict as lazy_state_dict


def to_torch(
    path: str | Path, *, optimizer: Any = None, label: Any = None, lazy: bool = False
) -> dict[str, Any]:
    """What torch would have saved: `{"model": ..., "optimizer": ..., "scheduler": ..., "step": ...}`.

    `js.save(js.orbax.to_torch(path), "net.pt")` is a file that `torch.load` reads; each part is what
    torch's `load_state_dict` takes. Of a binding that was made `like=` a torch file, the model comes back
    bit for bit, with its order, counters and `_metadata`.

    Args:
        path: what `save` wrote, or one step of a `Checkpointer`.
        optimizer: for a plain optax state the torch optimizer that it is: `js.optim.adamw(lr=..., ...)`.
        label: where the states are several optimizers, a key that leads to the one to write.
        lazy: True for LazyArrays, each of which is read when its values are asked for: `js.save` makes a file
            of any size of them with one array in memory after the other.

    Returns:
        the model; what else the checkpoint has, under its name; and `extra` beside them.

    Raises:
        CheckpointError: another program's checkpoint; a plain optax state without `optimizer`; an entry of
            `extra` that has the name of another.
        OptimizerError: a state that torch has no form for.

    >>> import tempfile, numpy as np
    >>> from jaxstate.binding import Binding, Rule
    >>> from jaxstate.orbax import save
    >>> path, binding = tempfile.mkdtemp() + "/c", Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> save(path, {"w": np.eye(2, 3)}, binding=binding, step=7)
    >>> made = to_torch(path)
    >>> made["step"], made["model"]["fc.weight"].shape
    (7, (3, 2))
    """
    record = read_record(path)
    plain = record.optimizer is not None and not has_states(record.optimizer)
    if plain and optimizer is None:
        raise CheckpointError(
            f"{path} has a plain optax state, which does not say its hyper-parameters; say which torch "
            "optimizer it is: to_torch(path, optimizer=js.optim.adamw(lr=..., ...))"
        )
    found = _lazily(Path(path).absolute(), record) if lazy else _wholly(path)
    parts = {
        "model": found.model,
        "optimizer": _optimizer(record, found.opt_state, optimizer, label, lazy),
        "scheduler": found.scheduler and scheduler_state_dict(found.scheduler),
        "step": found.step,
    }
    kept = {name: value for name, value in parts.items() if value is not None}
    if taken := sorted(set(kept) & set(found.extra or ())):
        raise CheckpointError(f"extra has entries {taken}, and so has the checkpoint itself")
    return {**kept, **(found.extra or {})}


def _wholly(path: str | Path) -> Restored:
    """All of a checkpoint, its model as torch's arrays."""
    found = restore(path)
    return found._replace(model=state_dict(found.model, found.binding))


def _lazily(path: Path, record: Record) -> Restored:
    """The same, in which arrays are lazy."""
    leaves = lazy_moments(path, "optimizer", record.leaves.get("optimizer", {}))
    opt_state = filled(record.optimizer, leaves, record.param_groups)
    model = lazy_state_dict(path)
    return Restored(model, opt_state, record.step, record.binding, record.scheduler, None, record.extra)


def _optimizer(record: Record, opt_state: Any, optimizer: Any, label: Any, lazy: bool) -> Any:
    if record.optimizer is None:
        return None
    asked = {"optimizer": optimizer, "label": label, "step": record.step, "lazy": lazy}
    return optim.state_dict(opt_state, record.binding, **asked)
