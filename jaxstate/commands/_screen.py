"""How tables, sizes and progress stand on a screen, in a narrow one, and in a pipe."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

PIPE = 1 << 16  # columns: what goes to another program is never folded or cut

Rows = Sequence[Sequence[str]]


def screen() -> Console:
    """Where results go: as wide as the terminal is; in a pipe as wide as the lines are."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPE)


def rows_table(head: Sequence[str], rows: Rows, title: str | None = None, numbers: Sequence[str] = ()) -> Table:
    """Rows under a head, without a frame; a cell that is too long for the terminal is folded, never cut."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name in numbers else "left", header_style="dim")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def progress() -> Progress:
    """A bar with bytes, rate and time left, on stderr, and only where someone looks at it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def size(count: float) -> str:
    """A number of bytes as people say it.

    >>> size(999), size(1234), size(3.2e9)
    ('999 B', '1.2 kB', '3.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
