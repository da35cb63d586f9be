"""Bindings, state_dicts and losses as tables: text where it is printed, HTML in a notebook, drawn by rich.

Binding, Comparison, Alignment and Checkpoint show themselves; a state_dict is a plain dict and is shown here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jaxstate.binding import COLUMNS, Binding
from jaxstate.containers import Checkpoint
from jaxstate.containers._checkpoint import COLUMNS as PARTS
from jaxstate.errors import OptimizerError, quoted
from jaxstate.table import html_table, table


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under a head and a title.

    Args:
        title: stands above.
        head: the names of the columns.
        rows: as many cells each.
        notes: sentences that stand below.

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
    """An optimizer's state_dict: what it keeps for each id, then its groups with their options.

    Args:
        state_dict: torch's, or `js.optim.state_dict`'s.

    Raises:
        OptimizerError: what is no optimizer's state_dict, such as a module's.

    >>> osd = {"state": {0: {"step": 3.0}}, "param_groups": [{"lr": 0.5, "params": [0]}]}
    >>> print(optimizer_table(osd))
    optimizer's state_dict
    where            name    value
    ---------------  ------  -----
    state[0]         step    3.0
    param_groups[0]  lr      0.5
    param_groups[0]  params  [0]
    """
    if not {"state", "param_groups"} <= set(state_dict):
        found = quoted(map(str, list(state_dict)[:3])) or "nothing"
        raise OptimizerError(f'an optimizer\'s state_dict has "state" and "param_groups"; this has {found}')
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
    """A Binding: which leaf each torch key is, in which layout, and what it warns of.

    >>> from jaxstate.rules.rule import Rule
    >>> binding = Binding((Rule("fc.weight", "fc.kernel", "i o -> o i", shape=(2, 3)),))
    >>> str(binding_table(binding, "fc")).splitlines() == ["fc", *str(binding).splitlines()]
    True
    """
    notes = tuple(f"warning: {line}" for line in binding.warnings)
    return Table(title, COLUMNS, tuple(binding.rows), notes)


def checkpoint_table(checkpoint: Checkpoint, title: str = "") -> Table:
    """What a training tool wrote, part by part.

    Args:
        checkpoint: as `js.load_checkpoint` gives it.
        title: by default the tool's name.

    >>> import tempfile, numpy as np
    >>> from jaxstate.containers import load_checkpoint
    >>> from jaxstate.io import save
    >>> path = tempfile.mkdtemp() + "/last.pt"
    >>> save({"model": {"fc.weight": np.eye(2)}, "epoch": 7}, path)
    >>> [row[0] for row in checkpoint_table(load_checkpoint(path), "last").rows]
    ['model', 'epoch']
    """
    return _table(title or f"Checkpoint of {checkpoint.tool}", PARTS, checkpoint.rows)


def losses_table(
    theirs: Sequence[float], ours: Sequence[float], title: str = "Losses, step by step"
) -> Table:
    """torch's losses beside JAX's, and how far they are apart, by torch's.

    Args:
        theirs, ours: a number for each step.

    Raises:
        ValueError: more steps on one side.

    >>> print(losses_table([0.5, 0.25], [0.5, 0.375]))
    Losses, step by step
    step  torch      JAX        relative difference
    ----  ---------  ---------  -------------------
    0     0.5000000  0.5000000  0e+00
    1     0.2500000  0.3750000  5e-01
    """
    pairs = enumerate(zip(map(float, theirs), map(float, ours), strict=True))
    rows = [(str(n), f"{a:.7f}", f"{b:.7f}", f"{_relative(a, b):.0e}") for n, (a, b) in pairs]
    return _table(title, ("step", "torch", "JAX", "relative difference"), rows)


def _relative(theirs: float, ours: float) -> float:
    """How far a loss is from torch's, in units of torch's; a loss of 0 has none but 0."""
    if theirs == ours:
        return 0.0
    return abs(ours - theirs) / abs(theirs) if theirs else math.inf


def _size(value: Any) -> str:
    return f"torch.Size({list(value.shape)})" if hasattr(value, "shape") else repr(value)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(title, tuple(head), tuple(map(tuple, rows)))
