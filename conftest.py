"""Which files pytest reads: where torch is not installed, all that do without it."""

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent
TESTS = (ROOT / "tests").rglob("*.py")


def _needs_torch(path: Path) -> bool:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return any(line.startswith(("import torch", "from torch")) for line in lines)


def _leans_on(path: Path, names: set[str]) -> bool:
    lines = path.read_text().splitlines()
    return any(line.startswith(tuple(f"from {name} import" for name in names)) for line in lines)


def _torch_tests() -> list[str]:
    """Tests that import torch, those that import a helper that does, and folders whose conftest does."""
    files = list(TESTS)
    found = {path for path in files if _needs_torch(path)}
    found |= {path for path in files if _leans_on(path, {helper.stem for helper in found})}
    return [str(path.parent if path.name == "conftest.py" else path) for path in found]


collect_ignore = ["jaxstate/demo/make_checkpoint.py", *([] if find_spec("torch") else _torch_tests())]
