"""Twins for the tests of `jaxstate.testing`: torch modules, the same in NNX and Linen, and what they are fed.

A twin is made right; a test then spoils it in one place and reads what the report says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from flax import nnx
from torch.nn import functional as F

import jaxstate as js

torch.set_num_threads(1)

NCHW = "n h w c -> n c h w"


def randomized(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The same module in its own mode, with a value of its own in every entry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, entry in module.state_dict(keep_vars=True).items():
            if not entry.is_floating_point():
                entry.fill_(7)
            elif name.endswith("running_var"):
                entry.copy_(torch.rand(entry.shape, generator=generator) + 0.5)
            else:
                entry.copy_(torch.randn(entry.shape, generator=generator) * 0.5)
    return module


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


class TorchMLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(6, 6)
        self.fc2 = torch.nn.Linear(6, 6)
        self.fc3 = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = F.silu(self.fc2(x))
        return self.head(torch.tanh(self.fc3(x)))


class MLP(nnx.Module):
    def __init__(self, rngs, silu=nnx.silu):
        self.fc1 = nnx.Linear(6, 6, rngs=rngs)
        self.fc2 = nnx.Linear(6, 6, rngs=rngs)
        self.fc3 = nnx.Linear(6, 6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)
        self.silu = silu

    def __call__(self, x):
        x = nnx.relu(self.fc1(x))
        x = self.silu(self.fc2(x))
        return self.head(nnx.tanh(self.fc3(x)))


class TorchCNN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(4)
        self.conv2 = torch.nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up = torch.nn.ConvTranspose2d(4, 4, 3, padding=1)
        self.pool = torch.nn.MaxPool2d(2)
        self.fc = torch.nn.Linear(4 * 2 * 2, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)))
        x = self.up(self.conv2(x))
        return self.fc(self.pool(x).flatten(1))


class CNN(nnx.Module):
    def __init__(self, rngs, pool=nnx.max_pool):
        self.conv1 = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.bn = nnx.BatchNorm(4, momentum=0.9, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), strides=2, padding=1, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 4, (3, 3), padding=1, rngs=rngs)
        self.fc = nnx.Linear(4 * 2 * 2, 5, rngs=rngs)
        self.pool = pool

    def __call__(self, x):
        x = nnx.relu(self.bn(self.conv1(x)))
        x = self.up(self.conv2(x))
        return self.fc(self.pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1))


class TorchBlock(torch.nn.Module):
    """A transformer's block before a linear head, with learned embeddings."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.norm1 = torch.nn.LayerNorm(8)
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2 = torch.nn.LayerNorm(8)
        self.up = torch.nn.Linear(8, 8)
        self.down = torch.nn.Linear(8, 8)

    def forward(self, tokens, mask):
        x = self.embed(tokens) * 0.1
        y = self.norm1(x)
        x = x + self.attn(y, y, y, None, False, mask)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def masked(mask):
    """torch masks where True, Flax attends there."""
    return ~mask


def residual(x, y):
    return x + y


def exact_gelu(x):
    return nnx.gelu(x, approximate=False)


class Block(nnx.Module):
    def __init__(self, rngs, mask=masked, gelu=exact_gelu, add=residual):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.norm1 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(8, 8, rngs=rngs)
        self.down = nnx.Linear(8, 8, rngs=rngs)
        self.mask, self.gelu, self.add = mask, gelu, add

    def __call__(self, tokens, mask):
        x = self.embed(tokens) * 0.1
        x = self.add(x, self.attn(self.norm1(x), mask=self.mask(mask)))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class LinenBlock(nn.Module):
    epsilon: float = 1e-5
    mask: Any = masked
    gelu: Any = exact_gelu

    @nn.compact
    def __call__(self, tokens, mask):
        x = nn.Embed(11, 8, name="embed")(tokens) * 0.1
        y = nn.LayerNorm(name="norm1", epsilon=self.epsilon)(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attn")(y, mask=self.mask(mask))
        y = nn.Dense(8, name="up")(nn.LayerNorm(name="norm2", epsilon=1e-5)(x))
        return x + nn.Dense(8, name="down")(self.gelu(y))


class TorchLSTM(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(5, 5, batch_first=True)
        self.fc = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


class LSTM(nnx.Module):
    def __init__(self, rngs, reverse=False, time_major=False):
        cell = nnx.OptimizedLSTMCell(5, 5, rngs=rngs)
        self.rnn = nnx.RNN(cell, reverse=reverse, keep_order=True, time_major=time_major, rngs=rngs)
        self.fc = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.rnn(x))


@dataclass(frozen=True)
class Twin:
    """One architecture: how both sides are built, and inputs in torch's layout."""

    theirs: Callable[[], torch.nn.Module]
    ours: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    layout: str | None = None

    def in_jax(self) -> tuple[Any, ...]:
        layout = js.Layout(self.layout).inverse if self.layout else lambda x: x
        return tuple(jnp.array(layout(x)) for x in self.inputs)


CAUSAL = np.triu(np.ones((5, 5), bool), 1)
TOKENS = np.random.default_rng(0).integers(11, size=(2, 5))

TWINS = {
    "mlp": Twin(TorchMLP, MLP, (noise(3, 6),)),
    "cnn": Twin(TorchCNN, CNN, (noise(2, 3, 8, 8),), NCHW),
    "block": Twin(TorchBlock, Block, (TOKENS, CAUSAL)),
    "lstm": Twin(TorchLSTM, LSTM, (noise(2, 4, 5),)),
    "linen block": Twin(TorchBlock, LinenBlock, (TOKENS, CAUSAL)),
}


@dataclass
class Made:
    """A twin with weights in it: torch's module, the template, its Binding, and torch's state_dict."""

    twin: Twin
    torch: torch.nn.Module
    template: Any
    binding: js.Binding

    def loaded(self, binding: js.Binding | None = None, state_dict: Any = None, **options: Any) -> Any:
        """The JAX model, with torch's weights as some Binding and some state_dict have them."""
        template = self.template if not options else built(self.twin, **options)
        entries = self.torch.state_dict() if state_dict is None else state_dict
        if isinstance(self.template, nn.Module):
            return template.bind(
                js.load_state_dict(variables(self.twin, template), entries, binding or self.binding)
            )
        return js.load_state_dict(template, entries, binding or self.binding)


def built(twin: Twin, **options: Any) -> Any:
    """The JAX model without weights; only random state has values."""
    if issubclass(twin.ours, nn.Module):
        return twin.ours(**options)
    model = nnx.eval_shape(lambda: twin.ours(nnx.Rngs(0), **options))
    random = nnx.state(model, nnx.RngState)
    nnx.update(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), random))
    return model


def variables(twin: Twin, module: nn.Module) -> Any:
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *twin.in_jax()))


def make(name: str) -> Made:
    twin = TWINS[name]
    template = built(twin)
    module = randomized(twin.theirs()).eval()
    return Made(twin, module, template, js.bind(template, *twin.in_jax()))
