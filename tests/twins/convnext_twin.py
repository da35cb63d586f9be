"""ConvNeXt: depthwise convolutions, linear layers on channels, a scale for each channel of a block."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import ConvNextConfig, ConvNextForImageClassification
from twin import Twin, channels_last, image, layer_norm, linear, rngs

WIDTHS, DEPTHS, LABELS = (4, 6), (1, 2), 3


def conv(i, o, kernel):
    return nnx.Conv(i, o, (kernel, kernel), kernel, padding="VALID", rngs=rngs())


class Layer(nnx.Module):
    def __init__(self, width):
        pad = [(3, 3)] * 2
        self.dwconv = nnx.Conv(width, width, (7, 7), padding=pad, feature_group_count=width, rngs=rngs())
        self.layernorm = layer_norm(width, 1e-6)
        self.pwconv1, self.pwconv2 = linear(width, 4 * width), linear(4 * width, width)
        self.layer_scale_parameter = nnx.Param(jnp.zeros(width))

    def __call__(self, x):
        y = self.pwconv1(self.layernorm(self.dwconv(x)))
        return x + self.layer_scale_parameter[...] * self.pwconv2(jax.nn.gelu(y, approximate=False))


class Stage(nnx.Module):
    def __init__(self, i, o, depth):
        if i != o:
            self.downsampling_layer = nnx.List([layer_norm(i, 1e-6), conv(i, o, 2)])
        self.layers = nnx.List([Layer(o) for _ in range(depth)])

    def __call__(self, x):
        for layer in [*getattr(self, "downsampling_layer", ()), *self.layers]:
            x = layer(x)
        return x


class Embeddings(nnx.Module):
    def __init__(self):
        self.patch_embeddings, self.layernorm = conv(3, WIDTHS[0], 4), layer_norm(WIDTHS[0], 1e-6)

    def __call__(self, x):
        return self.layernorm(self.patch_embeddings(x))


class Encoder(nnx.Module):
    def __init__(self):
        before = (WIDTHS[0], *WIDTHS)
        self.stages = nnx.List([Stage(*size) for size in zip(before, WIDTHS, DEPTHS, strict=False)])

    def __call__(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class Body(nnx.Module):
    def __init__(self):
        self.embeddings, self.encoder = Embeddings(), Encoder()
        self.layernorm = layer_norm(WIDTHS[-1], 1e-12)

    def __call__(self, x):
        return self.layernorm(self.encoder(self.embeddings(channels_last(x))).mean((1, 2)))


class ConvNext(nnx.Module):
    def __init__(self):
        self.convnext, self.classifier = Body(), linear(WIDTHS[-1], LABELS)

    def __call__(self, x):
        return self.classifier(self.convnext(x))


CONFIG = ConvNextConfig(hidden_sizes=WIDTHS, depths=DEPTHS, num_stages=2, num_labels=LABELS)
TWIN = Twin(lambda: ConvNextForImageClassification(CONFIG), ConvNext, {"pixel_values": image(2, 3, 16, 16)})
