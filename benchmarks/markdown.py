"""The tables in a page of text: behind a line `<!-- import -->` stands what the row `import` gave last."""

import re

END = "<!-- end -->"


def lines(table):
    """A table as text: seconds, ratios to its first line, and memory in bytes of the data."""
    if "text" in table:
        return table["text"].strip().splitlines()
    rows, size = table["rows"], table["bytes"]
    title = f"{table['table']}, {size / 1e6:.0f} MB" if size else table["table"]
    head = f"{'':24}{'s':>8}{'CPU s':>8}{'x':>9}{'CPU x':>9}{'median':>9}" + f"{'anon':>8}" * bool(size)
    floor = next((row for row in rows.values() if "cpu" in row), {})
    return [title, head, *(_line(name.removeprefix("peer_"), row, floor, size) for name, row in rows.items())]


def _line(name, row, floor, size):
    if "cpu" not in row:
        return f"{name:24}  - {row['skipped'][:80]}"
    ratios = [f"{row[key] / max(floor[key], 1e-9):9.2f}" for key in ("wall", "cpu", "median")]
    memory = f"{row['anon'] / size:8.2f}" if size else ""
    return f"{name:24}{row['wall']:8.3f}{row['cpu']:8.3f}{''.join(ratios)}{memory}"


def replaced(page, name, tables):
    """The page with these tables in the place of those that it has of a row.

    >>> page = "<!-- open -->\\nold\\n<!-- end -->\\n"
    >>> print(replaced(page, "open", [{"text": "new"}]), end="")
    <!-- open -->
    ```
    new
    ```
    <!-- end -->
    """
    text = "\n\n".join("\n".join(lines(table)) for table in tables)
    mark = f"<!-- {name} -->"
    pattern = re.compile(rf"{re.escape(mark)}\n.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{mark}\n```\n{text}\n```\n{END}", page)
