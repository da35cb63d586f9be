"""Layers of Flax Linen against the torch modules they stand for."""

import jax
import jax.numpy as jnp
import linen_twins as t
import numpy as np
import pytest
import torch
from flax import linen as nn
from linen_twins import DIFFERENT, EQUAL, Twins

import jaxstate as js

T = torch.nn
SPACE = {1: lambda s: (s.w,), 2: lambda s: (s.h, s.w), 3: lambda s: (s.d, s.h, s.w)}
IMAGE = {n: (lambda s, n=n: (s.n, s.i, *(size + 7 for size in SPACE[n](s)))) for n in (1, 2, 3)}
TCONV = {1: T.Conv1d, 2: T.Conv2d, 3: T.Conv3d}
TBACK = {1: T.ConvTranspose1d, 2: T.ConvTranspose2d, 3: T.ConvTranspose3d}
TNORM = {1: T.BatchNorm1d, 2: T.BatchNorm2d, 3: T.BatchNorm3d}


def vectors(s):
    return (s.n, s.i)


def matrices(s):
    return (s.n, s.h, s.w)


def flattened(module, x):
    return module(x.flatten(-2)).unflatten(-1, (2, 4))


class Equation(nn.Module):
    """An einsum that hears its equation only when it is called."""

    @nn.compact
    def __call__(self, x):
        return nn.Einsum((x.shape[-1], 4, 2), name="layer")(x, "...i,ihd->...dh")


class Tied(nn.Module):
    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Embed(self.vocabulary, self.width, name="e").attend(x)


class Wrap(T.Module):
    def __init__(self, name, module):
        super().__init__()
        setattr(self, name, module)
        self.forward = module.forward


LINEAR = [
    Twins("Dense", lambda s: T.Linear(s.i, s.o), lambda s: nn.Dense(s.o), vectors),
    Twins("without bias", lambda s: T.Linear(s.i, s.o, False), lambda s: nn.Dense(s.o, False), vectors),
    Twins(
        "DenseGeneral",
        lambda s: T.Linear(s.h * s.w, 8),
        lambda s: nn.DenseGeneral((2, 4), axis=(-2, -1)),
        matrices,
        run=flattened,
    ),
    Twins(
        "DenseGeneral, axes apart and turned round",
        lambda s: T.Linear(s.h * s.i, 8),
        lambda s: nn.DenseGeneral((2, 4), axis=(-1, 1)),
        lambda s: (s.n, s.h, s.w, s.i),
        run=lambda module, x: flattened(module, x.transpose(1, 2)),
    ),
    Twins(
        "Einsum",
        lambda s: T.Linear(s.h * s.w, 8),
        lambda s: nn.Einsum((4, s.w, 2, s.h), "nhw,dwch->ncd"),
        matrices,
        run=flattened,
    ),
    Twins(
        "Einsum, called with its equation",
        lambda s: Wrap("layer", T.Linear(s.i, 8)),
        lambda s: Equation(),
        vectors,
        run=lambda module, x: module.layer(x).unflatten(-1, (2, 4)),
    ),
    Twins("PReLU", lambda s: T.PReLU(), lambda s: nn.PReLU(), vectors),
    Twins(
        "Embed",
        lambda s: T.Embedding(s.o, s.i),
        lambda s: nn.Embed(s.o, s.i),
        lambda s: (s.n,),
        run=lambda module, x: module(x.abs().long()),
        feed=lambda x: (np.abs(x).astype("int32"),),
    ),
    Twins(
        "Embed.attend",
        lambda s: Wrap("e", T.Embedding(s.o, s.i)),
        lambda s: Tied(s.o, s.i),
        vectors,
        run=lambda module, x: x @ module.e.weight.T,
    ),
]

CONV = [
    row
    for n in (1, 2, 3)
    for row in (
        Twins(
            f"Conv {n}d",
            lambda s, n=n: TCONV[n](s.i, s.o, SPACE[n](s), stride=2),
            lambda s, n=n: nn.Conv(s.o, SPACE[n](s), strides=2, padding="VALID"),
            IMAGE[n],
            channels=True,
        ),
        Twins(
            f"Conv {n}d, in groups and dilated",
            lambda s, n=n: TCONV[n](s.i, s.o, SPACE[n](s), groups=2, dilation=2, bias=False),
            lambda s, n=n: nn.Conv(
                s.o, SPACE[n](s), feature_group_count=2, kernel_dilation=2, padding=0, use_bias=False
            ),
            IMAGE[n],
            channels=True,
        ),
        Twins(
            f"Conv {n}d, depthwise",
            lambda s, n=n: TCONV[n](s.i, 2 * s.i, SPACE[n](s), groups=s.i, padding=1),
            lambda s, n=n: nn.Conv(2 * s.i, SPACE[n](s), feature_group_count=s.i, padding=1),
            IMAGE[n],
            channels=True,
        ),
        *(
            Twins(
                f"ConvTranspose {n}d, transpose_kernel={swap}",
                lambda s, n=n: TBACK[n](s.i, s.o, SPACE[n](s), stride=2),
                lambda s, n=n, swap=swap: nn.ConvTranspose(
                    s.o, SPACE[n](s), strides=(2,) * n, padding="VALID", transpose_kernel=swap
                ),
                IMAGE[n],
                channels=True,
            )
            for swap in (False, True)
        ),
    )
]

NORM = [
    *(
        Twins(
            f"BatchNorm {n}d",
            lambda s, n=n: TNORM[n](s.i),
            lambda s: nn.BatchNorm(use_running_average=True),
            IMAGE[n],
            channels=True,
        )
        for n in (1, 2, 3)
    ),
    Twins(
        "BatchNorm without affine parameters",
        lambda s: T.BatchNorm1d(s.i, affine=False),
        lambda s: nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False),
        vectors,
    ),
    Twins("LayerNorm", lambda s: T.LayerNorm(s.i), lambda s: nn.LayerNorm(epsilon=1e-5), vectors),
    Twins(
        "LayerNorm without bias",
        lambda s: T.LayerNorm(s.i, bias=False),
        lambda s: nn.LayerNorm(epsilon=1e-5, use_bias=False),
        vectors,
    ),
    *(
        Twins(
            f"LayerNorm over {axes}",
            lambda s: T.LayerNorm((s.h, s.w)),
            lambda s, axes=axes: nn.LayerNorm(epsilon=1e-5, reduction_axes=axes, feature_axes=axes),
            matrices,
        )
        for axes in ((-2, -1), (-1, -2))
    ),
    Twins("RMSNorm", lambda s: T.RMSNorm(s.i, eps=1e-6), lambda s: nn.RMSNorm(), vectors),
    Twins(
        "GroupNorm",
        lambda s: T.GroupNorm(2, s.i),
        lambda s: nn.GroupNorm(2, epsilon=1e-5),
        IMAGE[2],
        channels=True,
    ),
    Twins(
        "InstanceNorm",
        lambda s: T.InstanceNorm2d(s.i, affine=True),
        lambda s: nn.InstanceNorm(epsilon=1e-5),
        IMAGE[2],
        channels=True,
    ),
]


@pytest.mark.parametrize("sizes", [DIFFERENT, EQUAL], ids=["different", "equal"])
@pytest.mark.parametrize("twins", [*LINEAR, *CONV, *NORM], ids=lambda twins: twins.name)
def test_a_layer_is_its_twin(twins, sizes):
    t.check_twins(twins, sizes, t.randomized(twins.torch(sizes)))


def test_a_statistic_is_a_buffer_and_a_weight_is_none():
    model, x = nn.BatchNorm(use_running_average=True), jnp.ones((2, 3))
    binding = js.bind(model, x)
    assert binding.parameters == tuple(name for name, _ in T.BatchNorm1d(3).named_parameters())
    assert js.state_dict(model.init(jax.random.key(0), x), binding)._metadata == {"": {"version": 2}}
