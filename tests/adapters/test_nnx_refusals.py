"""What has no counterpart in torch, or cannot be known, is refused with its reason and with what to pass."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import built, randomized, rngs
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations

import jaxstate as js


class Doubled(nnx.Linear):
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class Block(nnx.Module):
    def __init__(self):
        self.fc = nnx.Linear(3, 5, rngs=rngs())


class Pair(nnx.Module):
    def __init__(self):
        self.a, self.b = nnx.Linear(12, 5, rngs=rngs()), nnx.Linear(12, 5, rngs=rngs())


PAIRED = js.Rule("ab.weight", "{ab}.kernel", "i o -> (ab o) i", ab=("a", "b"))
FLATTENED = {"flatten": {"a": (3, 2, 2)}}


class Positions(nnx.Module):
    def __init__(self):
        self.pos = nnx.Param(jnp.zeros((1, 5, 3)))
        self.gain = nnx.Param(jnp.zeros(3))
        self.scale = nnx.Param(jnp.zeros(()))


class Codebook(nnx.Variable):
    """A variable type of the user's."""


class Quantizer(nnx.Module):
    def __init__(self):
        self.codes = Codebook(jnp.zeros((7, 3)))
        self.usage = Codebook(jnp.zeros(7))


class Dictionary(nnx.Module):
    def __init__(self):
        self.fc = nnx.Linear(2, 2, rngs=rngs())
        self.table = nnx.Param({"a": jnp.zeros(3)})


class Ring(nnx.Module):
    def __init__(self):
        self.child = Block()
        self.child.parent = self


class Transposed(nnx.Module):
    def __init__(self):
        self.tok, self.head = nnx.Embed(4, 4, rngs=rngs()), nnx.Linear(4, 4, rngs=rngs())
        self.head.kernel = self.tok.embedding


class TwoRnns(nnx.Module):
    """One cell, in two modules that torch has a module of its own for."""

    def __init__(self):
        cell = nnx.LSTMCell(3, 4, rngs=rngs())
        self.a, self.b = nnx.RNN(cell), nnx.RNN(cell)


def _linear():
    return nnx.Linear(3, 4, rngs=rngs())


def _up(**options):
    return nnx.ConvTranspose(4, 4, (2, 2), **options, rngs=rngs())


def _weight_norm(layer, **options):
    return nnx.WeightNorm(layer, **options, rngs=rngs())


def _spectral_norm(layer):
    return nnx.SpectralNorm(layer, rngs=rngs())


def _attention(**options):
    return nnx.MultiHeadAttention(4, 8, decode=False, **options, rngs=rngs())


REFUSED = [
    (
        "LinearGeneral with a batch",
        lambda: nnx.LinearGeneral(4, 5, batch_axis={0: 7}, rngs=rngs()),
        {},
        "LinearGeneral with batch_axis is a batch of matrices; torch.nn.Linear has one",
    ),
    (
        "Einsum with a batch",
        lambda: nnx.Einsum("bhe,hed->bhd", (2, 3, 4), rngs=rngs()),
        {},
        "['h'] make a batch of matrices; torch.nn.Linear has one",
    ),
    (
        "Einsum that sums its kernel",
        lambda: nnx.Einsum("be,edk->bd", (3, 4, 2), rngs=rngs()),
        {},
        "['k'] of the kernel meet no input and no output",
    ),
    (
        "WeightNorm of two of torch's dimensions",
        lambda: _weight_norm(_up(), feature_axes=(0, -1)),
        {},
        'scales axis h o of Rule("weight", "kernel", "h w i o -> i o ~h ~w"); torch\'s weight_norm '
        "scales one dimension of its weight, or all of it",
    ),
    (
        "WeightNorm without magnitudes",
        lambda: _weight_norm(_linear(), use_scale=False),
        {},
        "has no magnitudes, torch's weight_norm has",
    ),
    (
        "WeightNorm of several weights",
        lambda: _weight_norm(_attention()),
        {},
        "without one weight has no counterpart",
    ),
    ("WeightNorm of a block", lambda: _weight_norm(Block()), {}, "without one weight has no counterpart"),
    ("SpectralNorm of a block", lambda: _spectral_norm(Block()), {}, "without one kernel has no counterpart"),
    (
        "SpectralNorm of an embedding",
        lambda: _spectral_norm(nnx.Embed(3, 4, rngs=rngs())),
        {},
        "without one kernel has no counterpart",
    ),
    (
        "SpectralNorm of the other axis",
        lambda: _spectral_norm(_up(transpose_kernel=True)),
        {},
        'iterates over axis i of Rule("weight", "kernel", "h w o i -> i o h w"), torch\'s spectral_norm '
        "over the output axis, o",
    ),
    (
        "SpectralNorm of one of several output axes",
        lambda: _spectral_norm(nnx.LinearGeneral(4, (2, 2), rngs=rngs())),
        {},
        "torch's spectral_norm over the output axis, a1 a2",
    ),
    (
        "grouped heads, packed",
        lambda: _attention(num_kv_heads=2),
        {"attention": "packed"},
        "torch.nn.MultiheadAttention has as many key and value heads as query heads; "
        'bind with attention="separate"',
    ),
    (
        "normalised queries, packed",
        lambda: _attention(normalize_qk=True),
        {"attention": "packed"},
        "torch.nn.MultiheadAttention has no normalised queries and keys",
    ),
    (
        "attention of other widths, packed",
        lambda: _attention(qkv_features=16),
        {"attention": "packed"},
        "torch.nn.MultiheadAttention has one width for inputs, heads together, and outputs",
    ),
    (
        "a layer with a call of its own",
        lambda: Doubled(3, 4, rngs=rngs()),
        {},
        "kernel of shape (3, 4) in Doubled (a Linear with a __call__ of its own): its layout is not known",
    ),
    (
        "a variable type of the user's",
        Quantizer,
        {},
        'Rule("codes", "codes", "a b -> a b")  # JAX -> torch',
    ),
    ("a variable that holds no array", Dictionary, {}, "these variables hold no array: table (dict)"),
    ("a module that holds itself", Ring, {}, "the model holds itself, below child.parent"),
    ("one variable in two layouts", Transposed, {}, "two parameters, one the transpose of the other"),
    (
        "an RNN around a cell of the user's",
        lambda: nnx.RNN(Block()),
        {},
        "RNN around Block is no layer of a torch.nn.LSTM, GRU or RNN; give its class rules: "
        "js.bind(model, layers={RNN: lambda module: [Rule(...), ...]})",
    ),
    (
        "layers that are no RNN",
        lambda: nnx.List([_linear()]),
        {"multilayer": ""},
        "Linear is no layer of a torch.nn.LSTM, GRU or RNN",
    ),
    ("multilayer that names nothing", _linear, {"multilayer": "rnn*"}, "multilayer=['rnn*']: no nnx.List"),
    ("stacked that names nothing", _linear, {"stacked": {"rnn": 0}}, "no layer has a name like that"),
    (
        "stacked along an axis that is not there",
        _linear,
        {"stacked": {"": 3}},
        "stacked={\"\": 3}: no one length along that axis in {'kernel': (",
    ),
    (
        "one parameter that meets two images",
        Pair,
        {"rules": [PAIRED], "flatten": {"a": (3, 2, 2), "b": (2, 3, 2)}},
        "meet different images, a.kernel (3, 2, 2), b.kernel (2, 3, 2), and one parameter of",
    ),
    (
        "an image that a rule has split already",
        Pair,
        {"rules": [js.Rule("a.weight", "a.kernel", "(h w c) o -> o (c h w)", h=2, w=2)], **FLATTENED},
        "h=2, w=2) is a flattened image; give the Rule that splits it",
    ),
    ("attention that is no choice", _linear, {"attention": "fused"}, 'say "packed", "separate" or nothing'),
    (
        "a rule that names no leaf",
        _linear,
        {"rules": [js.Rule("w", "weight", "i o -> o i")]},
        "a rule names weight, and there is no such leaf",
    ),
    (
        "a cell in two modules",
        TwoRnns,
        {},
        "shares a.cell.ii.kernel, a.cell.if_.kernel, a.cell.ig.kernel, a.cell.io.kernel with another layer",
    ),
    (
        "low rank around a block",
        lambda: nnx.LoRA(3, 2, 5, base_module=Block(), rngs=rngs()),
        {},
        "leaf base_module.fc.kernel of shape (3, 5) has no rule",
    ),
]


@pytest.mark.parametrize("make, options, reason", [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_it_is_refused_with_its_reason(make, options, reason):
    with pytest.raises(js.BindingError, match=re.escape(reason)):
        js.bind(make(), **options)


def _pasted(message):
    lines = re.findall(r"(Rule\(.*\))  # JAX -> torch", message)
    return [eval(line, {"Rule": js.Rule}) for line in lines]


@pytest.mark.parametrize(
    "make, keys",
    [
        (Positions, ["pos", "gain", "scale"]),
        (Quantizer, ["codes", "usage"]),
        (lambda: Doubled(3, 4, rngs=rngs()), ["kernel", "bias"]),
    ],
)
def test_the_rule_of_the_message_works_when_pasted(make, keys):
    with pytest.raises(js.BindingError) as refused:
        js.bind(make())
    binding = js.bind(make(), rules=_pasted(str(refused.value)))
    assert list(binding.keys) == keys
    sd = {key: np.float32(np.random.standard_normal(shape)) for key, shape in binding.shapes.items()}
    again = js.state_dict(js.load_state_dict(make(), sd, binding), binding)
    assert all(np.array_equal(again[key], sd[key]) for key in keys)


def test_rules_for_a_class_work_wherever_it_stands():
    rules = {
        Doubled: lambda module: [js.Rule("weight", "kernel", "i o -> o i"), js.Rule("bias", "bias", "o -> o")]
    }
    model = nnx.Sequential(Doubled(3, 4, rngs=rngs()), Doubled(4, 2, rngs=rngs()))
    theirs = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    binding = js.bind(model, layers=rules)
    assert list(binding.keys) == list(theirs.state_dict())
    new = js.load_state_dict(model, theirs.state_dict(), binding)
    assert np.array_equal(new.layers[1].kernel[...], theirs[1].weight.detach().numpy().T)


def test_rules_for_a_class_work_around_a_cell_of_the_users():
    rules = {
        nnx.RNN: lambda module: [
            js.Rule("w", "cell.fc.kernel", "i o -> o i"),
            js.Rule("b", "cell.fc.bias", "o -> o"),
        ]
    }
    assert js.bind(nnx.RNN(Block()), layers=rules).keys == ("w", "b")


def test_statistics_that_torch_does_not_track_are_missing_unless_not_strict():
    theirs = randomized(nn.BatchNorm1d(4, track_running_stats=False))
    model = nnx.BatchNorm(4, use_running_average=False, rngs=rngs())
    with pytest.raises(js.StateDictError, match='Missing key.*"running_mean", "running_var"'):
        js.load_state_dict(model, theirs.state_dict())
    new = js.load_state_dict(model, theirs.state_dict(), strict=False)
    assert np.array_equal(new.scale[...], theirs.weight.detach()) and (new.var[...] == 1).all()


@pytest.mark.parametrize(
    "theirs, ours, text",
    [
        (
            lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            lambda: nnx.InstanceNorm(4, rngs=rngs()),
            'Unexpected key.*"running_mean", "running_var"',
        ),
        (
            lambda: nn.LSTM(3, 4, proj_size=2),
            lambda: nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs())),
            'Unexpected key.*"weight_hr_l0"',
        ),
        (
            lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
            lambda: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs()),
            'Unexpected key.*"bias_k", "bias_v"',
        ),
        (
            lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=5),
            lambda: nnx.MultiHeadAttention(2, 8, in_kv_features=6, decode=False, rngs=rngs()),
            r"size mismatch for v_proj_weight.*\[8, 5\].*\[8, 6\]",
        ),
        (
            lambda: nn.LSTM(3, 4, bias=False),
            lambda: nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs())),
            'Missing key.*"bias_ih_l0"',
        ),
        (
            lambda: nn.ConvTranspose2d(4, 4, 3, groups=2),
            lambda: nnx.ConvTranspose(4, 4, (3, 3), rngs=rngs()),
            r"size mismatch for weight.*\[4, 2, 3, 3\].*\[4, 4, 3, 3\]",
        ),
        (
            lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
            lambda: _linear(),
            'Missing key.*"weight"',
        ),
    ],
)
def test_a_torch_module_that_nnx_has_none_for_is_refused(theirs, ours, text):
    with pytest.raises(js.StateDictError, match=f"(?s){text}"):
        js.load_state_dict(built(ours), theirs().state_dict())


def test_a_raw_file_of_another_type_is_refused():
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like"):
        js.load_state_dict(_linear(), [torch.zeros(3)])


class Normed(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(2, 3, (1, 1), rngs=rngs())
        self.fc = nnx.SpectralNorm(nnx.Linear(12, 5, rngs=rngs()), rngs=rngs())

    def __call__(self, x):
        x = self.conv(x)
        return self.fc(x.reshape(x.shape[0], -1), update_stats=False)


def test_a_power_iteration_over_a_flattened_image_is_refused():
    """Its vectors would have to be reordered as well, and no layout says so."""
    with pytest.raises(
        js.BindingError, match="fc.layer_instance.kernel, .* meet a flattened image, and their"
    ):
        js.bind(Normed(), jnp.ones((1, 2, 2, 2)))


WRAPPED = {
    "alone": lambda linear: linear,
    "WeightNorm": lambda linear: nnx.WeightNorm(linear, rngs=rngs()),
    "SpectralNorm": lambda linear: nnx.SpectralNorm(linear, rngs=rngs()),
    "LoRA": lambda linear: nnx.LoRA(75, 2, 5, base_module=linear, rngs=rngs()),
}


class Flattening(nnx.Module):
    def __init__(self, wrap):
        self.conv, self.fc = nnx.Conv(2, 3, (1, 1), rngs=rngs()), wrap(nnx.Linear(75, 5, rngs=rngs()))


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_does_not_hide_a_flatten(name):
    model = Flattening(WRAPPED[name])
    with pytest.raises(
        js.BindingError, match="fc may read or make the flattened image of conv: 3 channels of"
    ):
        js.bind(model)
    assert js.bind(model, flatten={}).shapes["conv.weight"] == (3, 2, 1, 1)
    if name == "SpectralNorm":
        with pytest.raises(js.BindingError, match="meet a flattened image, and their rule is no layout"):
            js.bind(model, flatten={"fc": (3, 5, 5)})
    else:
        rows = js.bind(model, flatten={"fc": (3, 5, 5)}).rows
        assert any("(h w c) o -> o (c h w)" in row[2] for row in rows)
