"""Cells, RNN, Bidirectional and stacks of them: torch's cells and torch's modules of several layers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import Case, assert_there_and_back, built, randomized, rngs
from flax import nnx
from torch import nn

import jaxstate as js

CELLS = {
    "LSTM": (nnx.LSTMCell, nn.LSTMCell, nn.LSTM),
    "OptimizedLSTM": (nnx.OptimizedLSTMCell, nn.LSTMCell, nn.LSTM),
    "GRU": (nnx.GRUCell, nn.GRUCell, nn.GRU),
    "Simple": (nnx.SimpleCell, nn.RNNCell, nn.RNN),
}


def _without_hidden_bias(module):
    """A torch GRU that nnx.GRUCell can hold: its candidate gate has no hidden bias."""
    for name, entry in module.named_parameters():
        if "bias_hh" in name and isinstance(module, nn.GRU | nn.GRUCell):
            with torch.no_grad():
                entry[2 * module.hidden_size :] = 0
    return module


def _step(cell, x):
    hidden = jnp.zeros((len(x), cell.hidden_features))
    lstm = isinstance(cell, nnx.LSTMCell | nnx.OptimizedLSTMCell)
    return cell((hidden, hidden) if lstm else hidden, x)[1]


def _torch_step(cell, x):
    out = cell(x)
    return out[0] if isinstance(out, tuple) else out


def _rnn(kind, i, h):
    return nnx.RNN(CELLS[kind][0](i, h, rngs=rngs()))


def _both(kind, i, h):
    return nnx.Bidirectional(_rnn(kind, i, h), _rnn(kind, i, h))


def _through(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def _lossy(name, theirs, ours, shape, **how):
    return Case(name, theirs, ours, shape, lossy=True, **{"reference": lambda m, x: m(x)[0], **how})


def _cases(kind, i, h):
    cell, their_cell, their_module = CELLS[kind]
    batch = {"batch_first": True}
    deep = {"options": {"multilayer": ""}, "call": _through}
    return [
        _lossy(
            f"{kind}Cell",
            lambda: their_cell(i, h),
            lambda: cell(i, h, rngs=rngs()),
            (5, i),
            call=_step,
            reference=_torch_step,
        ),
        _lossy(kind, lambda: their_module(i, h, **batch), lambda: _rnn(kind, i, h), (2, 5, i)),
        _lossy(
            f"{kind} in both directions",
            lambda: their_module(i, h, bidirectional=True, **batch),
            lambda: _both(kind, i, h),
            (2, 5, i),
        ),
        _lossy(
            f"{kind} of three layers",
            lambda: their_module(i, h, 3, **batch),
            lambda: nnx.List([_rnn(kind, i if n == 0 else h, h) for n in range(3)]),
            (2, 5, i),
            **deep,
        ),
        _lossy(
            f"{kind} of two layers in both directions",
            lambda: their_module(i, h, 2, bidirectional=True, **batch),
            lambda: nnx.Sequential(_both(kind, i, h), _both(kind, 2 * h, h)),
            (2, 5, i),
            options={"multilayer": ""},
        ),
    ]


ALL = [(kind, case) for kind in CELLS for case in _cases(kind, 3, 4)]
EQUAL = [(kind, case) for kind in CELLS for case in _cases(kind, 4, 4)[:3]]


@pytest.mark.parametrize(
    "kind, case",
    [pytest.param(*row, id=f"{row[1].name}, different") for row in ALL]
    + [pytest.param(*row, id=f"{row[1].name}, equal") for row in EQUAL],
)
def test_a_recurrent_module_is_torchs(kind, case):
    theirs = randomized(case.theirs())
    for module in theirs.modules():
        _without_hidden_bias(module)
    if isinstance(theirs, nn.GRU):
        _zero_candidates(theirs)
    assert_there_and_back(case, theirs)


def _zero_candidates(gru):
    with torch.no_grad():
        for name, entry in gru.named_parameters():
            if name.startswith("bias_hh"):
                entry[2 * gru.hidden_size :] = 0


class ConfiguredGRU(nnx.GRUCell):
    """A subclass that only sets sizes is the same layer."""

    def __init__(self, rngs):
        super().__init__(3, 4, rngs=rngs)


@pytest.mark.parametrize("make", [lambda: nnx.GRUCell(3, 4, rngs=rngs()), lambda: ConfiguredGRU(rngs())])
def test_a_gru_with_a_hidden_candidate_bias_is_refused(make):
    theirs = randomized(nn.GRUCell(3, 4))
    with pytest.raises(
        js.StateDictError, match=r'"bias_hh"\[8:12\] is not zero, and the JAX module has no leaf'
    ):
        js.load_state_dict(built(make), theirs.state_dict())
    model = js.load_state_dict(built(make), _without_hidden_bias(theirs).state_dict())
    assert not np.array_equal(model.dense_i.bias[...], np.zeros(12))


def test_without_a_file_the_first_bias_takes_the_sum_and_the_second_is_zero():
    theirs = randomized(nn.LSTM(3, 4))
    sd = js.state_dict(js.load_state_dict(built(lambda: _rnn("LSTM", 3, 4)), theirs.state_dict()))
    assert np.array_equal(sd["bias_ih_l0"], (theirs.bias_ih_l0 + theirs.bias_hh_l0).detach().numpy())
    assert not sd["bias_hh_l0"].any()


def test_the_terms_of_another_sum_are_not_restored():
    theirs, other = randomized(nn.LSTM(3, 4)), randomized(nn.LSTM(3, 4), seed=9)
    model = js.load_state_dict(built(lambda: _rnn("LSTM", 3, 4)), theirs.state_dict())
    sd = js.state_dict(model, js.bind(model, like=other.state_dict()))
    assert not sd["bias_hh_l0"].any() and sd["bias_ih_l0"].any()


def test_multilayer_by_name_inside_a_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.lstm = nnx.List([_rnn("LSTM", 3, 4), _rnn("LSTM", 4, 4)])
            self.head = nnx.Linear(4, 2, rngs=rngs)

    keys = js.bind(built(lambda: Net(rngs())), multilayer=["lst*"]).keys
    assert keys[0] == "lstm.weight_ih_l0" and keys[7] == "lstm.bias_hh_l1" and keys[8] == "head.weight"


class Frames(nnx.Module):
    """A convolution over frequencies, whose channels an RNN reads frame by frame, flattened."""

    def __init__(self, cell):
        self.conv, self.rnn = nnx.Conv(3, 4, (1, 1), rngs=rngs()), nnx.RNN(cell(20, 20, rngs=rngs()))

    def __call__(self, x):
        x = self.conv(x)
        return self.rnn(x.reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_an_image_that_is_said_is_the_one_that_tracing_finds(cell):
    """Its own state is as wide as the image here, and is none."""
    model = Frames(cell)
    with pytest.raises(js.BindingError, match="rnn may read or make the flattened image of conv: 4 channels"):
        js.bind(model)
    said = js.bind(model, flatten={"rnn": (4, 5)})
    assert said == js.bind(model, jnp.ones((2, 3, 5, 3)))
    layouts = {row[0]: row[2] for row in said.rows}
    assert "(w c)" in layouts["rnn.weight_ih_l0"] and "c" not in layouts["rnn.weight_hh_l0"]
