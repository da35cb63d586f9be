"""Attention, normalised weights, low-rank adapters and containers, against torch's modules."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import Case, as_jax, assert_close, assert_there_and_back, built, noise, randomized, rngs
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations

import jaxstate as js


def _self_attention(module, x):
    return module(x, x, x)[0]


def _mha(width, heads, **options):
    return nn.MultiheadAttention(width, heads, batch_first=True, **options)


def _attention(width, heads):
    ours = lambda **o: nnx.MultiHeadAttention(heads, width, decode=False, **o, rngs=rngs())  # noqa: E731
    return [
        Case("packed", lambda: _mha(width, heads), ours, (2, 5, width), reference=_self_attention),
        Case(
            "packed without bias",
            lambda: _mha(width, heads, bias=False),
            lambda: ours(use_bias=False),
            (2, 5, width),
            reference=_self_attention,
        ),
        Case(
            "keys and values of another width",
            lambda: _mha(width, heads, kdim=width + 3, vdim=width + 3),
            lambda: ours(in_kv_features=width + 3),
            (2, 5, 2 * width + 3),
            call=lambda m, x: m(x[..., :width], x[..., width:]),
            reference=lambda m, x: m(x[..., :width], x[..., width:], x[..., width:])[0],
        ),
        Case(
            "separate",
            lambda: FourLinears(width, heads, heads),
            ours,
            (2, 5, width),
            options={"attention": "separate"},
        ),
        Case(
            "normalised queries and keys",
            lambda: FourLinears(width, heads, heads, normalised=True),
            lambda: ours(normalize_qk=True),
            (2, 5, width),
        ),
        Case(
            "grouped keys and values",
            lambda: FourLinears(width, heads, heads // 2),
            lambda: ours(num_kv_heads=heads // 2),
            (2, 5, width),
        ),
    ]


class FourLinears(nn.Module):
    """Attention as torch users write it by hand."""

    def __init__(self, width, heads, groups, normalised=False):
        super().__init__()
        self.heads, self.groups, depth = heads, groups, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, groups * depth)
        self.value = nn.Linear(width, groups * depth)
        self.out = nn.Linear(width, width)
        norm = (lambda: nn.LayerNorm(depth, 1e-6, bias=False)) if normalised else nn.Identity
        self.query_ln, self.key_ln = norm(), norm()

    def forward(self, x):
        split = lambda y, n: y.unflatten(-1, (n, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = (
            self.query_ln(split(self.query(x), self.heads)),
            split(self.key(x), self.groups),
            self.value(x),
        )
        repeat = self.heads // self.groups
        k, v = (y.repeat_interleave(repeat, 1) for y in (self.key_ln(k), split(v, self.groups)))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).flatten(2))


def _norm(wrap, layer):
    return lambda: wrap(layer())


def _weight_norm(name, theirs, ours, shape, image=False, **options):
    return Case(
        f"weight_norm {name}",
        _norm(parametrizations.weight_norm, theirs),
        lambda: nnx.WeightNorm(ours(), **options, rngs=rngs()),
        shape,
        image=image,
    )


def _weight_norms(i, o):
    linear, conv = lambda: nnx.Linear(i, o, rngs=rngs()), (3, 3)
    return [
        _weight_norm("Linear", lambda: nn.Linear(i, o), linear, (6, i)),
        _weight_norm(
            "Conv2d",
            lambda: nn.Conv2d(i, o, conv),
            lambda: nnx.Conv(i, o, conv, padding="VALID", rngs=rngs()),
            (2, i, 6, 7),
            True,
        ),
        _weight_norm(
            "ConvTranspose2d",
            lambda: nn.ConvTranspose2d(i, o, conv),
            lambda: nnx.ConvTranspose(i, o, conv, padding="VALID", rngs=rngs()),
            (2, i, 6, 7),
            True,
            feature_axes=-2,
        ),
        Case(
            "weight_norm of the whole",
            lambda: parametrizations.weight_norm(nn.Linear(i, o), dim=None),
            lambda: nnx.WeightNorm(linear(), feature_axes=None, rngs=rngs()),
            (6, i),
        ),
        Case(
            "weight_norm of the taps",
            lambda: parametrizations.weight_norm(nn.Conv1d(i, o, 3), dim=2),
            lambda: nnx.WeightNorm(
                nnx.Conv(i, o, (3,), padding="VALID", rngs=rngs()), feature_axes=0, rngs=rngs()
            ),
            (2, i, 6),
            image=True,
        ),
        Case(
            "weight_norm of taps that run backwards",
            lambda: parametrizations.weight_norm(nn.ConvTranspose1d(i, o, 3), dim=2),
            lambda: nnx.WeightNorm(
                nnx.ConvTranspose(i, o, (3,), padding="VALID", rngs=rngs()), feature_axes=0, rngs=rngs()
            ),
            (2, i, 6),
            image=True,
        ),
        Case(
            "weight_norm of several axes",
            lambda: parametrizations.weight_norm(nn.Linear(i, 2 * o)),
            lambda: nnx.WeightNorm(
                nnx.LinearGeneral(i, (2, o), rngs=rngs()), feature_axes=(-2, -1), rngs=rngs()
            ),
            (6, i),
            call=lambda m, x: m(x).reshape(6, -1),
        ),
    ]


def _spectral_norms(i, o):
    wrap = lambda layer: lambda: nnx.SpectralNorm(layer(), update_stats=False, rngs=rngs())  # noqa: E731
    return [
        Case(
            "spectral_norm Linear",
            _norm(parametrizations.spectral_norm, lambda: nn.Linear(i, o)),
            wrap(lambda: nnx.Linear(i, o, rngs=rngs())),
            (6, i),
        ),
        Case(
            "spectral_norm Conv2d",
            _norm(parametrizations.spectral_norm, lambda: nn.Conv2d(i, o, 3)),
            wrap(lambda: nnx.Conv(i, o, (3, 3), padding="VALID", rngs=rngs())),
            (2, i, 6, 7),
            True,
        ),
        Case(
            "spectral_norm ConvTranspose2d",
            _norm(parametrizations.spectral_norm, lambda: nn.ConvTranspose2d(i, o, 3)),
            wrap(lambda: nnx.ConvTranspose(i, o, (3, 3), padding="VALID", rngs=rngs())),
            (2, i, 6, 7),
            True,
        ),
    ]


class LowRank(nn.Module):
    """PEFT's names: a base layer and two factors."""

    def __init__(self, i, rank, o, base=True):
        super().__init__()
        self.base_layer = nn.Linear(i, o) if base else None
        self.lora_A, self.lora_B = nn.Linear(i, rank, bias=False), nn.Linear(rank, o, bias=False)

    def forward(self, x):
        return self.lora_B(self.lora_A(x)) + (self.base_layer(x) if self.base_layer else 0)


def _loras(i, o):
    return [
        Case(
            "LoRA",
            lambda: LowRank(i, 2, o, base=False),
            lambda: nnx.LoRA(i, 2, o, rngs=rngs()),
            (6, i),
        ),
        Case(
            "LoRA around a Linear",
            lambda: LowRank(i, 2, o),
            lambda: nnx.LoRA(i, 2, o, base_module=nnx.Linear(i, o, rngs=rngs()), rngs=rngs()),
            (6, i),
        ),
        Case(
            "LoRALinear",
            lambda: LowRank(i, 2, o),
            lambda: nnx.LoRALinear(i, o, lora_rank=2, rngs=rngs()),
            (6, i),
        ),
    ]


class ByName(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.parts = nn.ModuleDict({"b": nn.Linear(i, o), "a": nn.Linear(o, i)})

    def forward(self, x):
        return self.parts["a"](self.parts["b"](x))


class OursByName(nnx.Module):
    def __init__(self, i, o):
        self.parts = nnx.Dict(b=nnx.Linear(i, o, rngs=rngs()), a=nnx.Linear(o, i, rngs=rngs()))

    def __call__(self, x):
        return self.parts["a"](self.parts["b"](x))


def _through(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def _containers(i, o):
    ours = lambda: (nnx.Linear(i, o, rngs=rngs()), nnx.relu, nnx.Linear(o, i, rngs=rngs()))  # noqa: E731
    return [
        Case(
            "Sequential",
            lambda: nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(o, i)),
            lambda: nnx.Sequential(*ours()),
            (6, i),
        ),
        Case(
            "Sequential with dropout",
            lambda: nn.Sequential(nn.Linear(i, o), nn.Dropout(0.3), nn.Linear(o, i)),
            lambda: nnx.Sequential(ours()[0], nnx.Dropout(0.3, deterministic=True, rngs=rngs()), ours()[2]),
            (6, i),
        ),
        Case(
            "List",
            lambda: nn.ModuleList([nn.Linear(i, o), nn.Linear(o, i)]),
            lambda: nnx.List([ours()[0], ours()[2]]),
            (6, i),
            call=_through,
            reference=_through,
        ),
        Case("Dict", lambda: ByName(i, o), lambda: OursByName(i, o), (6, i)),
    ]


def cases():
    for name, (i, o) in {"different": (3, 5), "equal": (4, 4)}.items():
        for case in [*_attention(8, 2), *_weight_norms(i, o), *_loras(i, o), *_containers(i, o)]:
            yield pytest.param(case, id=f"{case.name}, {name}")
    yield pytest.param(_attention(4, 4)[0], id="packed, four heads of width one")


@pytest.mark.parametrize("case", list(cases()))
def test_a_module_is_torchs(case):
    assert_there_and_back(case)


@pytest.mark.parametrize("sizes", [(3, 5), (4, 4)])
@pytest.mark.parametrize("number", range(3))
def test_spectral_norm_from_a_converged_state(number, sizes):
    case = _spectral_norms(*sizes)[number]
    theirs = randomized(case.theirs()).train()
    for _ in range(300):
        theirs(case.input())
    assert_there_and_back(case, theirs.eval())


def test_a_weight_norm_that_was_called_still_says_the_same_function():
    case = _weight_norms(3, 5)[0]
    theirs = randomized(case.theirs())
    model = js.load_state_dict(built(case.ours), theirs.state_dict())
    model(as_jax(case.input()))
    again = randomized(case.theirs(), seed=5)
    again.load_state_dict({k: torch.from_numpy(v) for k, v in js.state_dict(model).items()})
    assert_close(again(case.input()).detach(), theirs(case.input()).detach())


def test_dropout_has_no_entries_and_keeps_its_random_state():
    model = nnx.Dropout(0.5, rngs=rngs(3))
    assert js.state_dict(model) == {}
    new = js.load_state_dict(model, {})
    assert (new(jnp.ones(64)) == nnx.Dropout(0.5, rngs=rngs(3))(jnp.ones(64))).all()


def test_attention_of_another_query_is_the_same():
    case = _attention(8, 2)[0]
    theirs = randomized(case.theirs())
    model = js.load_state_dict(built(case.ours), theirs.state_dict())
    q, kv = noise(2, 5, 8), noise(2, 7, 8, seed=4)
    assert_close(model(as_jax(q), as_jax(kv)), theirs(q, kv, kv)[0].detach())


def _of_every_kind():
    linear = lambda: nnx.Linear(3, 4, rngs=rngs())  # noqa: E731
    return nnx.List(
        [
            nnx.SpectralNorm(linear(), rngs=rngs()),
            nnx.WeightNorm(linear(), rngs=rngs()),
            nnx.BatchNorm(4, rngs=rngs()),
            nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs())),
            nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs()),
            nnx.PReLU(),
        ]
    )


def test_a_binding_of_every_kind_of_rule_survives_json():
    model = built(_of_every_kind)
    binding = js.bind(model)
    sd = {key: noise(*shape).numpy() for key, shape in binding.shapes.items() if "batches" not in key}
    like = binding.like(sd | {"2.num_batches_tracked": np.int64(5)})
    again = js.Binding.from_json(like.to_json())
    assert again == like and again != binding
    written = again.state_dict(binding.leaves(sd))
    assert all((written[key] == sd[key]).all() for key in sd)


@pytest.mark.parametrize("number", range(6))
def test_a_module_that_stands_twice_has_its_keys_twice(number):
    model = nnx.Dict(b=built(_of_every_kind)[number])
    model.a = model.b
    binding = js.bind(model)
    assert [key[2:] for key in binding.keys if key[0] == "b"] == [
        key[2:] for key in binding.keys if key[0] == "a"
    ]
    assert binding.keys[0][0] == "b" and all(key[0] == "b" for key in binding.parameters)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated:FutureWarning")
def test_a_weight_norm_of_an_older_file_goes_by_its_names():
    theirs = randomized(torch.nn.utils.weight_norm(nn.Conv1d(3, 5, 4), dim=2))
    file = theirs.state_dict()
    assert list(file) == ["bias", "weight_g", "weight_v"] and file["weight_g"].shape == (1, 1, 4)
    template = built(
        lambda: nnx.WeightNorm(
            nnx.Conv(3, 5, (4,), padding="VALID", rngs=rngs()), feature_axes=0, rngs=rngs()
        )
    )
    binding = js.bind(template, like=file)
    model = js.load_state_dict(template, file, binding)
    written = js.state_dict(model, binding)
    assert list(written) == list(file)
    assert all(written[key].tobytes() == x.numpy().tobytes() for key, x in file.items())
    x = noise(2, 3, 9)
    assert_close(model(as_jax(x, channels_last=True)), theirs(x).detach().moveaxis(1, -1))
