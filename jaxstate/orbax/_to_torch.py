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
from jaxstate.orbax._restore import read_record, restore
from jaxstate.orbax._skeleton import has_states


def to_torch(path: str | Path, *, optimizer: Any = None, label: Any = None) -> dict[str, Any]:
    """What torch would have saved: `{"model": ..., "optimizer": ..., "scheduler": ..., "step": ...}`.

    `js.save(js.orbax.to_torch(path), "net.pt")` is a file that `torch.load` reads; each part is what
    torch's `load_state_dict` takes. Of a binding that was made `like=` a torch file, the model comes back
    bit for bit, with its order, counters and `_metadata`.

    Args:
        path: what `save` wrote, or one step of a `Checkpointer`.
        optimizer: for a plain optax state the torch optimizer that it is: `js.optim.adamw(lr=..., ...)`.
        label: where the states are several optimizers, a key that leads to the one to write.

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
    found = restore(path)
    parts = {
        "model": state_dict(found.model, found.binding),
        "optimizer": _optimizer(found, record.optimizer, optimizer, label),
        "scheduler": found.scheduler and scheduler_state_dict(found.scheduler),
        "step": found.step,
    }
    kept = {name: value for name, value in parts.items() if value is not None}
    if taken := sorted(set(kept) & set(found.extra or ())):
        raise CheckpointError(f"extra has entries {taken}, and so has the checkpoint itself")
    return {**kept, **(found.extra or {})}


def _optimizer(found: Any, bones: Any, optimizer: Any, label: Any) -> dict[str, Any] | None:
    if bones is None:
        return None
    return optim.state_dict(found.opt_state, found.binding, optimizer=optimizer, label=label, step=found.step)
