"""Rows of text in columns that line up: what a Binding or a state_dict prints as."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, two spaces between columns.

    >>> print(table(("key", "shape"), [("fc.weight", "(3, 2)"), ("fc.bias", "(3,)")]))
    key        shape
    ---------  ------
    fc.weight  (3, 2)
    fc.bias    (3,)
    """
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
