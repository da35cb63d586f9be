"""ResNet in Equinox: running statistics are in a State beside the model."""

from typing import Any

import equinox as eqx
import jax
from resnet_twin import CONFIG, DEPTHS, LABELS, WIDTHS
from transformers import ResNetForImageClassification
from twin import Twin, image

KEY = jax.random.key(0)


class ConvLayer(eqx.Module):
    convolution: eqx.nn.Conv2d
    normalization: eqx.nn.BatchNorm
    relu: bool = eqx.field(static=True)

    def __init__(self, i, o, kernel=3, stride=1, relu=True):
        self.convolution = eqx.nn.Conv2d(i, o, kernel, stride, kernel // 2, use_bias=False, key=KEY)
        self.normalization = eqx.nn.BatchNorm(o, "batch", mode="ema")
        self.relu = relu

    def __call__(self, x, state):
        x, state = self.normalization(self.convolution(x), state)
        return (jax.nn.relu(x) if self.relu else x), state


class Block(eqx.Module):
    shortcut: ConvLayer | None
    layer: list[ConvLayer]

    def __init__(self, i, o, stride=1):
        self.shortcut = ConvLayer(i, o, 1, stride, relu=False) if i != o or stride > 1 else None
        self.layer = [ConvLayer(i, o, 3, stride), ConvLayer(o, o, relu=False)]

    def __call__(self, x, state):
        y, state = run(self.layer, x, state)
        x, state = (x, state) if self.shortcut is None else self.shortcut(x, state)
        return jax.nn.relu(x + y), state


def run(layers, x, state):
    for layer in layers:
        x, state = layer(x, state)
    return x, state


class Stage(eqx.Module):
    layers: list[Block]

    def __init__(self, i, o, stride, depth):
        self.layers = [Block(i, o, stride), *(Block(o, o) for _ in range(depth - 1))]

    def __call__(self, x, state):
        return run(self.layers, x, state)


class Embedder(eqx.Module):
    embedder: ConvLayer

    def __init__(self):
        self.embedder = ConvLayer(3, WIDTHS[0], 7, 2)

    def __call__(self, x, state):
        x, state = self.embedder(x, state)
        return eqx.nn.MaxPool2d(3, 2, 1)(x), state


class Encoder(eqx.Module):
    stages: list[Stage]

    def __init__(self):
        before = (WIDTHS[0], *WIDTHS)
        self.stages = [Stage(*size) for size in zip(before, WIDTHS, (1, 2), DEPTHS, strict=False)]

    def __call__(self, x, state):
        return run(self.stages, x, state)


class Body(eqx.Module):
    embedder: Embedder
    encoder: Encoder

    def __init__(self):
        self.embedder, self.encoder = Embedder(), Encoder()

    def __call__(self, x, state):
        x, state = run([self.embedder, self.encoder], x, state)
        return x.mean((1, 2)), state


class ResNet(eqx.Module):
    resnet: Body
    classifier: list[Any]

    def __init__(self, key):
        self.resnet = Body()
        self.classifier = [eqx.nn.Identity(), eqx.nn.Linear(WIDTHS[-1], LABELS, key=KEY)]

    def __call__(self, x, state):
        x, state = self.resnet(x, state)
        return self.classifier[1](x), state


TWIN = Twin(lambda: ResNetForImageClassification(CONFIG), ResNet, {"pixel_values": image(2, 3, 16, 12)})
