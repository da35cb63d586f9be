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


class TorchNormed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = (
            torch.nn.Conv2d(3, 4, 1),
            torch.nn.BatchNorm1d(24),
            torch.nn.Linear(24, 5),
        )

    def forward(self, x):
        return self.fc(self.norm(self.conv(x).flatten(1)))


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(24, momentum=0.9, epsilon=1e-5, use_running_average=True, rngs=rngs)
        self.fc = nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.norm(self.conv(x).reshape(len(x), -1)))


def test_a_norm_behind_a_flatten_is_compared_in_torchs_order():
    torch.manual_seed(0)
    theirs, x = TorchNormed(), torch.randn(7, 3, 2, 3)
    theirs(3 * x + 1)
    theirs.eval()
    model = Normed(nnx.Rngs(0))
    binding = js.bind(model, np.ones((1, 2, 3, 3), "float32"))
    model = js.load_state_dict(model, theirs.state_dict(), binding)
    rows = compare(theirs, model, x, input_layout="n h w c -> n c h w").rows
    assert [row.name for row in rows] == ["conv", "norm", "fc", "output"]
    assert max(row.distance.relative for row in rows) < 1e-6
    model.norm.epsilon = 0.1
    with pytest.raises(js.ParityError, match='first layer that differs: "norm"(?s:.*)cause: .*eps 0.1'):
        js.testing.assert_same_outputs(theirs, model, x, input_layout="n h w c -> n c h w")
