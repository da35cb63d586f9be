"""A U-Net of plain torch: down by strides, up by transposed convolutions, skips that are concatenated."""

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from twin import Twin, channels_last, image, rngs

WIDTHS = (3, 4, 6, 8)


class TorchDouble(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class TorchUNet(nn.Module):
    def __init__(self):
        super().__init__()
        a, b, c, d = WIDTHS
        self.down1, self.down2, self.bottom = TorchDouble(a, b), TorchDouble(b, c), TorchDouble(c, d)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.merge2 = nn.ConvTranspose2d(d, c, 2, 2), TorchDouble(2 * c, c)
        self.up1, self.merge1 = nn.ConvTranspose2d(c, b, 2, 2), TorchDouble(2 * b, b)
        self.out = nn.Conv2d(b, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(self.pool(first))
        x = self.up2(self.bottom(self.pool(second)))
        x = self.up1(self.merge2(torch.cat([second, x], 1)))
        return self.out(self.merge1(torch.cat([first, x], 1)))


class Double(nnx.Module):
    def __init__(self, i, o):
        conv = lambda i: nnx.Conv(i, o, (3, 3), use_bias=False, padding=[(1, 1)] * 2, rngs=rngs())  # noqa: E731
        norm = lambda: nnx.BatchNorm(o, use_running_average=True, rngs=rngs())  # noqa: E731
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(i), norm(), conv(o), norm()

    def __call__(self, x):
        return nnx.relu(self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x))))))


def pool(x):
    return nnx.max_pool(x, (2, 2), (2, 2))


class UNet(nnx.Module):
    def __init__(self):
        a, b, c, d = WIDTHS
        up = lambda i, o: nnx.ConvTranspose(i, o, (2, 2), (2, 2), padding="VALID", rngs=rngs())  # noqa: E731
        self.down1, self.down2, self.bottom = Double(a, b), Double(b, c), Double(c, d)
        self.up2, self.merge2 = up(d, c), Double(2 * c, c)
        self.up1, self.merge1 = up(c, b), Double(2 * b, b)
        self.out = nnx.Conv(b, 2, (1, 1), rngs=rngs())

    def __call__(self, x):
        first = self.down1(channels_last(x))
        second = self.down2(pool(first))
        x = self.up2(self.bottom(pool(second)))
        x = self.up1(self.merge2(jnp.concatenate([second, x], -1)))
        return jnp.moveaxis(self.out(self.merge1(jnp.concatenate([first, x], -1))), -1, 1)


TWIN = Twin(TorchUNet, UNet, {"x": image(2, WIDTHS[0], 8, 12)}, reference=lambda m, x: m(x))
