"""`jaxstate bind`: the table, what does not fit, and the exit status, for models that a user's file makes."""

import json

import pytest
import torch
from command_line import jaxstate, saved, training  # noqa: F401

NETS = """
import jax
from flax import linen, nnx

class Net(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(3, 5, rngs=rngs)
        self.fc2 = nnx.Linear(5, 3, use_bias=False, rngs=rngs)
    def __call__(self, x):
        return self.fc2(jax.numpy.tanh(self.fc1(x)))

def make():
    return nnx.eval_shape(lambda: Net(nnx.Rngs(0)))

def with_inputs():
    return make(), (jax.ShapeDtypeStruct((1, 3), "float32"),)

class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jax.numpy.tanh(linen.Dense(5, name="fc1")(x))
        return linen.Dense(3, use_bias=False, name="fc2")(x)

def make_linen():
    return LinenNet(), (jax.ShapeDtypeStruct((1, 3), "float32"),)

def make_linen_without_inputs():
    return LinenNet()
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's, in the folder where they stand; each test has one of its own name."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def net_file(tmp_path):
    module = torch.nn.Sequential()
    module.add_module("fc1", torch.nn.Linear(3, 5))
    module.add_module("fc2", torch.nn.Linear(5, 3, bias=False))
    torch.save({"state_dict": module.state_dict(), "epoch": 2}, tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


@pytest.mark.parametrize("factory", ["make", "with_inputs", "make_linen"])
def test_a_file_that_fits(jaxstate, nets, net_file, factory):
    done = jaxstate("bind", "--model", f"{nets}:{factory}", net_file)
    assert done.status == 0, done.err
    assert "fc1.weight" in done.out and "<All keys matched successfully>" in done.out


def test_what_does_not_fit_is_said_in_words_and_as_json(jaxstate, nets, tmp_path):
    entries = {"fc1.weight": torch.ones(5, 3), "fc1.bias": torch.ones(4), "fc2.wait": torch.ones(3, 5)}
    torch.save(entries, tmp_path / "odd.pt")
    done = jaxstate("bind", "--model", f"{nets}:make", tmp_path / "odd.pt")
    assert done.status == 1
    assert 'Did you mean "fc2.wait" for "fc2.weight"?' in done.out
    found = json.loads(jaxstate("bind", "--model", f"{nets}:make", tmp_path / "odd.pt", "--json").out)
    assert found["missing_keys"] == ["fc2.weight"] and found["unexpected_keys"] == ["fc2.wait"]
    assert found["mismatched"] == [{"key": "fc1.bias", "found": [4], "expected": [5]}]
    assert not found["fits"] and len(found["rules"]) == 3


@pytest.mark.parametrize(
    ("factory", "said"),
    [("{}:absent", "absent"), ("{}", "module:function"), ("nowhere_at_all:make", "nowhere_at_all")],
)
def test_a_factory_that_is_not_there(jaxstate, nets, net_file, factory, said):
    done = jaxstate("bind", "--model", factory.format(nets), net_file)
    assert done.status == 2 and said in done.err


def test_linen_needs_inputs(jaxstate, nets, net_file):
    done = jaxstate("bind", "--model", f"{nets}:make_linen_without_inputs", net_file)
    assert done.status == 2 and "let it return (module, (example_input, ...))" in done.err
