"""The benchmarks run, and what they time is right: all methods give the same arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import exporting, importing, llama, shapes
from benchmarks.__main__ import ROWS, _files
from benchmarks.measure import checksum

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's memory")
ROOT = Path(__file__).parent.parent
TINY = {"layers": 1, "shrink": 32, "dtype": "bfloat16", "runs": 1, "leaves": 8}


@pytest.mark.parametrize("transposed", [True, False])
def test_every_import_gives_the_same(tmp_path, transposed):
    paths = _files(TINY, tmp_path)
    for path in paths.values():
        options = {**TINY, "transposed": transposed, "path": path}
        methods = [importing.jaxstate, importing.script]
        methods += [importing.safetensors_flax, importing.orbax] if path == paths["safetensors"] else []
        found = {digest(run()) for run, digest in (method(options) for method in methods)}
        assert len(found) == 1


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_every_export_reads_alike(tmp_path, name):
    options = {**TINY, "transposed": True, "out": str(tmp_path / name)}
    methods = [exporting.jaxstate, exporting.torch_save if name == "a.pt" else exporting.safetensors_numpy]
    found = {digest(run()) for run, digest in (method(options) for method in methods)}
    assert found == {checksum(llama.arrays(options))}


@pytest.mark.parametrize("shape", ["small", "scanned"])
def test_every_shape_arrives_and_returns(shape):
    options = {**TINY, "shape": shape}
    for pair in ((shapes.load, shapes.expected), (shapes.export, shapes.torch_side)):
        assert len({digest(run()) for run, digest in (method(options) for method in pair)}) == 1


def _run(*arguments):
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--runs", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_the_command_prints_ratios_and_writes_json(tmp_path):
    out = tmp_path / "a.json"
    printed = _run("open", "--folder", str(tmp_path), "--json", str(out))
    tables = json.loads(out.read_text())
    assert [table["table"] for table in tables] == ["open, first value", "import jaxstate"]
    assert all(row["cpu"] > 0 for table in tables for row in table["rows"].values())
    assert "CPU x" in printed and "first_value" in printed


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    printed = _run("--folder", str(tmp_path))
    assert len(ROWS) == 9 and printed.count("CPU x") > 20
