"""ResNet in Flax Linen, with lists and a Sequential."""

from flax import linen as nn
from resnet_twin import CONFIG, DEPTHS, LABELS, WIDTHS
from transformers import ResNetForImageClassification
from twin import Twin, channels_last, image


class ConvLayer(nn.Module):
    width: int
    kernel: int = 3
    stride: int = 1
    relu: bool = True

    def setup(self):
        pad, size = [(self.kernel // 2,) * 2] * 2, (self.kernel,) * 2
        self.convolution = nn.Conv(self.width, size, self.stride, padding=pad, use_bias=False)
        self.normalization = nn.BatchNorm(use_running_average=True, momentum=0.9)

    def __call__(self, x):
        x = self.normalization(self.convolution(x))
        return nn.relu(x) if self.relu else x


class Block(nn.Module):
    i: int
    o: int
    stride: int = 1

    def setup(self):
        if self.i != self.o or self.stride > 1:
            self.shortcut = ConvLayer(self.o, 1, self.stride, relu=False)
        self.layer = [ConvLayer(self.o, 3, self.stride), ConvLayer(self.o, relu=False)]

    def __call__(self, x):
        y = self.layer[1](self.layer[0](x))
        return nn.relu(y + (self.shortcut(x) if self.i != self.o or self.stride > 1 else x))


class Stage(nn.Module):
    i: int
    o: int
    stride: int
    depth: int

    def setup(self):
        self.layers = [
            Block(self.i, self.o, self.stride),
            *(Block(self.o, self.o) for _ in range(self.depth - 1)),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Embedder(nn.Module):
    def setup(self):
        self.embedder = ConvLayer(WIDTHS[0], 7, 2)

    def __call__(self, x):
        return nn.max_pool(self.embedder(x), (3, 3), (2, 2), ((1, 1), (1, 1)))


class Encoder(nn.Module):
    def setup(self):
        before = (WIDTHS[0], *WIDTHS)
        self.stages = [Stage(*size) for size in zip(before, WIDTHS, (1, 2), DEPTHS, strict=False)]

    def __call__(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class Body(nn.Module):
    def setup(self):
        self.embedder, self.encoder = Embedder(), Encoder()

    def __call__(self, x):
        return self.encoder(self.embedder(x)).mean((1, 2))


class ResNet(nn.Module):
    def setup(self):
        self.resnet = Body()
        self.classifier = nn.Sequential([lambda x: x, nn.Dense(LABELS)])

    def __call__(self, x):
        return self.classifier(self.resnet(channels_last(x)))


TWIN = Twin(lambda: ResNetForImageClassification(CONFIG), ResNet, {"pixel_values": image(2, 3, 16, 12)})
