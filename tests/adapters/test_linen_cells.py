"""Attention, recurrent cells and normalised weights of Flax Linen against torch's."""

import jax.numpy as jnp
import linen_twins as t
import numpy as np
import pytest
import torch
from flax import linen as nn
from linen_twins import DIFFERENT, EQUAL, Twins

import jaxstate as js

T = torch.nn
parametrizations = T.utils.parametrizations


def sequence(s):
    return (s.n, s.h, s.i)


def itself(module, x):
    return module(x, x, x, need_weights=False)[0]


def cross(module, x):
    """Queries, keys and values of three widths."""
    return module(x, x[..., :3], x[..., :2], need_weights=False)[0]


class Separate(T.Module):
    """Attention as four Linear layers, with normalised queries and keys."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (T.Linear(width, width) for _ in range(4))
        self.query_ln, self.key_ln = (T.LayerNorm(width // heads, eps=1e-6, bias=False) for _ in range(2))

    def forward(self, x):
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = (split(layer(x)) for layer in (self.query, self.key, self.value))
        y = T.functional.scaled_dot_product_attention(self.query_ln(q), self.key_ln(k), v)
        return self.out(y.transpose(1, 2).flatten(-2))


class SelfTwice(T.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def attention(s, **options):
    return T.MultiheadAttention(s.i, 2, batch_first=True, **options)


def two_heads(**options):
    return lambda s: nn.MultiHeadAttention(2, **options)


ATTENTION = [
    *(
        Twins(kind.__name__, attention, lambda s, kind=kind: kind(2, qkv_features=s.i), sequence, run=itself)
        for kind in (nn.MultiHeadDotProductAttention, nn.MultiHeadAttention)
    ),
    Twins("packed, asked for", attention, two_heads(), sequence, run=itself,
          options={"attention": "packed"}),
    Twins("no bias", lambda s: attention(s, bias=False), two_heads(use_bias=False),
          sequence, run=itself),
    Twins("three widths", lambda s: attention(s, kdim=3, vdim=2), two_heads(), sequence,
          run=cross, feed=lambda x: (x, x[..., :3], x[..., :2])),
    Twins("normalised", lambda s: Separate(s.i, 2), two_heads(normalize_qk=True),
          sequence),
]  # fmt: skip


def cell(module, x):
    """A cell's new hidden state; its carry is the first half of the batch."""
    h, c = x.chunk(2)[0][:, :5], x.chunk(2)[0][:, 1:6]
    inputs = x.chunk(2)[1]
    return module(inputs, (h, c))[0] if isinstance(module, T.LSTMCell) else module(inputs, h)


class Step(nn.Module):
    """A Linen cell that reads the same halves."""

    cell: nn.Module

    @nn.compact
    def __call__(self, x):
        half = len(x) // 2
        h, c = x[:half, :5], x[:half, 1:6]
        carry = (c, h) if isinstance(self.cell, nn.LSTMCell | nn.OptimizedLSTMCell) else h
        return self.cell(carry, x[half:])[1]


def halves(s):
    return (8, s.i + 2)


class Held(T.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return cell(self.cell, x)


def both_ways(kind):
    return nn.Bidirectional(nn.RNN(kind(5)), nn.RNN(kind(5)))


def output(module, x):
    return module(x)[0]


def rnn(kind, **options):
    return lambda s: kind(s.i, 5, batch_first=True, **options)


RNNS = {"LSTM": (T.LSTM, nn.LSTMCell), "GRU": (T.GRU, nn.GRUCell), "RNN": (T.RNN, nn.SimpleCell)}
CELLS = {
    nn.LSTMCell: T.LSTMCell,
    nn.OptimizedLSTMCell: T.LSTMCell,
    nn.GRUCell: T.GRUCell,
    nn.SimpleCell: T.RNNCell,
}

RECURRENT = [
    *(
        Twins(f"cell {ours.__name__}", lambda s, theirs=theirs: Held(theirs(s.i + 2, 5)),
              lambda s, ours=ours: Step(ours(5)), halves, summed=True)
        for ours, theirs in CELLS.items()
    ),
    *(
        row
        for name, (theirs, ours) in RNNS.items()
        for row in (
            Twins(name, rnn(theirs),
                  lambda s, ours=ours: nn.RNN(ours(5)), sequence, run=output, summed=True),
            Twins(f"{name} both ways", rnn(theirs, bidirectional=True),
                  lambda s, ours=ours: both_ways(ours), sequence, run=output, summed=True),
            Twins(f"{name} of two layers",
                  rnn(theirs, num_layers=2, bidirectional=True),
                  lambda s, ours=ours: nn.Sequential([both_ways(ours), both_ways(ours)]),
                  sequence, run=output, summed=True, options={"multilayer": ""}),
        )
    ),
]  # fmt: skip


def plane(s):
    return (s.n, s.i, s.h + 7, s.w + 7)


WRAPPED = [
    Twins("WeightNorm", lambda s: parametrizations.weight_norm(T.Linear(s.i, s.o)),
          lambda s: nn.WeightNorm(nn.Dense(s.o)), lambda s: (s.n, s.i)),
    Twins("WeightNorm of all parameters",
          lambda s: parametrizations.weight_norm(T.Linear(s.i, s.o, bias=False)),
          lambda s: nn.WeightNorm(nn.Dense(s.o, use_bias=False), variable_filter=None), lambda s: (s.n, s.i)),
    Twins("WeightNorm of a convolution",
          lambda s: parametrizations.weight_norm(T.Conv2d(s.i, s.o, (s.h, s.w))),
          lambda s: nn.WeightNorm(nn.Conv(s.o, (s.h, s.w), padding="VALID")), plane, channels=True),
    Twins("WeightNorm of a transposed convolution",
          lambda s: parametrizations.weight_norm(T.ConvTranspose2d(s.i, s.o, (s.h, s.w))),
          lambda s: nn.WeightNorm(nn.ConvTranspose(s.o, (s.h, s.w), padding="VALID"), feature_axes=-2),
          plane, channels=True),
    Twins("WeightNorm of the second axis",
          lambda s: parametrizations.weight_norm(T.ConvTranspose2d(s.i, s.o, (s.h, s.w)), dim=1),
          lambda s: nn.WeightNorm(nn.ConvTranspose(s.o, (s.h, s.w), padding="VALID")), plane, channels=True),
    Twins("SpectralNorm", lambda s: parametrizations.spectral_norm(T.Linear(s.i, s.o)),
          lambda s: nn.SpectralNorm(nn.Dense(s.o)), lambda s: (s.n, s.i), kwargs={"update_stats": False}),
    Twins("SpectralNorm of a convolution",
          lambda s: parametrizations.spectral_norm(T.Conv2d(s.i, s.o, (s.h, s.w))),
          lambda s: nn.SpectralNorm(nn.Conv(s.o, (s.h, s.w), padding="VALID")), plane, channels=True,
          kwargs={"update_stats": False}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:You are passing an array of shape:DeprecationWarning:flax")
@pytest.mark.parametrize("sizes", [DIFFERENT, EQUAL], ids=["different", "equal"])
@pytest.mark.parametrize("twins", [*ATTENTION, *RECURRENT, *WRAPPED], ids=lambda twins: twins.name)
def test_a_layer_is_its_twin(twins, sizes):
    t.check_twins(twins, sizes, converged(t.randomized(twins.torch(sizes))))


def converged(module):
    """Power iteration until nothing changes: Flax iterates in evaluation too, and torch does not."""
    if "SpectralNorm" in repr(module):
        module.train()
        for _ in range(500):
            module.weight  # noqa: B018  (every look at it is a step of the iteration)
    return module.eval()


class Compact(nn.Module):
    """Layers that hold layers, all made in a compact method: Flax puts the inner ones beside the outer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(5)], name="mlp")(x)
        x = nn.WeightNorm(nn.Dense(6), name="scaled")(x)
        x = nn.WeightNorm(nn.Dense(6, name="inner"))(x)
        x = nn.RNN(nn.GRUCell(4), name="gru")(x)
        return nn.Bidirectional(nn.RNN(nn.LSTMCell(3)), nn.RNN(nn.LSTMCell(3)), name="lstm")(x)


class Theirs(T.Module):
    def __init__(self):
        super().__init__()
        self.mlp = T.Sequential(T.Linear(2, 4), T.ReLU(), T.Linear(4, 5))
        self.scaled = parametrizations.weight_norm(T.Linear(5, 6))
        self.inner = parametrizations.weight_norm(T.Linear(6, 6))
        self.gru = T.GRU(6, 4, batch_first=True)
        self.lstm = T.LSTM(4, 3, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.lstm(self.gru(self.inner(self.scaled(self.mlp(x))))[0])[0]


def test_what_is_made_for_another_module_is_that_modules():
    twins = Twins("", lambda s: Theirs(), lambda s: Compact(), lambda s: (3, 4, 2), summed=True)
    t.check_twins(twins, DIFFERENT, t.randomized(Theirs()))


class Lists(nn.Module):
    def setup(self):
        self.first = nn.Dense(4)
        self.rnn = [nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.OptimizedLSTMCell(4))]

    def __call__(self, x):
        x = self.first(x)
        for layer in self.rnn:
            x = layer(x)
        return x


class OneModule(T.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rnn = T.Linear(4, 4), T.LSTM(4, 4, 2, batch_first=True)

    def forward(self, x):
        return self.rnn(self.first(x))[0]


def test_a_list_of_rnns_is_one_torch_module_if_so_said():
    twins = Twins("", lambda s: OneModule(), lambda s: Lists(), lambda s: (3, 5, 4), summed=True,
                  options={"multilayer": "rnn"})  # fmt: skip
    t.check_twins(twins, DIFFERENT, t.randomized(OneModule()))


def test_without_being_told_each_rnn_is_a_module():
    binding = js.bind(Lists(), jnp.ones((3, 5, 4)))
    assert "rnn.1.weight_ih_l0" in binding.keys and "rnn.weight_ih_l1" not in binding.keys


def test_the_hidden_bias_of_a_gru_has_a_leaf():
    module = t.randomized(T.GRUCell(3, 4))
    model, inputs = nn.GRUCell(4), (jnp.ones((2, 4)), jnp.ones((2, 3)))
    binding = js.bind(model, *inputs)
    variables = js.load_state_dict(t.variables_of(model, *inputs), module.state_dict(), binding)
    np.testing.assert_array_equal(variables["params"]["hn"]["bias"], module.bias_hh.detach()[8:])
    np.testing.assert_array_equal(
        js.state_dict(variables, binding)["bias_hh"][8:], module.bias_hh.detach()[8:]
    )


class Rematerialised(nn.Module):
    """Transformed classes that are asked what they are: held by another, or run by another method."""

    def setup(self):
        self.rnn = nn.RNN(nn.remat(nn.LSTMCell)(3))
        self.table = nn.remat(nn.Embed)(5, 3)

    def __call__(self, x):
        return self.table.attend(self.rnn(x))


def test_a_transformed_class_is_the_class_that_it_transforms():
    keys = js.bind(Rematerialised(), jnp.ones((2, 4, 6))).keys
    assert keys[:2] == ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
    assert keys[-1] == "table.weight"
