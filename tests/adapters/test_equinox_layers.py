"""Every layer of equinox.nn that has a twin in torch: the same function, and the same bits back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from equinox_twins import Case, assert_there_and_back, evaluated
from torch import nn
from torch.nn.utils import parametrizations

SIZES = {"different": (3, 5), "equal": (4, 4)}


def _linear(i, o):
    return [
        Case("Linear", lambda: nn.Linear(i, o), lambda k: eqx.nn.Linear(i, o, key=k), (7, i)),
        Case(
            "Linear without bias",
            lambda: nn.Linear(i, o, bias=False),
            lambda k: eqx.nn.Linear(i, o, use_bias=False, key=k),
            (7, i),
        ),
        Case(
            "Linear to a scalar",
            lambda: nn.Linear(i, 1),
            lambda k: eqx.nn.Linear(i, "scalar", key=k),
            (7, i),
            call=lambda m, x: jax.vmap(m)(x)[:, None],
        ),
        Case(
            "Embedding",
            lambda: nn.Embedding(i, o),
            lambda k: eqx.nn.Embedding(i, o, key=k),
            (12,),
            integers=i,
        ),
        Case("PReLU", lambda: nn.PReLU(), lambda k: eqx.nn.PReLU(), (6, o)),
        Case("PReLU of vectors", lambda: nn.PReLU(o), lambda k: eqx.nn.PReLU(jnp.ones(o)), (6, o)),
        Case(
            "PReLU of images", lambda: nn.PReLU(o), lambda k: eqx.nn.PReLU(jnp.ones((o, 1, 1))), (6, o, 3, 2)
        ),
        Case(
            "Sequential",
            lambda: nn.Sequential(nn.Linear(i, o), nn.Tanh(), nn.Linear(o, i)),
            lambda k: eqx.nn.Sequential(
                [eqx.nn.Linear(i, o, key=k), eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(o, i, key=k)]
            ),
            (7, i),
        ),
    ]


def _conv(dims, i, o):
    kernel, image = (2, 3, 4)[:dims] if i != o else (3,) * dims, (7, 6, 5)[:dims]
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    ours = (eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d)[dims - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    our_up = (eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d, eqx.nn.ConvTranspose3d)[dims - 1]

    def case(name, theirs, ours, channels=(i, o), bias=True, **options):
        a, b = channels
        return Case(
            f"{ours.__name__}{name}",
            lambda: theirs(a, b, kernel, bias=bias, **options),
            lambda k: ours(a, b, kernel, use_bias=bias, **options, key=k),
            (2, a, *(2 * n for n in image)),
        )

    return [
        case("", theirs, ours),
        case(" strided, padded, without bias", theirs, ours, bias=False, stride=2, padding=1),
        case(" dilated", theirs, ours, dilation=2),
        case(" grouped", theirs, ours, (2 * i, 2 * o), groups=2),
        case(" depthwise", theirs, ours, (i, 2 * i), groups=i),
        case("", up, our_up, stride=2, padding=1),
        case(
            " grouped, dilated", up, our_up, (2 * i, 2 * o), stride=3, groups=2, dilation=2, output_padding=1
        ),
        case(" without bias", up, our_up, bias=False),
    ]


def _norms(c):
    def batch(name, theirs, shape, **options):
        return Case(
            f"BatchNorm{name}",
            theirs,
            lambda k: eqx.nn.BatchNorm(c, "batch", **options),
            shape,
            call=evaluated,
        )

    return [
        batch("1d", lambda: nn.BatchNorm1d(c), (6, c), mode="ema"),
        batch("2d", lambda: nn.BatchNorm2d(c), (6, c, 5, 4), mode="ema", momentum=0.9),
        batch("3d of batches", lambda: nn.BatchNorm3d(c), (6, c, 3, 2, 4), mode="batch"),
        batch(
            "2d without affine",
            lambda: nn.BatchNorm2d(c, affine=False),
            (6, c, 5, 4),
            mode="batch",
            channelwise_affine=False,
        ),
        Case("LayerNorm", lambda: nn.LayerNorm(c), lambda k: eqx.nn.LayerNorm(c), (6, c)),
        Case(
            "LayerNorm of images",
            lambda: nn.LayerNorm((c, 3, 2)),
            lambda k: eqx.nn.LayerNorm((c, 3, 2)),
            (6, c, 3, 2),
        ),
        Case(
            "LayerNorm without bias",
            lambda: nn.LayerNorm(c, bias=False),
            lambda k: eqx.nn.LayerNorm(c, use_bias=False),
            (6, c),
        ),
        Case(
            "GroupNorm", lambda: nn.GroupNorm(2, 2 * c), lambda k: eqx.nn.GroupNorm(2, 2 * c), (3, 2 * c, 5)
        ),
        Case("RMSNorm", lambda: nn.RMSNorm(c, 1e-5), lambda k: eqx.nn.RMSNorm(c), (6, c)),
        Case(
            "RMSNorm without bias",
            lambda: nn.RMSNorm((3, c), 1e-5),
            lambda k: eqx.nn.RMSNorm((3, c), use_bias=False),
            (6, 3, c),
        ),
    ]


def _attention(e):
    biased = dict.fromkeys([f"use_{name}_bias" for name in ("query", "key", "value", "output")], True)
    own = lambda m, x: jax.vmap(m)(x, x, x)  # noqa: E731
    return [
        Case(
            "MultiheadAttention",
            lambda: nn.MultiheadAttention(2 * e, 2, batch_first=True),
            lambda k: eqx.nn.MultiheadAttention(2, 2 * e, **biased, key=k),
            (3, 4, 2 * e),
            call=own,
            reference=lambda m, x: m(x, x, x)[0],
        ),
        Case(
            "MultiheadAttention of three widths, without bias",
            lambda: nn.MultiheadAttention(2 * e, 2, bias=False, kdim=e, vdim=e + 1, batch_first=True),
            lambda k: eqx.nn.MultiheadAttention(2, 2 * e, e, e + 1, key=k),
            (3, 4, 2 * e),
            call=lambda m, x: jax.vmap(m)(x, x[..., :e], x[..., : e + 1]),
            reference=lambda m, x: m(x, x[..., :e], x[..., : e + 1])[0],
        ),
        Case(
            "MultiheadAttention as four Linear",
            lambda: nn.ModuleDict(
                {
                    f"{n}_proj": nn.Linear(2 * e, 2 * e, bias=False)
                    for n in ("query", "key", "value", "output")
                }
            ),
            lambda k: eqx.nn.MultiheadAttention(2, 2 * e, key=k),
            (3, 4, 2 * e),
            call=own,
            reference=lambda m, x: m["output_proj"](
                nn.functional.scaled_dot_product_attention(
                    *(
                        m[f"{n}_proj"](x).unflatten(-1, (2, e)).transpose(1, 2)
                        for n in ("query", "key", "value")
                    )
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            options={"attention": "separate"},
        ),
    ]


def _cells(i, h):
    def pair(x):
        return x[:, :i], x[:, i : i + h], x[:, i + h :]

    def lstm(m, x):
        a, b, c = pair(x)
        return jnp.concatenate(jax.vmap(m)(a, (b, c)), -1)

    def torch_lstm(m, x):
        import torch

        a, b, c = pair(x)
        return torch.cat(m(a, (b, c)), -1)

    return [
        Case(
            "LSTMCell",
            lambda: nn.LSTMCell(i, h),
            lambda k: eqx.nn.LSTMCell(i, h, key=k),
            (5, i + 2 * h),
            call=lstm,
            reference=torch_lstm,
            lossy=True,
        ),
        Case(
            "GRUCell",
            lambda: nn.GRUCell(i, h),
            lambda k: eqx.nn.GRUCell(i, h, key=k),
            (5, i + 2 * h),
            call=lambda m, x: jax.vmap(m)(*pair(x)[:2]),
            reference=lambda m, x: m(*pair(x)[:2]),
            lossy=True,
        ),
        Case(
            "GRUCell without bias",
            lambda: nn.GRUCell(i, h, bias=False),
            lambda k: eqx.nn.GRUCell(i, h, use_bias=False, key=k),
            (5, i + 2 * h),
            call=lambda m, x: jax.vmap(m)(*pair(x)[:2]),
            reference=lambda m, x: m(*pair(x)[:2]),
        ),
    ]


def _wrappers(i, o):
    weight, spectral = parametrizations.weight_norm, parametrizations.spectral_norm
    image = (2, i, 6, 5)
    return [
        Case(
            "WeightNorm of Linear",
            lambda: weight(nn.Linear(i, o)),
            lambda k: eqx.nn.WeightNorm(eqx.nn.Linear(i, o, key=k)),
            (7, i),
        ),
        Case(
            "WeightNorm of Conv2d",
            lambda: weight(nn.Conv2d(i, o, (2, 3))),
            lambda k: eqx.nn.WeightNorm(eqx.nn.Conv2d(i, o, (2, 3), key=k)),
            image,
        ),
        Case(
            "WeightNorm of inputs",
            lambda: weight(nn.Conv2d(i, o, (2, 3)), dim=1),
            lambda k: eqx.nn.WeightNorm(eqx.nn.Conv2d(i, o, (2, 3), key=k), axis=1),
            image,
        ),
        Case(
            "WeightNorm of Linear as a whole",
            lambda: weight(nn.Linear(i, o), dim=None),
            lambda k: eqx.nn.WeightNorm(eqx.nn.Linear(i, o, key=k), axis=None),
            (7, i),
        ),
        Case(
            "WeightNorm of ConvTranspose2d",
            lambda: weight(nn.ConvTranspose2d(i, o, (2, 3))),
            lambda k: eqx.nn.WeightNorm(eqx.nn.ConvTranspose2d(i, o, (2, 3), key=k), axis=1),
            image,
        ),
        Case(
            "SpectralNorm of Linear",
            lambda: spectral(nn.Linear(i, o)),
            lambda k: eqx.nn.SpectralNorm(eqx.nn.Linear(i, o, key=k), "weight", key=k),
            (7, i),
            call=evaluated,
        ),
        Case(
            "SpectralNorm of Conv2d",
            lambda: spectral(nn.Conv2d(i, o, (2, 3))),
            lambda k: eqx.nn.SpectralNorm(eqx.nn.Conv2d(i, o, (2, 3), key=k), "weight", key=k),
            image,
            call=evaluated,
        ),
        Case(
            "SpectralNorm of ConvTranspose2d",
            lambda: spectral(nn.ConvTranspose2d(i, o, (2, 3))),
            lambda k: eqx.nn.SpectralNorm(eqx.nn.ConvTranspose2d(i, o, (2, 3), key=k), "weight", key=k),
            image,
            call=evaluated,
        ),
    ]


def cases(pair):
    """Where all sizes are equal, only what could be taken for its own transpose."""
    i, o = pair
    linear, planes, attention, wrappers = _linear(i, o), _conv(2, i, o), _attention(o), _wrappers(i, o)
    if i == o:
        return [linear[0], planes[0], planes[5], attention[0], _cells(i, o)[1], wrappers[3], wrappers[6]]
    others = [_conv(dims, i, o)[n] for dims in (1, 3) for n in (0, 3, 6)]
    return [*linear, *_norms(o), *attention, *_cells(i, o), *wrappers, *planes, *others]


ALL = [pytest.param(case, id=f"{case.name}, {name}") for name, pair in SIZES.items() for case in cases(pair)]


@pytest.mark.parametrize("case", ALL)
def test_a_layer_is_torchs_layer(case):
    assert_there_and_back(case)
