"""Bindings, state_dicts and losses as tables: text where it is printed, HTML in a notebook, drawn by rich.

Binding, Comparison, Alignment and Checkpoint show themselves; a state_dict is a plain dict and is shown here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jaxstate.binding import COLUMNS, Binding
from jaxstate.containers import Checkpoint
from jaxstate.containers._checkpoint import COLUMNS as PARTS
from jaxstate.table import html_table, table


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under a head and a title.

    >>> print(Table("sizes", ("key", "size"), (("fc.bias", "(3,)"),)))
    sizes
    key      size
    -------  ----
    fc.bias  (3,)
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.title}\n{table(self.head, self.rows, self.notes)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.title)}</b></p>{html_table(self.head, self.rows, self.notes)}"

    def __rich__(self) -> Any:
        from rich.markup import escape as plain  # imported by those who draw with rich
        from rich.table import Table as Drawn

        options: Any = dict(title_justify="left", title_style="bold", caption_justify="left", expand=False)
        drawn = Drawn(*self.head, title=self.title, caption=plain("\n".join(self.notes)) or None, **options)
        for row in self.rows:
            drawn.add_row(*map(plain, row))
        return drawn


def state_dict_table(state_dict: Mapping[str, Any], title: str = "state_dict") -> Table:
    """A module's state_dict, as PyTorch's recipe prints it: every key with its size.

    Args:
        state_dict: arrays or tensors by torch's keys; what is no array is shown as it prints.

    >>> import numpy as np
    >>> print(state_dict_table({"fc.bias": np.zeros(3, "float32")}))
    state_dict
    key      size             dtype
    -------  ---------------  -------
    fc.bias  torch.Size([3])  float32
    """
    rows = [(key, _size(value), str(getattr(value, "dtype", ""))) for key, value in state_dict.items()]
    return _table(title, ("key", "size", "dtype"), rows)


def optimizer_table(state_dict: Mapping[str, Any], title: str = "optimizer's state_dict") -> Table:
    """An optimizer's state_dict: what it keeps for each id, then its groups with their options."""
    rows = [
        (f"state[{number}]", name, _size(value))
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
    """A Binding: which leaf each torch key is, in which layout, and what it warns of."""
    notes = tuple(f"warning: {line}" for line in binding.warnings)
    return Table(title, COLUMNS, tuple(binding.rows), notes)


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


def _size(value: Any) -> str:
    return f"torch.Size({list(value.shape)})" if hasattr(value, "shape") else repr(value)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(title, tuple(head), tuple(map(tuple, rows)))
