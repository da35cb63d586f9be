"""ResNet: convolutions with batch norms, two kinds of shortcut, pooled before its classifier."""

from flax import nnx
from transformers import ResNetConfig, ResNetForImageClassification
from twin import Twin, channels_last, image, linear, rngs

WIDTHS, DEPTHS, LABELS = (4, 6), (2, 2), 3


class ConvLayer(nnx.Module):
    def __init__(self, i, o, kernel=3, stride=1, relu=True):
        pad = [(kernel // 2, kernel // 2)] * 2
        self.convolution = nnx.Conv(i, o, (kernel, kernel), stride, padding=pad, use_bias=False, rngs=rngs())
        self.normalization = nnx.BatchNorm(o, use_running_average=True, rngs=rngs())
        self.relu = relu

    def __call__(self, x):
        x = self.normalization(self.convolution(x))
        return nnx.relu(x) if self.relu else x


class Block(nnx.Module):
    def __init__(self, i, o, stride):
        if i != o or stride > 1:
            self.shortcut = ConvLayer(i, o, 1, stride, relu=False)
        self.layer = nnx.Sequential(ConvLayer(i, o, 3, stride), ConvLayer(o, o, relu=False))

    def __call__(self, x):
        return nnx.relu(self.layer(x) + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class Stage(nnx.Module):
    def __init__(self, i, o, stride, depth):
        self.layers = nnx.Sequential(Block(i, o, stride), *(Block(o, o, 1) for _ in range(depth - 1)))

    def __call__(self, x):
        return self.layers(x)


class Embedder(nnx.Module):
    def __init__(self):
        self.embedder = ConvLayer(3, WIDTHS[0], 7, 2)

    def __call__(self, x):
        return nnx.max_pool(self.embedder(x), (3, 3), (2, 2), ((1, 1), (1, 1)))


class Encoder(nnx.Module):
    def __init__(self):
        before = (WIDTHS[0], *WIDTHS)
        sizes = zip(before, WIDTHS, (1, 2), DEPTHS, strict=False)
        self.stages = nnx.List([Stage(*size) for size in sizes])

    def __call__(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class Body(nnx.Module):
    def __init__(self):
        self.embedder, self.encoder = Embedder(), Encoder()

    def __call__(self, x):
        return self.encoder(self.embedder(x)).mean((1, 2))


class ResNet(nnx.Module):
    def __init__(self):
        self.resnet = Body()
        self.classifier = nnx.Sequential(nnx.identity, linear(WIDTHS[-1], LABELS))

    def __call__(self, x):
        return self.classifier(self.resnet(channels_last(x)))


CONFIG = ResNetConfig(
    embedding_size=WIDTHS[0], hidden_sizes=WIDTHS, depths=DEPTHS, layer_type="basic", num_labels=LABELS
)
TWIN = Twin(lambda: ResNetForImageClassification(CONFIG), ResNet, {"pixel_values": image(2, 3, 16, 12)})
