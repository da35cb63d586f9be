"""Layers that vmap or scan stacked into one leaf, and modules and variables that stand in several places."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import (
    as_jax,
    assert_close,
    assert_same_bits,
    assert_torch_takes,
    built,
    noise,
    randomized,
    rngs,
)
from flax import nnx
from torch import nn

import jaxstate as js


class Block(nnx.Module):
    """A residual block with a layer of every kind that a stack may hold."""

    def __init__(self, width, inner, rngs):
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.fc1 = nnx.Linear(width, inner, rngs=rngs)
        self.act = nnx.PReLU()
        self.bn = nnx.BatchNorm(inner, use_running_average=True, rngs=rngs)
        self.fc2 = nnx.WeightNorm(nnx.Linear(inner, width, rngs=rngs), rngs=rngs)
        self.gain = nnx.Param(jnp.ones(width))

    def __call__(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.gain[...] * self.fc2(self.bn(self.act(self.fc1(x))))


class TorchBlock(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.fc1, self.act, self.bn = nn.Linear(width, inner), nn.PReLU(), nn.BatchNorm1d(inner)
        self.fc2 = nn.utils.parametrizations.weight_norm(nn.Linear(inner, width))
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attn(y, y, y)[0]
        y = self.bn(self.act(self.fc1(x)).transpose(1, 2)).transpose(1, 2)
        return x + self.gain * self.fc2(y)


class TorchNet(nn.Module):
    def __init__(self, width, inner, layers):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.blocks = nn.ModuleList([TorchBlock(width, inner) for _ in range(layers)])
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Net(nnx.Module):
    """The same, its blocks stacked by `nnx.vmap` and called by `nnx.scan`."""

    def __init__(self, width, inner, layers):
        self.stem = nnx.Linear(3, width, rngs=rngs())
        make = nnx.vmap(lambda rngs: Block(width, inner, rngs))
        self.blocks = make(rngs().split(layers))
        self.head = nnx.Linear(width, 2, rngs=rngs())

    def __call__(self, x):
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(scan(self.stem(x), self.blocks))


SIZES = {"different": (4, 6, 3), "stack as long as a width": (6, 4, 4)}


@pytest.mark.parametrize("sizes", [pytest.param(sizes, id=name) for name, sizes in SIZES.items()])
def test_a_stack_is_a_list_of_torchs_modules(sizes):
    theirs, ours = randomized(TorchNet(*sizes)), built(lambda: Net(*sizes))
    sd = theirs.state_dict()
    binding = js.bind(ours, stacked={"blocks": 0})
    model = js.load_state_dict(ours, sd, binding)
    again = js.state_dict(model, binding.like(sd))  # before any call: it rescales the kernels of WeightNorm
    x = noise(2, 5, 3)
    assert_close(model(as_jax(x)), theirs(x).detach())
    assert_same_bits(again, sd)
    assert_same_bits(assert_torch_takes(theirs, again).state_dict(), sd)
    assert list(js.bind(ours).parameters) == [name for name, _ in theirs.named_parameters()]


class Linears(nnx.Module):
    def __init__(self, i, o, layers, axis, bias=True):
        make = nnx.vmap(lambda rngs: nnx.Linear(i, o, use_bias=bias, rngs=rngs), out_axes=axis)
        self.layers = make(rngs().split(layers))


@pytest.mark.parametrize("i, o, layers, axis", [(3, 5, 4, 0), (3, 5, 4, 1), (4, 4, 4, 0), (4, 4, 4, 1)])
def test_the_axis_of_a_stack_is_read_from_all_its_leaves_or_asked_for(i, o, layers, axis):
    theirs = randomized(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(i, o) for _ in range(layers)])}))
    ours = Linears(i, o, layers, axis)
    if i == layers:
        with pytest.raises(
            js.BindingError, match=r"layers is a stack .* \(4, 4, 4\), do not tell which axis"
        ):
            js.bind(ours)
    binding = js.bind(ours, stacked={"layers": axis} if i == layers else None)
    model = js.load_state_dict(ours, theirs.state_dict(), binding)
    for n, layer in enumerate(theirs["layers"]):
        kernel = np.take(np.asarray(model.layers.kernel[...]), n, axis)
        assert np.array_equal(kernel, layer.weight.detach().numpy().T)
    assert_same_bits(js.state_dict(model, binding), theirs.state_dict())


def test_the_remedy_of_an_ambiguous_stack_works_when_followed():
    ours = Linears(4, 4, 4, 0, bias=False)
    with pytest.raises(js.BindingError) as refused:
        js.bind(ours)
    call = re.search(r"say (js\.bind\(.*?\)) if", str(refused.value))
    assert call is not None
    binding = eval(call[1], {"js": js, "model": ours})
    assert binding.keys == tuple(f"layers.{n}.weight" for n in range(4))


def test_two_axes_of_stacks_are_refused():
    make = nnx.vmap(nnx.vmap(lambda rngs: nnx.Linear(3, 5, rngs=rngs)))
    model = nnx.Dict(layers=make(rngs().split((2, 4))))
    with pytest.raises(js.BindingError, match=r"shape \(2, 4, 3, 5\), and its module declares \(3, 5\)"):
        js.bind(model)


def test_a_leaf_that_is_no_stack_is_refused():
    model = nnx.Linear(3, 5, rngs=rngs())
    model.kernel = nnx.Param(jnp.zeros((4, 5)))
    with pytest.raises(
        js.BindingError, match=r"leaf kernel has shape \(4, 5\), and its module declares \(3, 5\)"
    ):
        js.bind(model)


class Shared(nnx.Module):
    """A module under two names; the name that is first in the alphabet was assigned last."""

    def __init__(self):
        self.stem = nnx.Linear(4, 4, rngs=rngs())
        self.alias = self.stem
        self.zero = nnx.Linear(4, 4, rngs=rngs())
        self.best = nnx.Linear(4, 4, rngs=rngs())
        self.best.kernel = self.zero.kernel

    def __call__(self, x):
        return self.best(self.zero(self.alias(self.stem(x))))


class TorchShared(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.alias = self.stem
        self.zero, self.best = nn.Linear(4, 4), nn.Linear(4, 4)
        self.best.weight = self.zero.weight

    def forward(self, x):
        return self.best(self.zero(self.alias(self.stem(x))))


class TiedHead(nnx.Module):
    """A raw parameter that is an embedding's: its layout is the embedding's."""

    def __init__(self):
        self.tok = nnx.Embed(7, 4, rngs=rngs())
        self.head = self.tok.embedding

    def __call__(self, x):
        return self.tok(x) @ self.head[...].T


class TorchTiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(7, 4)
        self.head = self.tok.weight

    def forward(self, x):
        return self.tok(x) @ self.head.T


def _pairs():
    return [
        (TorchShared, Shared, lambda: noise(3, 4), ("alias.weight", "stem.weight")),
        (TorchTiedHead, TiedHead, lambda: torch.arange(6) % 7, ("head", "tok.weight")),
    ]


@pytest.mark.parametrize("theirs, ours, x, keys", _pairs())
def test_what_stands_twice_is_written_twice_and_held_once(theirs, ours, x, keys):
    theirs, template = randomized(theirs()), ours()
    sd = theirs.state_dict()
    model = js.load_state_dict(template, sd)
    assert_close(model(as_jax(x())), theirs(x()).detach())
    again = js.state_dict(model)
    assert_same_bits(again, sd)
    assert again[keys[0]] is again[keys[1]]
    assert_same_bits(assert_torch_takes(theirs, again).state_dict(), sd)
    assert list(js.bind(model).parameters) == [name for name, _ in theirs.named_parameters()]
    assert len(jax.tree.leaves(nnx.state(model))) == len(js.bind(model).parameters)


@pytest.mark.parametrize("theirs, ours, x, keys", _pairs())
def test_a_file_may_lack_either_tied_key(theirs, ours, x, keys):
    sd = randomized(theirs()).state_dict()
    for key in keys:
        lacking = {name: array for name, array in sd.items() if name != key}
        assert_same_bits(js.state_dict(js.load_state_dict(ours(), lacking)), sd)
    with pytest.raises(js.StateDictError, match="Missing key"):
        js.load_state_dict(ours(), {name: array for name, array in sd.items() if name not in keys})


@pytest.mark.parametrize("theirs, ours, x, keys", _pairs())
def test_tied_keys_that_disagree_are_refused(theirs, ours, x, keys):
    sd = dict(randomized(theirs()).state_dict())
    sd[keys[0]] = sd[keys[0]] + 1
    with pytest.raises(js.StateDictError, match="are one array in the model, and the file has two different"):
        js.load_state_dict(ours(), sd)
