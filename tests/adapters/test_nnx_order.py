"""torch's order is that of registration, and NNX keeps it through everything that takes a module apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import as_jax, assert_close, assert_same_bits, built, noise, randomized, rngs
from flax import nnx
from torch import nn

import jaxstate as js


class Block(nnx.Module):
    def __init__(self, rngs):
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(4))
        self.shift = nnx.BatchStat(jnp.zeros(4))
        self.bias = nnx.Param(jnp.zeros(4))

    def __call__(self, x):
        return self.first(self.norm(self.second(x))) * self.gain[...] + self.bias[...] + self.shift[...]


class Net(nnx.Module):
    """Nothing here is in the order of the alphabet, and twelve blocks count past ten."""

    def __init__(self, rngs):
        self.tail = nnx.Linear(4, 3, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(12)])
        self.net2 = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), nnx.tanh)

    def __call__(self, x):
        x = self.net2(x)
        for block in self.blocks:
            x = x + block(x)
        return self.tail(x)


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.second, self.norm, self.first = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.first(self.norm(self.second(x))) * self.gain + self.bias + self.shift


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.tail = nn.Linear(4, 3)
        self.blocks = nn.ModuleList([TorchBlock() for _ in range(12)])
        self.net2 = nn.Sequential(nn.Linear(2, 4), nn.Tanh())

    def forward(self, x):
        x = self.net2(x)
        for block in self.blocks:
            x = x + block(x)
        return self.tail(x)


def _trained(model):
    """The module after a step of training: NNX has taken it apart and put it together again."""

    @nnx.jit
    def step(model, x):
        gradients = nnx.grad(lambda model: model(x).sum())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - g, nnx.state(model, nnx.Param), gradients))

    step(model, jnp.ones((5, 2)))
    return model


PASSAGES = {
    "as built": lambda model: model,
    "split and merged": lambda model: nnx.merge(*nnx.split(model)),
    "cloned": nnx.clone,
    "abstract": lambda model: nnx.eval_shape(lambda: Net(rngs())),
    "trained under jit": _trained,
    "mapped": lambda model: jax.tree.map(lambda leaf: leaf, model),
    "from a jitted constructor": lambda model: nnx.jit(lambda: Net(rngs()))(),
    "loaded": lambda model: js.load_state_dict(model, randomized(TorchNet()).state_dict()),
}


@pytest.fixture(scope="module")
def model():
    return nnx.jit(lambda: Net(rngs()))()


@pytest.mark.parametrize("passage", PASSAGES)
def test_the_order_of_registration_survives(passage, model):
    theirs = TorchNet()
    binding = js.bind(PASSAGES[passage](nnx.clone(model)))
    assert list(binding.keys) == list(theirs.state_dict())
    assert list(binding.parameters) == [name for name, _ in theirs.named_parameters()]


def test_twelve_blocks_come_in_the_order_of_their_numbers(model):
    keys = [key for key in js.bind(model).keys if key.endswith("first.weight")]
    assert keys == [f"blocks.{n}.first.weight" for n in range(12)]


def test_a_whole_model_is_torchs():
    theirs, x = randomized(TorchNet()), noise(5, 2)
    model = js.load_state_dict(built(lambda: Net(rngs())), theirs.state_dict())
    assert_close(model(as_jax(x)), theirs(x).detach())
    sd = theirs.state_dict()
    assert_same_bits(js.state_dict(model, js.bind(model, like=sd)), sd)


def test_prefix_and_destination_put_two_models_into_one(model):
    first = js.state_dict(model, prefix="a.")
    both = js.state_dict(model, prefix="b.", destination=first)
    theirs = nn.ModuleDict({"a": TorchNet(), "b": TorchNet()})
    assert list(both) == list(theirs.state_dict())
    assert not any(key.startswith("b.") for key in first)
    again = js.load_state_dict(model, both, prefix="b.")
    assert np.array_equal(again.tail.kernel[...], model.tail.kernel[...])
