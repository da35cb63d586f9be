"""What a table shows: every cell, as text where it is printed, and never as markup."""

import html
import io
import re

import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import jaxstate as js
from jaxstate.errors import Mismatch

STATE_DICT = {"fc.weight": np.ones((5, 3), "float32"), "[red]<b>": np.zeros((), "int64")}
OPTIMIZER = {
    "state": {0: {"step": np.float32(7), "exp_avg": np.ones((5, 3))}, 1: {}},
    "param_groups": [{"lr": 0.25, "betas": (0.8, 0.97), "params": [0, 1]}],
}


def cells_of(shown):
    """The cells of an HTML table, unescaped, row by row."""
    rows = re.findall("<tr>(.*?)</tr>", shown._repr_html_())
    return [tuple(map(html.unescape, re.findall("<code>(.*?)</code>", row))) for row in rows[1:]]


@pytest.mark.parametrize(
    "table, expected",
    [
        (
            js.display.state_dict_table(STATE_DICT, title="of <i>"),
            [("fc.weight", "torch.Size([5, 3])", "float32"), ("[red]<b>", "torch.Size([])", "int64")],
        ),
        (
            js.display.optimizer_table(OPTIMIZER),
            [
                ("state[0]", "step", "torch.Size([])"),
                ("state[0]", "exp_avg", "torch.Size([5, 3])"),
                ("param_groups[0]", "lr", "0.25"),
                ("param_groups[0]", "betas", "(0.8, 0.97)"),
                ("param_groups[0]", "params", "[0, 1]"),
            ],
        ),
        (
            js.display.losses_table([0.5], [0.5000005]),
            [("0", "0.5000000", "0.5000005", "1e-06")],
        ),
    ],
    ids=["state_dict", "optimizer", "losses"],
)
def test_a_table_is_the_same_in_text_in_html_and_drawn(table, expected):
    screen = io.StringIO()
    Console(width=120, file=screen).print(table)
    drawn = screen.getvalue()
    assert cells_of(table) == expected
    for cell in (table.title, *table.head, *(cell for row in expected for cell in row)):
        assert cell in str(table)
        assert cell in drawn
    assert "<i>" not in table._repr_html_() and "[red]<b>" not in table._repr_html_()


def test_what_is_no_array_is_shown_as_it_is():
    assert js.display.state_dict_table({"_extra_state": {"a": 1}}).rows == (("_extra_state", "{'a': 1}", ""),)


def test_a_comparison_shows_each_key_once():
    found = js.Comparison(
        missing_keys=("a",),
        unexpected_keys=("<b>",),
        mismatched=(Mismatch("c", (3, 2), (2, 3)),),
        problems=("d & e contradict",),
        untouched_keys=("f",),
        ignored_keys=("g",),
    )
    assert cells_of(found) == [
        ("a", "missing", "", "there"),
        ("<b>", "unexpected", "there", ""),
        ("c", "size mismatch", "(3, 2)", "(2, 3)"),
        ("f", "left alone", "", "there"),
        ("g", "left alone", "there", ""),
    ]
    assert "d &amp; e contradict" in found._repr_html_() and "<b>" not in found._repr_html_()
    assert js.Comparison()._repr_html_() == "<p>&lt;All keys matched successfully&gt;</p>"


@pytest.mark.parametrize("nested", [False, True])
def test_treescope_shows_the_same_tables_inside_a_tree(nested):
    """Flax brings treescope along; what says `_repr_html_` is embedded in its trees as it is."""
    treescope = pytest.importorskip("treescope")
    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    binding = js.bind(linear)
    shown = [binding, binding.compare({"weight": np.ones((2, 4))}), js.display.state_dict_table(STATE_DICT)]
    for value in shown:
        page = treescope.render_to_html({"of": [value]} if nested else value, compressed=False)
        assert html.unescape(value._repr_html_()) in html.unescape(html.unescape(page))
    page = treescope.render_to_html(js.state_dict(linear), compressed=False)
    assert "weight" in page and "float32(2, 3)" in page


def test_a_modules_state_dict_is_no_optimizers():
    with pytest.raises(js.OptimizerError, match='has "state" and "param_groups"; this has "fc.weight", '):
        js.display.optimizer_table(STATE_DICT)


def test_losses_of_nothing_are_as_far_apart_as_they_are():
    rows = js.display.losses_table([0.0, 0.0, -0.5], [0.0, 0.25, -0.25]).rows
    assert [row[3] for row in rows] == ["0e+00", "inf", "5e-01"]
    with pytest.raises(ValueError):
        js.display.losses_table([0.5, 0.25], [0.5])
