"""Every block of the pages in docs/ and of the README is run: Python, and commands with what they print.

The reference is made from docstrings, whose examples are run where they stand; here it is only compared.
"""

import doctest
import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import jaxstate as js
from jaxstate.commands import main

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Kind, text and line of every fenced block."""
    text = page.read_text()
    return [
        (kind, body, text[: m.start()].count("\n") + 2)
        for m in BLOCK.finditer(text)
        for kind, body in [m.groups()]
    ]


def run_python(body, names, page, line):
    """A block as a program, or, where it has prompts, as a doctest."""
    if ">>>" not in body:
        exec(compile("\n" * (line - 1) + body, str(page), "exec"), names)
        return
    said = []
    example = doctest.DocTestParser().get_doctest(body, names, page.name, str(page), line - 1)
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append, clear_globs=False)
    names.update(example.globs)
    assert not said, "".join(said)


def run_console(body, capsys):
    """Commands after `$`, each with the output that follows it; a last line `exit status: n` if not 0."""
    for example in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, expected = example.replace("\\\n", " ").partition("\n")
        program, *arguments = shlex.split(command, comments=True)
        assert program == "jaxstate", f"no command of ours: {command}"
        capsys.readouterr()
        status = main(arguments)
        said = capsys.readouterr()
        found = said.out + said.err + (f"exit status: {status}\n" if status else "")
        assert doctest.OutputChecker().check_output(expected, found, FLAGS), f"$ {command}\n{found}"


def test_there_are_pages():
    assert len(PAGES) > 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch, capsys):
    found = blocks(page)
    if any("import torch" in body for _, body, _ in found) and not find_spec("torch"):
        pytest.skip("torch is not installed")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for kind, body, line in found:
        if kind == "python":
            run_python(body, names, page, line)
        elif kind == "console":
            run_console(body, capsys)
        else:
            assert kind in ("sh", "text"), f"{page.name}:{line}: who checks a block of {kind}?"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.fc = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4 * 5 * 6, 7, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.conv(x).reshape(len(x), -1))


def test_the_readme_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, example = Net(nnx.Rngs(1)), jax.ShapeDtypeStruct((1, 5, 6, 3), "float32")
    binding, tx = js.bind(model, example), js.optim.adamw(lr=3e-3, weight_decay=0.25)
    params = nnx.state(model, nnx.Param)
    _, opt = tx.update(params, tx.init(params), params)
    file = {"model": js.state_dict(model, binding), "optimizer": js.optim.state_dict(opt, binding)}
    js.save(file, "net.pt")
    names = {"Net": Net, "example_input": example}
    for kind, body, line in blocks(ROOT / "README.md"):
        if kind == "python":
            run_python(body, names, ROOT / "README.md", line)
    back = js.load("back.pt")
    assert js.optim.param_groups(names["opt"])[0]["weight_decay"] == 0.25
    for key, array in file["model"].items():
        for found in (back["model"], js.load("model.safetensors")):
            np.testing.assert_array_equal(found[key], array, strict=True)


def test_the_reference_is_current():
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["pages"]()
    written = {path.name: path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")}
    stale = sorted(name for name in made.keys() | written.keys() if made.get(name) != written.get(name))
    assert not stale, f"{stale} are not what the docstrings say: python docs/make_reference.py"
