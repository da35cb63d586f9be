"""Whole Linen models against torch's: keys, order, stacks, sharing, and outputs."""

import flax
import jax
import jax.numpy as jnp
import linen_twins as t
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from flax.training.train_state import TrainState
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


class Everything(nn.Module):
    """Attributes of every kind, called in another order than they are defined in."""

    def setup(self):
        self.z, self.table = nn.Dense(4), {"b": nn.Dense(4), "a": [nn.Dense(4), nn.Dense(4)]}
        self.seq = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(4)])
        self.once = nn.remat(Pair)()
        self.jitted = nn.jit(Pair)()
        self.named = nn.Dense(4, name="explicit")
        self.mean = self.variable("statistics", "mean", jnp.zeros, (4,))
        self.scale = self.param("scale", nn.initializers.ones, (4,))
        self.gain = self.param("gain", nn.initializers.ones, ())

    def __call__(self, x):
        x = self.once(self.jitted(self.named(x))) * self.gain + self.mean.value
        return self.seq(self.table["b"](self.table["a"][1](self.table["a"][0](self.z(x))))) * self.scale


class Pair(nn.Module):
    def setup(self):
        self.q, self.k = nn.Dense(4), nn.LayerNorm()

    def __call__(self, x):
        return self.q(self.k(x))


class TorchPair(T.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = T.Linear(4, 4), T.LayerNorm(4, eps=1e-6)

    def forward(self, x):
        return self.q(self.k(x))


class TorchEverything(T.Module):
    def __init__(self):
        super().__init__()
        self.z = T.Linear(4, 4)
        pair = T.ModuleList([T.Linear(4, 4), T.Linear(4, 4)])
        self.table = T.ModuleDict([("b", T.Linear(4, 4)), ("a", pair)])
        self.seq = T.Sequential(T.Linear(4, 4), T.ReLU(), T.Linear(4, 4))
        self.once, self.jitted = TorchPair(), TorchPair()
        self.explicit = T.Linear(4, 4)
        self.scale, self.gain = T.Parameter(torch.ones(4)), T.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        x = self.once(self.jitted(self.explicit(x))) * self.gain + self.mean
        first, second = self.table["a"]
        return self.seq(self.table["b"](second(first(self.z(x))))) * self.scale


@pytest.mark.parametrize("times", range(2))
def test_names_and_order_are_those_of_definition(times):
    """Twice, since Flax keeps what it has jitted and then runs no method of it."""
    twins = Twins("", lambda s: TorchEverything(), lambda s: Everything(), lambda s: (3, 4))
    t.check_twins(twins, DIFFERENT, t.randomized(TorchEverything()))


class Shared(nn.Module):
    """One embedding in three places, and one layer called twice."""

    def setup(self):
        self.emb = nn.Embed(7, 4)
        self.encoder, self.decoder = Reader(self.emb), Reader(self.emb)
        self.same = nn.Dense(4)

    def __call__(self, x):
        return self.same(self.same(self.encoder(x) + self.decoder(x)))


class Reader(nn.Module):
    emb: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="fc")(self.emb(x))


class TorchShared(T.Module):
    def __init__(self):
        super().__init__()
        self.emb = T.Embedding(7, 4)
        self.encoder, self.decoder = (
            T.ModuleDict([("emb", self.emb), ("fc", T.Linear(4, 4))]) for _ in range(2)
        )
        self.same = T.Linear(4, 4)

    def forward(self, x):
        x = (x.abs() * 3).long()
        return self.same(self.same(sum(part["fc"](part["emb"](x)) for part in (self.encoder, self.decoder))))


def test_a_shared_module_is_tied_under_all_its_names():
    twins = Twins("", lambda s: TorchShared(), lambda s: Shared(), lambda s: (2, 5),
                  feed=lambda x: ((np.abs(x) * 3).astype("int32"),))  # fmt: skip
    t.check_twins(twins, DIFFERENT, t.randomized(TorchShared()))
    binding = js.bind(Shared(), jnp.ones((2, 5), "int32"))
    named = [name for name, _ in TorchShared().named_parameters()]
    assert list(binding.parameters) == named


class Normed(nn.Module):
    """A collection beside the parameters, and a flag and random numbers in the call."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(4, name="fc")(x))
        self.sow("intermediates", "seen", x)
        self.variable("cache", "last", lambda: x)
        return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.fixture
def normed():
    module = t.randomized(T.Sequential())
    module.fc, module.bn = T.Linear(3, 4), T.BatchNorm1d(4)
    model, x = Normed(), jnp.ones((2, 3))
    binding = js.bind(model, x, kwargs={"train": True})
    return t.randomized(module), model, binding, model.init(jax.random.key(0), x, train=False)


def test_caches_are_no_leaves_and_stay(normed):
    module, _, binding, variables = normed
    assert "cache" in variables and "cache" not in str(binding)
    loaded = js.load_state_dict(variables, module.state_dict(), binding)
    np.testing.assert_array_equal(loaded["cache"]["last"], variables["cache"]["last"])
    t.assert_same_bits(js.state_dict(loaded, binding.like(module.state_dict())), module.state_dict())


def test_parameters_on_their_own_move_with_the_same_binding(normed):
    module, model, binding, variables = normed
    weights = {k: v for k, v in module.state_dict().items() if k in dict(module.named_parameters())}
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.sgd(0.1))
    params = js.load_state_dict(state.params, weights, binding)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    t.assert_same_bits(js.state_dict(params, binding), weights)
    t.assert_same_bits(js.state_dict({"params": params}, binding), weights)


def test_frozen_and_partitioned_variables_keep_their_kind():
    dense = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")))
    x, module = jnp.ones((2, 3)), t.randomized(T.Linear(3, 4))
    variables, binding = flax.core.freeze(dense.init(jax.random.key(0), x)), js.bind(dense, x)
    loaded = js.load_state_dict(variables, module.state_dict(), binding)
    assert isinstance(loaded, flax.core.FrozenDict)
    assert loaded["params"]["kernel"].names == ("in", "out")
    t.assert_same_bits(js.state_dict(loaded, binding), module.state_dict())


def test_nothing_is_computed():
    x = jax.ShapeDtypeStruct((8, 2**20), "float32")
    assert js.bind(nn.Dense(2**20), x).shapes["weight"] == (2**20, 2**20)


class Batches(nn.Module):
    """A vmapped layer and a scanned block with statistics; a bare parameter in it has only the stacked axis."""

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
