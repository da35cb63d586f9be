"""State_dict: the weights of a checkpoint under torch's names, read from the disk when they are asked for."""

from pathlib import Path
from typing import Any

from jaxstate.convert import with_metadata
from jaxstate.errors import CheckpointError
from jaxstate.orbax._items import MODEL
from jaxstate.orbax._lazily import lazy_leaf
from jaxstate.orbax._restore import read_record


def state_dict(path: str | Path) -> dict[str, Any]:
    """torch's state_dict of a checkpoint's model, of which an array is read when its values are asked for.

    It equals `to_torch(path)["model"]`, and `js.save` writes it with one array in memory after the other.

    Args:
        path: what `save` wrote, or one step of a `Checkpointer`.

    Raises:
        CheckpointError: another program's checkpoint; and, when it is read, a leaf that the disk has damaged.

    >>> import tempfile, numpy as np
    >>> from jaxstate.binding import Binding, Rule
    >>> from jaxstate.orbax import save
    >>> path, binding = tempfile.mkdtemp() + "/c", Binding((Rule("fc.weight", "w", "i o -> o i"),))
    >>> save(path, {"w": np.arange(6.0).reshape(3, 2)}, binding=binding)
    >>> lazy = state_dict(path)["fc.weight"]
    >>> lazy.shape, lazy[1].tolist()
    ((2, 3), [1.0, 3.0, 5.0])
    """
    record = read_record(path)
    rows = [(item, record.leaves.get(item, {})) for item in MODEL[:2]]
    leaves = {
        p: lazy_leaf(Path(path).absolute(), f"{item}/{p}", leaf)
        for item, row in rows
        for p, leaf in row.items()
    }
    binding = record.binding if set(leaves) == set(record.binding.paths) else record.binding.of_parameters()
    if refused := [line for rule in binding.rules for line in rule.refused_leaves(leaves)]:
        raise CheckpointError("torch cannot hold these leaves:\n\t" + "\n\t".join(refused))
    return with_metadata(binding.lazy_state_dict(leaves), None, binding, "")
