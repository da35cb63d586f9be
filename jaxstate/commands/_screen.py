"""How tables, sizes and progress stand on a screen, in a narrow one, and in a pipe."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from jaxstate.table import table

Rows = Sequence[Sequence[str]]


def print_table(head: Sequence[str], rows: Rows, numbers: Sequence[str] = ()) -> None:
    """Rows under a head: folded where the terminal is too narrow, never cut; in a pipe as wide as it is."""
    if not sys.stdout.isatty():
        print(table(head, rows))
        return
    drawn = Table(box=None, pad_edge=False)
    for name in head:
        justify = "right" if name in numbers else "left"
        drawn.add_column(name, overflow="fold", justify=justify, header_style="dim")
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    Console(highlight=False).print(drawn)


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
