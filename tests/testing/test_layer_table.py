"""compare: a table of layers in torch's order, in a terminal, in a notebook, as a plot."""

import numpy as np
import pytest
import torch
from flax import nnx
from twins import make

import jaxstate as js
from jaxstate.testing import compare


def spoiled():
    made = make("block")
    model = made.loaded()
    model.norm2.epsilon = 1e-2
    return made, model


def test_layers_come_in_torchs_order_with_torchs_outputs():
    made, model = spoiled()
    found = compare(made.torch, model, *made.twin.inputs)
    names = [row.name for row in found.rows]
    assert names == ["embed", "norm1", "attn", "norm2", "up", "down", "output"]
    errors = [row.distance.relative for row in found.rows]
    assert max(errors[:3]) < 1e-6 and min(errors[3:]) > 1e-4
    with torch.no_grad():
        theirs = made.torch(*map(torch.from_numpy, made.twin.inputs)).numpy()
    ours = np.array(model(*made.twin.in_jax()))
    last = found.rows[-1]
    assert last.shape == theirs.shape and last.distance.max_abs == np.abs(theirs - ours).max()
    a, b = (torch.from_numpy(side).double().log_softmax(-1) for side in (theirs, ours))
    assert last.kl == pytest.approx(float((a.exp() * (a - b)).sum(-1).mean()), rel=1e-9)


def test_it_shows_itself():
    made, model = spoiled()
    found = compare(made.torch, model, *made.twin.inputs)
    lines = str(found).splitlines()
    assert lines[0].split() == ["torch", "jax", "kind", "shape", "max", "abs", "relative", "ulps", "cosine"]
    assert lines[-1].startswith("KL divergence of output read as logits: ") and repr(found) == str(found)
    assert "<code>norm2</code>" in found._repr_html_() and found._repr_html_().endswith("nats")


def test_it_plots_itself():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    made, model = spoiled()
    found = compare(made.torch, model, *made.twin.inputs)
    ax = found.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == [row.name for row in found.rows]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == [max(row.distance.relative, 1e-9) for row in found.rows]
    assert found.plot(ax) is ax
    matplotlib.pyplot.close(ax.figure)


def test_outputs_of_other_shapes_are_said_to_be():
    theirs = torch.nn.Conv2d(3, 4, 3)
    binding = js.bind(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)))
    model = js.load_state_dict(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), theirs.state_dict(), binding)
    found = compare(theirs, model, np.ones((1, 3, 5, 6), "float32"), input_layout="n h w c -> n c h w")
    assert [row.cells[4] for row in found.rows] == ["other shape", "other shape"]
