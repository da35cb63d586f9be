"""Bindings, state_dicts and losses as tables that rich draws, in a terminal and in a notebook."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from jaxstate.binding import COLUMNS, Binding
from jaxstate.containers import Checkpoint
from jaxstate.containers._checkpoint import COLUMNS as PARTS


def state_dict_table(state_dict: Mapping[str, Any], title: str = "state_dict") -> Table:
    """A module's state_dict, as PyTorch's recipe prints it: every key with its size."""
    rows = [(key, f"torch.Size({list(array.shape)})", str(array.dtype)) for key, array in state_dict.items()]
    return _table(title, ("key", "size", "dtype"), rows)


def optimizer_table(state_dict: Mapping[str, Any], title: str = "optimizer's state_dict") -> Table:
    """An optimizer's state_dict: what it keeps for each id, then its groups with their options."""
    rows = [
        (
            f"state[{number}]",
            name,
            f"torch.Size({list(value.shape)})" if hasattr(value, "shape") else repr(value),
        )
        for number, entries in state_dict["state"].items()
        for name, value in entries.items()
    ]
    options = [
        (f"param_groups[{n}]", name, repr(value))
        for n, group in enumerate(state_dict["param_groups"])
        for name, value in group.items()
    ]
    return _table(title, ("where", "name", "value"), rows + options)


def binding_table(binding: Binding, title: str = "Binding") -> Table:
    """A Binding: which leaf each torch key is, and in which layout."""
    return _table(title, COLUMNS, binding.rows)


def checkpoint_table(checkpoint: Checkpoint, title: str = "") -> Table:
    """What a training tool wrote, part by part."""
    return _table(title or f"Checkpoint of {checkpoint.tool}", PARTS, checkpoint.rows)


def losses_table(
    theirs: Sequence[float], ours: Sequence[float], title: str = "Losses, step by step"
) -> Table:
    """torch's losses beside JAX's, and how far they are apart."""
    pairs = enumerate(zip(theirs, ours, strict=True))
    rows = [(str(n), f"{a:.7f}", f"{b:.7f}", f"{abs(b / a - 1):.0e}") for n, (a, b) in pairs]
    return _table(title, ("step", "torch", "JAX", "relative difference"), rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*head, title=title, title_justify="left", title_style="bold", expand=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
