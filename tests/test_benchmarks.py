"""The benchmarks run, and what they time is right: all methods give the same arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import exporting, importing, llama, markdown, opening, optimizer_state, shapes
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
def test_every_shape_arrives_and_returns(tmp_path, shape):
    options = {**TINY, "shape": shape, "out": str(tmp_path / "a.safetensors")}
    for methods in ((shapes.load, shapes.expected), (shapes.export, shapes.save, shapes.torch_side)):
        assert len({digest(run()) for run, digest in (method(options) for method in methods)}) == 1
    run, _ = shapes.write(options)
    run()
    assert os.path.getsize(options["out"]) == sum(x.nbytes for x in shapes.torch_side(options)[0]().values())


def test_adam_arrives_and_returns():
    options = {**TINY, "dtype": "float32", "transposed": True}
    methods = (optimizer_state.export, optimizer_state.torch_side)
    assert len({digest(run()) for run, digest in (method(options) for method in methods)}) == 1


def test_a_page_gets_the_tables_of_a_row():
    table = {
        "table": "row",
        "bytes": 10,
        "rows": {
            "copy": {"wall": 2.0, "cpu": 1.0, "median": 1.5, "anon": 10},
            "peer_x": {"skipped": "not there"},
            "ours": {"wall": 3.0, "cpu": 2.5, "median": 4.5, "anon": 15},
        },
    }
    page = "a\n<!-- small -->\nold\n<!-- end -->\nb\n<!-- row -->\n<!-- end -->\n"
    found = markdown.replaced(page, "row", [table, {"text": "printed\n"}])
    before, after = found.split("<!-- row -->\n```\n")
    assert before == "a\n<!-- small -->\nold\n<!-- end -->\nb\n" and after.endswith(
        "\n\nprinted\n```\n<!-- end -->\n"
    )
    lines = after.splitlines()
    assert lines[2].split() == ["copy", "2.000", "1.000", "1.00", "1.00", "1.00", "1.00"]
    assert lines[3].split() == ["x", "-", "not", "there"]
    assert lines[4].split() == ["ours", "3.000", "2.500", "1.50", "2.50", "3.00", "1.50"]
    assert markdown.replaced(found, "row", []) != found == markdown.replaced(found, "other", [table])


def test_every_row_has_its_place_in_the_page():
    page = (ROOT / "benchmarks/README.md").read_text()
    assert {name for name in ROWS if f"<!-- {name} -->\n" in page} == set(ROWS) - {"scaling"}
    assert page.count("<!-- end -->") == len(ROWS) - 1


def _run(*arguments):
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--runs", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_the_command_prints_ratios_and_writes_json(tmp_path):
    out = tmp_path / "a.json"
    printed = _run("open", "--folder", str(tmp_path), "--json", str(out))
    tables = json.loads(out.read_text())
    assert [table["table"] for table in tables] == ["open, first value", opening.TITLE]
    assert all(row["cpu"] > 0 for table in tables for row in table["rows"].values())
    assert "CPU x" in printed and "first_value" in printed


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    printed = _run("--folder", str(tmp_path))
    assert len(ROWS) == 11 and printed.count("CPU x") > 20
