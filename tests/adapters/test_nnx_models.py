"""Whole networks as users write them, against torch's: transformer, residual network, U-Net, autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import Case, as_jax, assert_close, assert_there_and_back, built, noise, randomized, rngs
from flax import nnx
from torch import nn

import jaxstate as js


class EncoderLayer(nnx.Module):
    """torch.nn.TransformerEncoderLayer."""

    def __init__(self, width, heads, inner, first):
        norm = lambda: nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs())  # noqa: E731
        self.first = first
        self.self_attn = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs())
        self.linear1 = nnx.Linear(width, inner, rngs=rngs())
        self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs())
        self.linear2 = nnx.Linear(inner, width, rngs=rngs())
        self.norm1, self.norm2 = norm(), norm()

    def feed(self, x):
        return self.linear2(self.dropout(jax.nn.gelu(self.linear1(x), approximate=False)))

    def __call__(self, x):
        if self.first:
            x = x + self.self_attn(self.norm1(x))
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.feed(x))


def _encoder(first):
    return Case(
        "encoder layer, norm first" if first else "encoder layer",
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=first),
        lambda: EncoderLayer(8, 2, 16, first),
        (2, 5, 8),
    )


class Encoder(nnx.Module):
    def __init__(self, layers):
        self.layers = nnx.List([EncoderLayer(8, 2, 16, False) for _ in range(layers)])
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs())

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def _torch_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 3, nn.LayerNorm(8), enable_nested_tensor=False)


class Residual(nnx.Module):
    def __init__(self, i, o, stride):
        conv = lambda a, b, k, s: nnx.Conv(  # noqa: E731
            a, b, (k, k), s, padding=[(k // 2, k // 2)] * 2, use_bias=False, rngs=rngs()
        )
        norm = lambda: nnx.BatchNorm(o, use_running_average=True, rngs=rngs())  # noqa: E731
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(i, o, 3, stride), norm(), conv(o, o, 3, 1), norm()
        self.downsample = nnx.Sequential(conv(i, o, 1, stride), norm()) if stride > 1 else None

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet(nnx.Module):
    def __init__(self):
        self.conv1 = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs())
        self.bn1 = nnx.BatchNorm(4, use_running_average=True, rngs=rngs())
        self.layer1 = nnx.Sequential(Residual(4, 4, 1), Residual(4, 4, 1))
        self.layer2 = nnx.Sequential(Residual(4, 8, 2))
        self.fc = nnx.Linear(8, 5, rngs=rngs())

    def __call__(self, x):
        x = self.layer2(self.layer1(nnx.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((1, 2)))


class TorchResidual(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.downsample = down if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (self.downsample(x) if self.downsample else x)).relu()


class TorchResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(TorchResidual(4, 4, 1), TorchResidual(4, 4, 1))
        self.layer2 = nn.Sequential(TorchResidual(4, 8, 2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.fc(x.mean((2, 3)))


class UNet(nnx.Module):
    def __init__(self):
        self.down = nnx.Conv(3, 4, (3, 3), 2, padding=[(1, 1), (1, 1)], rngs=rngs())
        self.norm = nnx.GroupNorm(4, 2, epsilon=1e-5, rngs=rngs())
        # torch's padding=1, output_padding=1
        self.up = nnx.ConvTranspose(4, 3, (3, 3), (2, 2), padding=[(1, 2), (1, 2)], rngs=rngs())
        self.out = nnx.Conv(6, 2, (1, 1), rngs=rngs())

    def __call__(self, x):
        y = self.up(nnx.silu(self.norm(self.down(x))))
        return self.out(jnp.concatenate([x, y], -1))


class TorchUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.up(nn.functional.silu(self.norm(self.down(x))))
        return self.out(torch.cat([x, y], 1))


class Autoencoder(nnx.Module):
    """Reads symbols and writes their scores; the decoder's last weight is the embedding."""

    def __init__(self):
        self.encoder = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs()), nnx.tanh)
        self.decoder = nnx.Linear(3, 4, rngs=rngs())
        self.tok = nnx.Embed(7, 4, rngs=rngs())
        self.score = self.tok

    def __call__(self, x):
        return self.score.attend(self.decoder(self.encoder(self.tok(x))))


class TorchAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.decoder, self.tok = nn.Linear(3, 4), nn.Embedding(7, 4)
        self.score = nn.Linear(4, 7, bias=False)
        self.score.weight = self.tok.weight

    def forward(self, x):
        return self.score(self.decoder(self.encoder(self.tok(x))))


CASES = [
    _encoder(False),
    _encoder(True),
    Case("encoder of three layers", _torch_encoder, lambda: Encoder(3), (2, 5, 8)),
    Case(
        "residual network",
        TorchResNet,
        ResNet,
        (2, 3, 8, 6),
        call=lambda m, x: m(jnp.moveaxis(x, 1, -1)),
    ),
    Case("U-Net", TorchUNet, UNet, (2, 3, 8, 6), image=True),
    Case("autoencoder with a tied head", TorchAutoencoder, Autoencoder, (2, 6), integers=7),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_network_is_torchs(case):
    assert_there_and_back(case)


def test_a_network_trained_in_jax_goes_to_torch():
    model = ResNet()
    x = noise(2, 3, 8, 6)

    @nnx.jit
    def step(model, x):
        gradients = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - 1e-2 * g, nnx.state(model, nnx.Param), gradients))

    for _ in range(3):
        step(model, as_jax(x, channels_last=True))
    sd = js.state_dict(model)
    theirs = randomized(TorchResNet())
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in sd.items()})
    assert_close(model(as_jax(x, channels_last=True)), theirs(x).detach())


def test_gradients_cross_by_the_same_binding():
    theirs, template = randomized(TorchResNet()), built(ResNet)
    binding, x = js.bind(template), noise(2, 3, 8, 6)
    model = js.load_state_dict(template, theirs.state_dict(), binding)
    theirs(x).square().sum().backward()
    gradients = nnx.grad(lambda model: (model(as_jax(x, channels_last=True)) ** 2).sum())(model)
    ours = js.state_dict(gradients, binding)
    assert list(ours) == [name for name, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max().item()
        assert np.abs(ours[name] - parameter.grad.numpy()).max() <= 2e-4 * scale
