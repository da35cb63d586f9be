"""Every layer of flax.nnx that has a twin in torch: the same function, and the same bits back."""

import pytest
from _nnx_oracle import Case, assert_there_and_back, rngs
from flax import nnx
from torch import nn

SIZES = {"different": (3, 5), "equal": (4, 4)}


def _linear(i, o):
    return [
        Case("Linear", lambda: nn.Linear(i, o), lambda: nnx.Linear(i, o, rngs=rngs()), (7, i)),
        Case(
            "Linear without bias",
            lambda: nn.Linear(i, o, bias=False),
            lambda: nnx.Linear(i, o, use_bias=False, rngs=rngs()),
            (7, i),
        ),
        Case(
            "LinearGeneral to two axes",
            lambda: nn.Linear(i, o * 2),
            lambda: nnx.LinearGeneral(i, (o, 2), rngs=rngs()),
            (7, i),
            call=lambda m, x: m(x).reshape(7, -1),
        ),
        Case(
            "LinearGeneral over two axes",
            lambda: nn.Linear(i * o, 2 * i),
            lambda: nnx.LinearGeneral((i, o), (2, i), axis=(-2, -1), rngs=rngs()),
            (7, i * o),
            call=lambda m, x: m(x.reshape(7, i, o)).reshape(7, -1),
        ),
        Case(
            "LinearGeneral over two axes, said backwards",
            lambda: nn.Linear(i * o, 2),
            lambda: nnx.LinearGeneral((i, o), 2, axis=(-1, -2), rngs=rngs()),
            (7, i * o),
            call=lambda m, x: m(x.reshape(7, i, o)),
        ),
        Case(
            "LinearGeneral over one axis from the front",
            lambda: nn.Linear(i, o, bias=False),
            lambda: nnx.LinearGeneral(i, o, axis=1, use_bias=False, rngs=rngs()),
            (7, i),
        ),
        Case(
            "Einsum",
            lambda: nn.Linear(i, 2 * o),
            lambda: nnx.Einsum("bte,ehd->bthd", (i, 2, o), (2, o), rngs=rngs()),
            (7, 6, i),
            call=lambda m, x: m(x).reshape(7, 6, -1),
        ),
        Case(
            "Einsum over two axes, kernel transposed",
            lambda: nn.Linear(2 * i, o),
            lambda: nnx.Einsum("bhd,odh->bo", (o, i, 2), (o,), rngs=rngs()),
            (7, 2 * i),
            call=lambda m, x: m(x.reshape(7, 2, i)),
        ),
        Case(
            "Einsum without bias, any batch",
            lambda: nn.Linear(i, o, bias=False),
            lambda: nnx.Einsum("...x,xy->...y", (i, o), rngs=rngs()),
            (7, i),
        ),
        Case(
            "Embed",
            lambda: nn.Embedding(i, o),
            lambda: nnx.Embed(i, o, rngs=rngs()),
            (2, 6),
            integers=i,
        ),
    ]


def _conv(dims, i, o):
    kernel, image = (2, 3, 4)[:dims] if i != o else (3,) * dims, (7, 6, 5)[:dims]
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]

    def conv(name, channels=(i, o), groups=1, **options):
        a, b = channels
        dilation = options.get("dilation", 1)
        return Case(
            f"Conv{dims}d{name}",
            lambda: theirs(a, b, kernel, groups=groups, **options),
            lambda: nnx.Conv(
                a,
                b,
                kernel,
                strides=options.get("stride", 1),
                padding="VALID",
                kernel_dilation=dilation,
                feature_group_count=groups,
                use_bias=options.get("bias", True),
                rngs=rngs(),
            ),
            (2, a, *(2 * n for n in image)),
            image=True,
        )

    def transposed(name, flag, padding=0, bias=True):
        pads = [(k - 1 - padding, k - 1 - padding) for k in kernel]
        return Case(
            f"ConvTranspose{dims}d{name}",
            lambda: up(i, o, kernel, padding=padding, stride=2, bias=bias),
            lambda: nnx.ConvTranspose(
                i, o, kernel, 2, padding=pads, transpose_kernel=flag, use_bias=bias, rngs=rngs()
            ),
            (2, i, *image),
            image=True,
        )

    return [
        conv(""),
        conv(" strided, without bias", stride=2, bias=False),
        conv(" dilated", dilation=2),
        conv(" grouped", (2 * i, 2 * o), 2),
        conv(" depthwise", (i, 2 * i), i),
        transposed("", False),
        transposed(" padded, without bias", False, 1, bias=False),
        transposed(" transpose_kernel", True),
    ]


def _norms(c):
    return [
        *_batch_norms(c),
        Case(
            "LayerNorm", lambda: nn.LayerNorm(c), lambda: nnx.LayerNorm(c, epsilon=1e-5, rngs=rngs()), (6, c)
        ),
        Case(
            "LayerNorm without bias",
            lambda: nn.LayerNorm(c, bias=False),
            lambda: nnx.LayerNorm(c, epsilon=1e-5, use_bias=False, rngs=rngs()),
            (6, c),
        ),
        Case("RMSNorm", lambda: nn.RMSNorm(c, 1e-6), lambda: nnx.RMSNorm(c, rngs=rngs()), (6, c)),
        Case(
            "GroupNorm",
            lambda: nn.GroupNorm(2, 2 * c),
            lambda: nnx.GroupNorm(2 * c, 2, epsilon=1e-5, rngs=rngs()),
            (3, 2 * c, 5, 4),
            image=True,
        ),
        Case(
            "InstanceNorm2d affine",
            lambda: nn.InstanceNorm2d(c, affine=True),
            lambda: nnx.InstanceNorm(c, epsilon=1e-5, rngs=rngs()),
            (3, c, 5, 4),
            image=True,
        ),
        Case("PReLU", lambda: nn.PReLU(), lambda: nnx.PReLU(), (6, c)),
        Case("PReLU of channels", lambda: nn.PReLU(c), lambda: _prelu_of(c), (6, c)),
    ]


def _prelu_of(channels):
    module = nnx.PReLU()
    module.negative_slope = nnx.Param(module.negative_slope[...] + nnx.initializers.zeros(None, (channels,)))
    return module


def _batch_norms(c):
    def norm(name, theirs, shape, **affine):
        return Case(
            f"BatchNorm{name}",
            theirs,
            lambda: nnx.BatchNorm(c, use_running_average=True, **affine, rngs=rngs()),
            shape,
            image=True,
        )

    return [
        norm("1d", lambda: nn.BatchNorm1d(c), (6, c)),
        norm("2d", lambda: nn.BatchNorm2d(c), (6, c, 5, 4)),
        norm("3d", lambda: nn.BatchNorm3d(c), (6, c, 3, 2, 4)),
        norm(
            " without affine",
            lambda: nn.BatchNorm2d(c, affine=False),
            (6, c, 5, 4),
            use_bias=False,
            use_scale=False,
        ),
    ]


def cases(pair):
    i, o = pair
    found = [*_linear(i, o), *_norms(o)]
    images = (1, 2, 3) if i != o else (2,)
    return [*found, *(case for dims in images for case in _conv(dims, i, o))]


ALL = [pytest.param(case, id=f"{case.name}, {name}") for name, pair in SIZES.items() for case in cases(pair)]


@pytest.mark.parametrize("case", ALL)
def test_a_layer_is_torchs_layer(case):
    assert_there_and_back(case)
