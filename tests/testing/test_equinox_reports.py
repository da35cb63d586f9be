"""Reports on models in Equinox: what is recorded inside vmap, scan and jit, gradients, training, settings."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from twins import TorchLSTM, TorchMLP, noise, randomized

import jaxstate as js
from jaxstate.testing import assert_same_gradients, assert_same_outputs, assert_same_training

KEY = jax.random.key(0)


def linear(i, o):
    return eqx.nn.Linear(i, o, key=KEY)


class MLP(eqx.Module):
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    fc3: eqx.nn.Linear
    head: eqx.nn.Linear
    silu: object = eqx.field(static=True, default=jax.nn.silu)

    def __call__(self, x):
        x = self.silu(self.fc2(jax.nn.relu(self.fc1(x))))
        return self.head(jnp.tanh(self.fc3(x)))


class LSTM(eqx.Module):
    """A cell that runs in a scan: what torch does in one call."""

    rnn: eqx.nn.LSTMCell
    fc: eqx.nn.Linear

    def __call__(self, xs):
        def step(carry, x):
            carry = self.rnn(x, carry)
            return carry, carry[0]

        return jax.vmap(self.fc)(jax.lax.scan(step, (jnp.zeros(5), jnp.zeros(5)), xs)[1])


def mapped(model, x):
    return jax.vmap(model)(x)


def made(theirs, ours, **options):
    theirs = randomized(theirs).eval()
    return theirs, js.load_state_dict(ours, theirs.state_dict(), js.bind(ours, **options))


def mlp(**options):
    return made(TorchMLP(), MLP(linear(6, 6), linear(6, 6), linear(6, 6), linear(6, 4), **options))


def report_of(*arguments, **options):
    with pytest.raises(js.ParityError) as caught:
        assert_same_outputs(*arguments, **options)
    return str(caught.value)


CALLS = {
    "mapped": mapped,
    "jitted": eqx.filter_jit(mapped),
    "taken apart": lambda model, x: eqx.filter_vmap(lambda m, x: m(x), in_axes=(None, 0))(model, x),
    "another vmap": lambda model, x: jax.vmap(jax.vmap(model))(x[None])[0],
    "a scan": lambda model, x: jax.lax.map(model, x),
}


@pytest.mark.parametrize("how", CALLS)
def test_layers_are_recorded_however_the_model_is_mapped(how):
    theirs, model = mlp()
    before = eqx.nn.Linear.__call__, MLP.__call__
    rows = js.testing.compare(theirs, model, noise(3, 6), call=CALLS[how]).rows
    assert (eqx.nn.Linear.__call__, MLP.__call__) == before and type(model.fc1) is eqx.nn.Linear
    names = ["fc1", "fc2", "fc3", "head", "output"]
    assert [row.name for row in rows] == names
    assert all(row.distance.relative < 1e-6 for row in rows)


def test_an_activation_and_its_gradient():
    theirs, model = mlp()
    assert_same_gradients(theirs, model, noise(3, 6), call=mapped)
    _, other = mlp(silu=jax.nn.relu)
    report = report_of(theirs, other, noise(3, 6), call=mapped)
    assert 'after "fc2", which agrees, what "fc3" (Linear), in JAX "fc3" (Linear) reads differs' in report
    assert "relu where torch computes silu" in report and "mend:  jax.nn.silu(x)" in report
    with pytest.raises(js.ParityError, match='gradients differ(?s:.*)meets "head.weight" first'):
        assert_same_gradients(theirs, other, noise(3, 6), call=mapped)


def test_training():
    theirs, model = mlp()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    losses = dict(
        torch_loss=lambda m, x: m(x).square().mean(), loss=lambda m, x: (jax.vmap(m)(x) ** 2).mean()
    )
    batches = [(noise(3, 6, seed=n),) for n in range(3)]
    assert_same_training(theirs, optimizer, model, js.optim.adamw(lr=1e-2), batches, **losses)
    with pytest.raises(js.ParityError, match="training differs after step 1 of 3"):
        assert_same_training(theirs, optimizer, model, optax.sgd(1e-2), batches, **losses)


def test_the_steps_of_a_cell_in_a_scan_are_compared_with_torchs_one_call():
    lstm = LSTM(eqx.nn.LSTMCell(5, 5, key=KEY), linear(5, 3))
    theirs, model = made(TorchLSTM(), lstm, multilayer="rnn")
    options = dict(binding=js.bind(model, multilayer="rnn"), call=mapped)
    rows = js.testing.compare(theirs, model, noise(2, 4, 5), **options).rows
    assert [row.name for row in rows] == ["rnn", "fc", "output"]
    assert all(row.distance.relative < 1e-6 for row in rows)
    entries = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    wrong = {**entries, "rnn.weight_ih_l0": entries["rnn.weight_hh_l0"]}
    model = js.load_state_dict(model, wrong, options["binding"])
    report = report_of(theirs, model, noise(2, 4, 5), **options)
    assert 'first layer that differs: "rnn" (LSTM), in JAX "rnn" (LSTMCell)' in report
    assert 'cause: JAX holds "rnn.weight_ih_l0" replaced by torch\'s "rnn.weight_hh_l0"' in report


def test_how_a_stateful_model_is_called_has_to_be_said():
    pair = eqx.nn.make_with_state(lambda key: eqx.nn.BatchNorm(4, "batch", mode="batch"))(KEY)
    with pytest.raises(js.ParityError, match=r"has to be said: call=lambda pair, x: jax.vmap\("):
        assert_same_outputs(torch.nn.BatchNorm1d(4).eval(), pair, noise(3, 4))


def evaluated(pair, x):
    return in_training((eqx.nn.inference_mode(pair[0]), pair[1]), x)


def in_training(pair, x):
    run = jax.vmap(pair[0], axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return run(x, pair[1])[0]


@pytest.mark.parametrize(
    ("mode", "cause", "mend"),
    [
        ("batch", "has batch statistics True, and torch False", "BatchNorm(..., inference=True)"),
        ("ema", "moves its running statistics with the batch before it uses", "eqx.nn.inference_mode(model)"),
    ],
)
def test_a_batch_norm_in_training(mode, cause, mend):
    norm = eqx.nn.make_with_state(lambda key: eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode=mode))(KEY)
    theirs, pair = made(torch.nn.BatchNorm1d(4), norm)
    assert_same_outputs(theirs, pair, noise(3, 4), call=evaluated)
    report = report_of(theirs, pair, noise(3, 4), call=in_training)
    assert f"cause: JAX {cause}" in report and f"mend:  {mend}" in report
    assert 'first layer that differs: "the model" (BatchNorm1d), in JAX "" (BatchNorm)' in report


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")
        self.bn = torch.nn.BatchNorm2d(6, momentum=0.2)
        self.up = torch.nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1, padding=1)
        self.group = torch.nn.GroupNorm(2, 4, eps=1e-3)
        self.rms = torch.nn.RMSNorm(4)


class Ours(eqx.Module):
    conv: eqx.nn.Conv2d
    bn: eqx.nn.BatchNorm
    up: eqx.nn.ConvTranspose2d
    group: eqx.nn.GroupNorm
    rms: eqx.nn.RMSNorm

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(4, 6, 3, padding=2, dilation=1, key=key)
        self.bn = eqx.nn.BatchNorm(6, "batch", mode="batch", inference=True)
        self.up = eqx.nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, key=key)
        self.group = eqx.nn.GroupNorm(4, 4)
        self.rms = eqx.nn.RMSNorm(4, use_bias=False)


def test_settings_that_differ_are_listed_with_what_mends_them():
    model = eqx.filter_eval_shape(eqx.nn.make_with_state(Ours), KEY)
    rows = js.testing.warnings(Theirs().eval(), model)
    assert {(w.name, w.setting): w.mend for w in rows} == {
        ("conv", "padding"): "Conv2d(..., padding=((1, 1), (1, 1)))",
        ("conv", "padding mode"): 'Conv2d(..., padding_mode="CIRCULAR")',
        ("bn", "momentum"): "BatchNorm(..., momentum=0.8)",
        ("up", "padding"): "ConvTranspose2d(..., padding=((1, 2), (1, 2)))",
        ("group", "eps"): "GroupNorm(..., eps=0.001)",
        ("group", "num_groups"): "GroupNorm(..., groups=2)",
        ("rms", "eps"): "RMSNorm(..., eps=1.19e-07)",
    }
