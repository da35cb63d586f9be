"""Whole Linen models against torch's: convolutions, transformer blocks, stacks of layers."""

import jax.numpy as jnp
import linen_twins as t
import numpy as np
import pytest
import torch
from flax import linen as nn
from linen_twins import DIFFERENT, Twins

import jaxstate as js

T = torch.nn
FLATTEN = js.Rule("fc1.weight", "params.fc1.kernel", "(h w c) o -> o (c h w)", h=5, w=5)


class TorchCNN(T.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.pool, self.conv2 = T.Conv2d(3, 6, 5), T.MaxPool2d(2, 2), T.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = T.Linear(400, 120), T.Linear(120, 84), T.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu()).flatten(1)
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())


def pooled(x):
    return nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))


class SetupCNN(nn.Module):
    def setup(self):
        self.conv1 = nn.Conv(6, (5, 5), padding="VALID")
        self.conv2 = nn.Conv(16, (5, 5), padding="VALID")
        self.fc1, self.fc2, self.fc3 = nn.Dense(120), nn.Dense(84), nn.Dense(10)

    def __call__(self, x):
        x = pooled(self.conv2(pooled(self.conv1(x))))
        return self.fc3(nn.relu(self.fc2(nn.relu(self.fc1(x.reshape(len(x), -1))))))


class CompactCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = pooled(nn.Conv(6, (5, 5), padding="VALID", name="conv1")(x))
        x = pooled(nn.Conv(16, (5, 5), padding="VALID", name="conv2")(x)).reshape(len(x), -1)
        x = nn.relu(nn.Dense(84, name="fc2")(nn.relu(nn.Dense(120, name="fc1")(x))))
        return nn.Dense(10, name="fc3")(x)


@pytest.mark.parametrize("model", [SetupCNN(), CompactCNN()], ids=["setup", "compact"])
def test_the_cnn_of_the_recipes(model):
    module = t.randomized(TorchCNN())
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype("float32")
    last = x.transpose(0, 2, 3, 1)
    binding = js.bind(model, last, rules=[FLATTEN])
    variables = js.load_state_dict(t.variables_of(model, last), module.state_dict(), binding)
    t.assert_close(model.apply(variables, last), module(torch.from_numpy(x)))
    t.check_back(variables, binding, module)


class Block(nn.Module):
    """torch.nn.TransformerEncoderLayer, normalised afterwards."""

    hidden: int
    width: int
    dropout: float = 0.0

    def setup(self):
        self.self_attn = nn.MultiHeadDotProductAttention(2)
        self.linear1, self.linear2 = nn.Dense(self.hidden), nn.Dense(self.width)
        self.norm1, self.norm2 = nn.LayerNorm(epsilon=1e-5), nn.LayerNorm(epsilon=1e-5)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x, train=False):
        x = self.norm1(x + self.drop(self.self_attn(x), deterministic=not train))
        y = self.linear2(nn.relu(self.linear1(x)))
        return self.norm2(x + self.drop(y, deterministic=not train))


def encoder_layer(width, hidden):
    return T.TransformerEncoderLayer(width, 2, hidden, dropout=0.0, batch_first=True)


class Stack(nn.Module):
    """The same block, again and again: scanned, in a list, or made again in a compact method."""

    hidden: int
    count: int
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.count,
        )
        return body(Block(self.hidden, x.shape[-1], name="layers"), x, None)[0]


class Listed(nn.Module):
    hidden: int
    count: int

    def setup(self):
        self.layers = [Block(self.hidden, 4) for _ in range(self.count)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Layers(T.Module):
    def __init__(self, width, hidden, count):
        super().__init__()
        self.layers = T.ModuleList([encoder_layer(width, hidden) for _ in range(count)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_of_blocks_is_a_list_of_modules(axis):
    twins = Twins("", lambda s: Layers(6, 10, 4), lambda s: Stack(10, 4, axis), lambda s: (3, 5, 6))
    t.check_twins(twins, DIFFERENT, t.randomized(Layers(6, 10, 4)))


class Squares(nn.Module):
    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 4}
        return nn.scan(lambda dense, x, _: (dense(x), None), **options)(nn.Dense(4, name="layers"), x, None)[
            0
        ]


class TorchSquares(T.Module):
    def __init__(self):
        super().__init__()
        self.layers = T.ModuleList([T.Linear(4, 4) for _ in range(4)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_stack_whose_axis_no_shape_tells_is_asked_for():
    with pytest.raises(js.BindingError, match=r'say js.bind\(model, stacked=\{"layers": 0\}\)'):
        js.bind(Squares(), jnp.ones((3, 4)))
    twins = Twins("", lambda s: TorchSquares(), lambda s: Squares(), lambda s: (3, 4),
                  options={"stacked": {"layers": 0}})  # fmt: skip
    t.check_twins(twins, DIFFERENT, t.randomized(TorchSquares()))


def test_twelve_layers_of_a_list_are_counted_and_not_sorted():
    twins = Twins("", lambda s: Layers(4, 4, 12), lambda s: Listed(4, 12), lambda s: (2, 3, 4))
    t.check_twins(twins, DIFFERENT, t.randomized(Layers(4, 4, 12)))


class Batches(nn.Module):
    """A vmapped layer, and a scanned block with statistics and a parameter without axes."""

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        options = {"variable_axes": axes, "split_rngs": {"params": True}}
        x = nn.scan(Gained, length=3, **options)(name="blocks")(x, None)[0]
        many = nn.vmap(nn.Dense, in_axes=None, axis_size=5, **options)
        return many(2)(x)


class Gained(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * nn.BatchNorm(use_running_average=True, name="bn")(x), None


class TorchBatches(T.Module):
    def __init__(self):
        super().__init__()
        self.blocks = T.ModuleList([TorchGained() for _ in range(3)])
        self.VmapDense_0 = T.ModuleList([T.Linear(4, 2) for _ in range(5)])

    def forward(self, x):
        for block in self.blocks:
            x = block.gain * block.bn(x)
        return torch.stack([layer(x) for layer in self.VmapDense_0])


class TorchGained(T.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.bn = T.Parameter(torch.ones(())), T.BatchNorm1d(4)


def test_stacks_of_other_kinds():
    twins = Twins("", lambda s: TorchBatches(), lambda s: Batches(), lambda s: (6, 4))
    t.check_twins(twins, DIFFERENT, t.randomized(TorchBatches()))
