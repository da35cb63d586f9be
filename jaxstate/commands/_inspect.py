"""`jaxstate inspect PATH`: what a file or folder is, who wrote it, and all that it holds; nothing is run."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxstate.commands import _screen
from jaxstate.commands._entries import entries, is_array
from jaxstate.commands._source import PART, opened

HEAD = ("path", "shape", "dtype", "size", "tied to")
MANY = 40  # lines of other values that are shown where someone reads them


@dataclass(frozen=True)
class Array:
    """One array: its path, shape, dtype, bytes, and the path of the array whose memory it shares."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    tied_to: str | None


@dataclass(frozen=True)
class Group:
    """One of an optimizer's param_groups: how many parameters, and the options."""

    path: str
    parameters: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What stands at a path.

    Attributes:
        path, format, tool: where it is, what it is, and who wrote it.
        arrays: every array, in the file's order.
        groups: of every optimizer.
        values: whatever is no array, by path.
    """

    path: str
    format: str
    tool: str | None
    arrays: Sequence[Array]
    groups: Sequence[Group]
    values: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays; tied ones count once."""
        return sum(array.nbytes for array in self.arrays if array.tied_to is None)


def add_to(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "inspect",
        help="say what a file or folder is, who wrote it, and what it holds",
        epilog="example: jaxstate inspect epoch_14.ckpt --part model",
    )
    command.add_argument("path", metavar="PATH", help="a file or a folder")
    command.add_argument("--part", help=PART)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_run)


def _run(parsed: argparse.Namespace) -> int:
    found = inspected(parsed.path, parsed.part)
    if parsed.json:
        print(json.dumps({**asdict(found), "nbytes": found.nbytes}, indent=1))
    else:
        _print(found)
    return 0


def inspected(path: str, part: str | None = None) -> Inspection:
    """All that can be said of a path without reading its arrays."""
    source = opened(path, part)
    found = entries(source.content)
    groups = list(_groups(source.content, ""))
    inside = tuple(f"{group.path}/" for group in groups)
    others = {path: value for path, value in found.items() if not is_array(value)}
    values = {path: _short(value) for path, value in others.items() if not path.startswith(inside or ("\0",))}
    return Inspection(
        path,
        source.format,
        str(source.checkpoint.tool) if source.checkpoint else None,
        list(_arrays(found)),
        groups,
        values,
    )


def _arrays(found: Mapping[str, Any]) -> Iterator[Array]:
    first: dict[Any, str] = {}
    for path, array in found.items():
        if is_array(array):
            owner = first.setdefault(_memory(array, path), path)
            yield Array(
                path, tuple(array.shape), str(array.dtype), _nbytes(array), owner if owner != path else None
            )


def _memory(array: Any, path: str) -> Any:
    """What two arrays have in common if they are one: where they lie, and how."""
    if not isinstance(array, np.ndarray) or array.size == 0:
        return path
    return array.ctypes.data, array.shape, array.strides, array.dtype.str


def _nbytes(array: Any) -> int:
    return int(getattr(array, "nbytes", None) or getattr(getattr(array, "data", None), "nbytes", 0))


def _groups(content: Any, path: str) -> Iterator[Group]:
    if not isinstance(content, Mapping):
        return
    if isinstance(groups := content.get("param_groups"), list | tuple):
        yield from (_group(group, f"{path}param_groups/{n}") for n, group in enumerate(groups))
    for key, value in content.items():
        yield from _groups(value, f"{path}{key}/")


def _group(group: Mapping[str, Any], path: str) -> Group:
    options = {name: _plain(value) for name, value in group.items() if name not in ("params", "param_names")}
    return Group(path, len(group.get("params", ())), options)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _print(found: Inspection) -> None:
    total = f"{len(found.arrays)} arrays, {_screen.size(found.nbytes)}"
    print(f"{found.path}: {found.format}, {total}")
    print(f"written by {found.tool}\n" if found.tool else "which tool wrote it is not known\n")
    rows = [(a.path, str(a.shape), a.dtype, _screen.size(a.nbytes), a.tied_to or "") for a in found.arrays]
    _screen.print_table(HEAD, rows, numbers=("size",))
    for group in found.groups:
        options = ", ".join(f"{name} {value}" for name, value in group.options.items())
        print(f"\n{group.path}: {group.parameters} parameters, {options}")
    if found.values:
        _print_values(list(found.values.items()))


def _print_values(values: list[tuple[str, str]]) -> None:
    shown = values[:MANY] if sys.stdout.isatty() else values
    print()
    _screen.print_table(("path", "value"), shown)
    if len(values) > len(shown):
        print(f"and {len(values) - len(shown)} more; --json and a pipe list all")
