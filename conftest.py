"""Which files pytest reads: where torch or transformers is not installed, all that do without it."""

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent


def _needs(library: str, path: Path) -> bool:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return any(line.startswith((f"import {library}", f"from {library}")) for line in lines)


def _leans_on(path: Path, names: set[str]) -> bool:
    lines = path.read_text().splitlines()
    return any(line.startswith(tuple(f"from {name} import" for name in names)) for line in lines)


def _tests_with(library: str) -> list[str]:
    """Tests that import a library, those that import a file that does, and folders whose conftest does."""
    files = list((ROOT / "tests").rglob("*.py"))
    found = {path for path in files if _needs(library, path)}
    found |= {path for path in files if _leans_on(path, {helper.stem for helper in found})}
    return [str(path.parent if path.name == "conftest.py" else path) for path in found]


missing = [library for library in ("torch", "transformers") if not find_spec(library)]
collect_ignore = ["jaxstate/demo/make_checkpoint.py", *(p for name in missing for p in _tests_with(name))]
