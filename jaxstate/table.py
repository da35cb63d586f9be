"""Rows of text in columns that line up, or as HTML: what a Binding shows itself as."""

from collections.abc import Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Rows under a head, two spaces between columns; notes are lines below.

    >>> print(table(("key", "shape"), [("fc.weight", "(3, 2)"), ("fc.bias", "(3,)")]))
    key        shape
    ---------  ------
    fc.weight  (3, 2)
    fc.bias    (3,)
    """
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    text = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([*text, *notes])


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """The same rows and notes for a notebook; what they hold is text and never markup.

    >>> html_table(("key",), [("a<b",)])
    '<table><tr><th>key</th></tr><tr><td><code>a&lt;b</code></td></tr></table>'
    """
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td><code>{escape(cell)}</code></td>" for cell in row) for row in rows]
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>" + below
