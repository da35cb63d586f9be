"""The rooms stand in one order and import downwards only; nothing optional is imported at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxstate"

# From the ground up. A room imports what stands before it, and its own files.
ROOMS = (
    "errors",
    "together",
    "arrays",
    "table",
    "template",
    "versions",
    "renaming",
    "comparison",
    "layout",
    "tree",
    "rules",
    "binding",
    "settings",
    "io",
    "containers",
    "adapters",
    "alignment",
    "original",
    "convert",
    "optim",
    "averaging",
    "orbax",
    "testing",
    "sharded",
    "display",
    "demo",
    "commands",
    "__main__",
)
OPTIONAL = (
    *("torch", "equinox", "haiku", "safetensors", "einops", "hypothesis", "pytest"),
    *("transformers", "accelerate", "peft", "lightning"),
)
PLUGIN = "testing/plugin.py"  # pytest loads it, so it may import pytest
ABOVE_ALL = {"demo": "jaxstate"}  # the demo is a user of the whole


def imported(path):
    """The absolute names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py" and p.name != "make_checkpoint.py"]


def test_every_room_is_known():
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_downwards(path):
    room = room_of(path)
    names = [name.split(".") for name in imported(path) if name.split(".")[0] == "jaxstate"]
    used = {parts[1] for parts in names if len(parts) > 1 and parts[1] in ROOMS}
    allowed = set(ROOMS[: ROOMS.index(room)]) | {room}
    assert used <= allowed, f"{room} imports {sorted(used - allowed)}"
    if any(len(parts) == 1 for parts in names):
        assert room in ABOVE_ALL


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_optional_is_imported(path):
    own = {"pytest"} if path == PACKAGE / PLUGIN else set()
    assert not {name.split(".")[0] for name in imported(path)} & set(OPTIONAL) - own


def test_only_pytest_imports_its_plugin():
    assert not [path for path in FILES if any("testing.plugin" in name for name in imported(path))]


def test_only_the_engine_of_one_room_imports_orbax():
    named = [
        path for path in FILES if any(n.split(".")[0] in ("orbax", "tensorstore") for n in imported(path))
    ]
    assert [str(path.relative_to(PACKAGE)) for path in named] == ["orbax/_engine.py"]


def test_the_library_and_the_demo_run_where_nothing_optional_is_installed(tmp_path):
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in OPTIONAL)
    command = f"from jaxstate.commands import main; sys.exit(main(['demo', '--out', {str(tmp_path)!r}]))"
    code = f"import sys\n{blocked}{command}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Proven without torch" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_14", "net.pt", "net.safetensors"}


def test_torch_tensors_do_not_bring_torch_along():
    heavy = {"torch", "equinox", "haiku", "orbax.checkpoint"}
    code = f"import sys, jaxstate; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
