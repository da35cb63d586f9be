"""`jaxstate diff A B`: where two checkpoints, of any formats, differ, and how far their values are apart."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jaxstate.arrays.differences import Difference, difference
from jaxstate.commands import _screen
from jaxstate.commands._entries import entries, is_array
from jaxstate.commands._source import opened
from jaxstate.io import Raw

HEAD = ("path", "what", "max abs", "max rel", "ulps", "where")


@dataclass(frozen=True)
class Line:
    """One path that is not the same in both.

    Attributes:
        path: of the array or value.
        what: in words.
        values: how far the values are apart, where they can be compared.
    """

    path: str
    what: str
    values: Difference | None = None


def add_to(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "diff",
        help="compare keys, shapes, dtypes and values of two checkpoints, across formats",
        description="Exit status 0 if nothing differs, 1 if something does, 2 if one cannot be read.",
        epilog="example: jaxstate diff net.pt model.safetensors --part model --atol 1e-6",
    )
    command.add_argument("a", metavar="A", help="a file or a folder")
    command.add_argument("b", metavar="B", help="another")
    command.add_argument("--part", help="compare only this part of both, such as model or optimizer")
    command.add_argument(
        "--keys", metavar="PATTERN", default="*", help="only these paths, such as 'encoder.*'"
    )
    command.add_argument("--atol", type=float, default=0.0, help="values this far apart are the same")
    command.add_argument("--rtol", type=float, default=0.0, help="or this far, relative to the larger one")
    command.add_argument("--ulps", type=int, default=0, help="or this many units in the last place")
    command.add_argument("--ignore-dtype", action="store_true", help="compare values across dtypes")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_run)


def _run(parsed: argparse.Namespace) -> int:
    a, b = (_chosen(entries(opened(path, parsed.part).content), parsed.keys) for path in (parsed.a, parsed.b))
    total = sum(value.nbytes for value in a.values() if isinstance(value, np.ndarray))
    with _screen.progress() as bar:
        task = bar.add_task("comparing", total=total)
        lines = list(differing(a, b, _tolerance(parsed), parsed.ignore_dtype, lambda n: bar.advance(task, n)))
    _print_json(parsed, lines) if parsed.json else _print(a, b, lines)
    return 1 if lines else 0


def differing(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    tolerated: Callable[[Difference], bool],
    ignore_dtype: bool = False,
    read: Callable[[int], Any] = lambda count: None,
) -> Iterator[Line]:
    """Every path that is not the same on both sides: in A's order, then what only B has.

    Args:
        a, b: arrays and other values by path.
        tolerated: whether values that differ so much count as the same.
        ignore_dtype: compare arrays of two dtypes as values.
        read: told the bytes of each array that was compared.
    """
    for path, value in a.items():
        if path not in b:
            yield Line(path, f"only in A: {_say(value)}")
            continue
        yield from _line(path, value, b[path], tolerated, ignore_dtype)
        read(getattr(value, "nbytes", 0))
    yield from (Line(path, f"only in B: {_say(value)}") for path, value in b.items() if path not in a)


def _line(path: str, a: Any, b: Any, tolerated: Any, ignore_dtype: bool) -> Iterator[Line]:
    if not (is_array(a) and is_array(b)):
        if is_array(a) or is_array(b) or not _same_value(a, b):
            yield Line(path, f"{_say(a)} against {_say(b)}")
    elif tuple(a.shape) != tuple(b.shape) or (a.dtype != b.dtype and not ignore_dtype):
        yield Line(path, f"{_say(a)} against {_say(b)}", _values(a, b) if a.shape == b.shape else None)
    elif (values := _values(a, b)) and not tolerated(values):
        yield Line(path, f"{values.count} of {_elements(a)} values differ", values)


def _values(a: Any, b: Any) -> Difference | None:
    if isinstance(a, Raw) or isinstance(b, Raw):  # numpy cannot compute with these: their bytes are compared
        same = isinstance(a, Raw) and isinstance(b, Raw) and a.dtype == b.dtype
        return difference(a.data, b.data)._replace(max_ulps=None) if same else None
    return difference(np.asarray(a), np.asarray(b))


def _same_value(a: Any, b: Any) -> bool:
    plain = (type(None), bool, int, float, complex, str, bytes)
    if isinstance(a, plain) and isinstance(b, plain):
        return type(a) is type(b) and (a == b or (a != a and b != b))
    return type(a) is type(b) and repr(a) == repr(b)


def _tolerance(parsed: argparse.Namespace) -> Callable[[Difference], bool]:
    def tolerated(found: Difference) -> bool:
        near = found.max_abs <= parsed.atol or found.max_rel <= parsed.rtol
        return near or (found.max_ulps is not None and found.max_ulps <= parsed.ulps)

    return tolerated


def _chosen(found: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    return {path: value for path, value in found.items() if fnmatchcase(path, pattern)}


def _elements(array: Any) -> int:
    return int(np.prod(array.shape, dtype=int))


def _say(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if is_array(value) else repr(value)[:60]


def _print(a: Mapping[str, Any], b: Mapping[str, Any], lines: list[Line]) -> None:
    rows = [(line.path, line.what, *_cells(line.values)) for line in lines]
    if rows:
        _screen.print_table(HEAD, rows, numbers=HEAD[2:5])
    common = len(a.keys() & b.keys())
    print(f"{len(lines)} of {len(a.keys() | b.keys())} differ, {common} are in both")


def _cells(values: Difference | None) -> tuple[str, ...]:
    if values is None:
        return ("", "", "", "")
    ulps = "" if values.max_ulps is None else str(values.max_ulps)
    return f"{values.max_abs:.3g}", f"{values.max_rel:.3g}", ulps, str(values.where) if values else ""


def _print_json(parsed: argparse.Namespace, lines: list[Line]) -> None:
    found = [{"path": line.path, "what": line.what, **_numbers(line.values)} for line in lines]
    print(json.dumps({"a": parsed.a, "b": parsed.b, "same": not lines, "differing": found}, indent=1))


def _numbers(values: Difference | None) -> dict[str, Any]:
    """The figures; JSON has no infinity, so that it stands there as text."""
    figures = values._asdict() if values is not None else {}
    return {name: str(v) if v in (float("inf"),) else v for name, v in figures.items()}
