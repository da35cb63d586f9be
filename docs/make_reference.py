"""Write docs/reference, a page for each public room, from docstrings: `python docs/make_reference.py`.

Signatures are taken from the source, so that the pages are the same in every version of Python.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "reference"
ROOMS = (
    *("jaxstate", "jaxstate.optim", "jaxstate.optim.schedulers", "jaxstate.optim.grad_scaler"),
    *("jaxstate.averaging", "jaxstate.orbax", "jaxstate.testing", "jaxstate.containers", "jaxstate.sharded"),
    *("jaxstate.io", "jaxstate.display"),
)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|See also):$")
WIDTH = 100


def pages() -> dict[str, str]:
    """The text of every page by its file's name."""
    found = {f"{room}.md": page(importlib.import_module(room)) for room in ROOMS}
    rows = [f"- [`{room}`]({room}.md): {_first_line(importlib.import_module(room))}" for room in ROOMS]
    index = "# Reference\n\nMade from the docstrings by `python docs/make_reference.py`.\n\n"
    return {"README.md": index + "\n".join(rows) + "\n", **found}


def page(module: Any) -> str:
    """One room: what its docstring says, and all that it offers, in the order of its index."""
    entries = "\n".join(entry(name, thing) for name, thing in public(module).items())
    return f"# {module.__name__}\n\n{markdown(inspect.getdoc(module) or '')}\n\n{entries}"


def public(module: Any) -> dict[str, Any]:
    """The functions and classes that an index names, or that a file itself defines."""
    tree = ast.parse(inspect.getsource(module))
    named = [a.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names]
    own = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    own = [name for name in own if not name.startswith("_")]
    names = [name for name in (own or named) if name and not name.startswith("_")]
    return {n: getattr(module, n) for n in names if callable(getattr(module, n))}


def entry(name: str, thing: Any) -> str:
    """A function, or a class with its public methods."""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    text = f"## {name}\n\n{_signature(name, node)}\n{markdown(ast.get_docstring(node) or '')}\n"
    return text + "".join(_methods(name, node))


def _methods(owner: str, node: ast.AST) -> Iterator[str]:
    for method in getattr(node, "body", ()) if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            said = markdown(ast.get_docstring(method) or "")
            is_property = any("property" in ast.unparse(d) for d in method.decorator_list)
            shown = "" if is_property else _signature(method.name, method) + "\n"
            yield f"\n### {owner}.{method.name}\n\n{shown}{said}\n"


def _signature(name: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.FunctionDef):
        parts, end = list(_parameters(node.args)), f" -> {ast.unparse(node.returns)}" if node.returns else ""
    else:
        parts, end = _of_class(node), ""
    line = f"{name}({', '.join(parts)}){end}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"
    return f"```python\n{line}\n```\n"


def _of_class(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass or a NamedTuple; else what `__init__` takes."""
    init = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if init:
        return list(_parameters(init[0].args))
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    return [ast.unparse(field) for field in fields]


def _parameters(args: ast.arguments) -> Iterator[str]:
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    yield from (_parameter(*pair) for pair in zip(plain, defaults, strict=True) if pair[0].arg not in _BOUND)
    if args.vararg or args.kwonlyargs:
        yield "*" + (ast.unparse(args.vararg) if args.vararg else "")
    yield from (_parameter(*pair) for pair in zip(args.kwonlyargs, args.kw_defaults, strict=True))
    if args.kwarg:
        yield "**" + ast.unparse(args.kwarg)


_BOUND = ("self", "cls")


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if arg.annotation else "="
    return ast.unparse(arg) + (equals + ast.unparse(default) if default else "")


def markdown(docstring: str) -> str:
    """A docstring: its sections as lists, its examples in fences, neighbours in one."""
    text = "\n\n".join(map(_paragraph, re.split(r"\n\s*\n", docstring)))
    return text.replace("\n```\n\n```python\n", "\n\n")


def _paragraph(text: str) -> str:
    head, _, rest = text.partition("\n")
    if SECTION.match(head):
        return f"**{head}**\n\n" + _section(textwrap.dedent(rest))
    if ">>>" in text:
        return f"```python\n{text}\n```"
    return text


def _section(text: str) -> str:
    """`name: what it is` as an item; lines that are indented go with the one before."""
    lines = [re.sub(r"^([\w*`, ]+): ", r"- `\1`: ", line) for line in text.splitlines()]
    return "\n".join(f"  {line.strip()}" if line.startswith(" ") else line for line in lines)


def _first_line(module: Any) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]


def main() -> None:
    """Write what has changed, and drop pages of rooms that are gone."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
