"""Every notebook runs from top to bottom; its claims are assertions in its cells."""

import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


JUDGES = {"torch", "transformers", "safetensors"}


def imported(notebook):
    """Every word of the lines that import something, also of those in files that a notebook writes."""
    lines = [line for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    return {
        word for line in lines if line.startswith(("import ", "from ")) for word in re.findall(r"\w+", line)
    }


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.filterwarnings("ignore")  # of the kernel's own event loop
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    if not all(map(find_spec, JUDGES & imported(notebook))):
        pytest.skip("it is judged by a library that is not installed")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("assert" in cell.source for cell in notebook.cells)
