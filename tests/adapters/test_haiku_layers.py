"""Every layer of Haiku that has a twin in torch: the same function, and the same bits back."""

import haiku as hk
import jax.numpy as jnp
import pytest
import torch
from haiku_twins import Case, assert_there_and_back
from torch import nn

SIZES = {"different": (3, 5), "equal": (4, 4)}


def _linear(i, o):
    return [
        Case("Linear", lambda: nn.Linear(i, o), lambda x: hk.Linear(o)(x), (7, i)),
        Case(
            "Linear without bias",
            lambda: nn.Linear(i, o, bias=False),
            lambda x: hk.Linear(o, with_bias=False)(x),
            (7, i),
        ),
        Case("Embed", lambda: nn.Embedding(i, o), lambda x: hk.Embed(i, o)(x), (12,), integers=i),
    ]


def _conv(dims, i, o):
    kernel, image = (2, 3, 4)[:dims] if i != o else (3,) * dims, (7, 6, 5)[:dims]
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    ours = (hk.Conv1D, hk.Conv2D, hk.Conv3D)[dims - 1]
    depthwise = (hk.DepthwiseConv1D, hk.DepthwiseConv2D, hk.DepthwiseConv3D)[dims - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    our_up = (hk.Conv1DTranspose, hk.Conv2DTranspose, hk.Conv3DTranspose)[dims - 1]
    first = "NC" + "DHW"[-dims:]
    pads = [(k - 1, k - 1) for k in kernel]

    def case(name, theirs, ours, channels=(i, o), image_last=True):
        return Case(
            f"{name} in {dims}d",
            theirs,
            ours,
            (2, channels[0], *(2 * n for n in image)),
            image=image_last,
        )

    return [
        case(
            "Conv",
            lambda: theirs(i, o, kernel, stride=2),
            lambda x: ours(o, kernel, stride=2, padding="VALID")(x),
        ),
        case(
            "Conv, channels first",
            lambda: theirs(i, o, kernel),
            lambda x: ours(o, kernel, padding="VALID", data_format=first)(x),
            image_last=False,
        ),
        case(
            "Conv grouped, dilated, without bias",
            lambda: theirs(2 * i, 2 * o, kernel, groups=2, dilation=2, bias=False),
            lambda x: ours(2 * o, kernel, rate=2, padding="VALID", with_bias=False, feature_group_count=2)(x),
            (2 * i, 2 * o),
        ),
        case(
            "DepthwiseConv",
            lambda: theirs(i, 2 * i, kernel, groups=i),
            lambda x: depthwise(2, kernel, padding="VALID")(x),
        ),
        case(
            "ConvTranspose",
            lambda: up(i, o, kernel, stride=2),
            lambda x: our_up(o, kernel, stride=2, padding=pads)(x),
        ),
        case(
            "ConvTranspose, channels first",
            lambda: up(i, o, kernel),
            lambda x: our_up(o, kernel, padding=pads, data_format=first)(x),
            image_last=False,
        ),
    ]


def _norms(c):
    def batch(name, theirs, shape, **options):
        settings = {"create_scale": True, "create_offset": True, **options}
        last = settings.pop("data_format", "channels_last") == "channels_last"
        more = {} if last else {"data_format": "channels_first"}
        return Case(
            f"BatchNorm{name}",
            theirs,
            lambda x, training: hk.BatchNorm(**settings, decay_rate=0.9, **more)(x, training),
            shape,
            image=last,
            state=True,
        )

    return [
        batch("1d", lambda: nn.BatchNorm1d(c), (6, c)),
        batch("2d", lambda: nn.BatchNorm2d(c), (6, c, 5, 4)),
        batch("2d, channels first", lambda: nn.BatchNorm2d(c), (6, c, 5, 4), data_format="channels_first"),
        batch(
            "2d without affine",
            lambda: nn.BatchNorm2d(c, affine=False),
            (6, c, 5, 4),
            create_scale=False,
            create_offset=False,
        ),
        Case("LayerNorm", lambda: nn.LayerNorm(c), lambda x: hk.LayerNorm(-1, True, True)(x), (6, c)),
        Case(
            "LayerNorm of two axes",
            lambda: nn.LayerNorm((3, c)),
            lambda x: hk.LayerNorm((-2, -1), True, True, param_axis=(-2, -1))(x),
            (6, 3, c),
        ),
        Case(
            "InstanceNorm",
            lambda: nn.InstanceNorm2d(c, affine=True),
            lambda x: hk.InstanceNorm(True, True)(x),
            (3, c, 5, 4),
            image=True,
        ),
        Case(
            "InstanceNorm, channels first",
            lambda: nn.InstanceNorm2d(c, affine=True),
            lambda x: hk.InstanceNorm(True, True, data_format="channels_first")(x),
            (3, c, 5, 4),
        ),
        Case(
            "GroupNorm",
            lambda: nn.GroupNorm(2, 2 * c),
            lambda x: hk.GroupNorm(2)(x),
            (3, 2 * c, 5, 4),
            image=True,
        ),
        Case(
            "GroupNorm, channels first",
            lambda: nn.GroupNorm(2, 2 * c),
            lambda x: hk.GroupNorm(2, data_format="channels_first")(x),
            (3, 2 * c, 5, 4),
        ),
        Case("RMSNorm", lambda: nn.RMSNorm(c, 1e-5), lambda x: hk.RMSNorm(-1)(x), (6, c)),
    ]


def _attention(e):
    def ours(query, key, value, bias=True):
        return hk.MultiHeadAttention(2, e, w_init=jnp.zeros, with_bias=bias)(query, key, value)

    return [
        Case(
            "MultiHeadAttention",
            lambda: nn.MultiheadAttention(2 * e, 2, batch_first=True),
            ours,
            (3, 4, 2 * e),
            feed=lambda x: (x, x, x),
            reference=lambda m, x: m(x, x, x)[0],
        ),
        Case(
            "MultiHeadAttention of three widths, without bias",
            lambda: nn.MultiheadAttention(2 * e, 2, bias=False, kdim=e, vdim=e + 1, batch_first=True),
            lambda q, k, v: ours(q, k, v, False),
            (3, 4, 2 * e),
            feed=lambda x: (x, x[..., :e], x[..., : e + 1]),
            reference=lambda m, x: m(x, x[..., :e], x[..., : e + 1])[0],
        ),
        Case(
            "MultiHeadAttention as four Linear",
            lambda: nn.ModuleDict(
                {name: nn.Linear(2 * e, 2 * e) for name in ("query", "key", "value", "linear")}
            ),
            ours,
            (3, 4, 2 * e),
            feed=lambda x: (x, x, x),
            reference=lambda m, x: m["linear"](
                nn.functional.scaled_dot_product_attention(
                    *(m[n](x).unflatten(-1, (2, e)).transpose(1, 2) for n in ("query", "key", "value"))
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            options={"attention": "separate"},
        ),
    ]


def _cells(i, h):
    def parts(x):
        return x[:, :i], x[:, i : i + h], x[:, i + h :]

    def lstm(x):
        a, b, c = parts(x)
        _, state = hk.LSTM(h)(a, hk.LSTMState(b, c))
        return jnp.concatenate(state, -1)

    def torch_lstm(m, x):
        a, b, c = parts(x)
        return torch.cat(m(a, (b, c)), -1)

    def unrolled(x):
        core = hk.LSTM(h, name="lstm")
        head = hk.Linear(2, name="head")
        return head(hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0])

    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(i, h)
            self.head = nn.Linear(h, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    return [
        Case(
            "LSTM",
            lambda: nn.LSTMCell(i, h),
            lstm,
            (5, i + 2 * h),
            reference=torch_lstm,
            lossy=True,
        ),
        Case("LSTM of a sequence", Unrolled, unrolled, (6, 2, i), lossy=True, options={"multilayer": "lstm"}),
        Case(
            "VanillaRNN",
            lambda: nn.RNNCell(i, h, nonlinearity="relu"),
            lambda x: hk.VanillaRNN(h)(*parts(x)[:2])[0],
            (5, i + 2 * h),
            reference=lambda m, x: m(*parts(x)[:2]),
        ),
        Case(
            "VanillaRNN of one bias",
            lambda: nn.RNNCell(i, h, nonlinearity="relu"),
            lambda x: hk.VanillaRNN(h, double_bias=False)(*parts(x)[:2])[0],
            (5, i + 2 * h),
            reference=lambda m, x: m(*parts(x)[:2]),
            lossy=True,
        ),
    ]


def cases(pair):
    """Where all sizes are equal, only what could be taken for its own transpose."""
    i, o = pair
    linear, planes, attention, cells = _linear(i, o), _conv(2, i, o), _attention(o), _cells(i, o)
    if i == o:
        return [linear[0], planes[0], planes[4], attention[0], cells[0], cells[2]]
    others = [_conv(dims, i, o)[n] for dims in (1, 3) for n in (0, 2, 4)]
    return [*linear, *_norms(o), *attention, *cells, *planes, *others]


ALL = [pytest.param(case, id=f"{case.name}, {name}") for name, pair in SIZES.items() for case in cases(pair)]


@pytest.mark.parametrize("case", ALL)
def test_a_layer_is_torchs_layer(case):
    assert_there_and_back(case)
