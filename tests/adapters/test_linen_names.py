"""The names and the order of a Linen model's entries, shared modules, and trees of variables of all kinds."""

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


def test_names_and_order_are_those_of_definition():
    twins = Twins("", lambda s: TorchEverything(), lambda s: Everything(), lambda s: (3, 4))
    t.check_twins(twins, DIFFERENT, t.randomized(TorchEverything()))


class Jitted(nn.Module):
    """One jitted class twice: Flax traces the first, and runs no method of the second."""

    @nn.compact
    def __call__(self, x):
        for name in ("a", "b"):
            x = JITTED(name=name)(x)
        return x


JITTED = nn.jit(Pair)


def test_what_flax_has_jitted_is_seen_again():
    keys = [f"{name}.{key}" for name in "ab" for key in ("q.weight", "q.bias", "k.weight", "k.bias")]
    for _ in range(2):
        assert list(js.bind(Jitted(), jnp.ones((3, 4))).keys) == keys


class Outer(nn.Module):
    """A module in the place of another: their variables stand in one scope."""

    inner: nn.Module

    def setup(self):
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("inner", "keys"),
    [(nn.Dense(3), ["weight", "bias"]), (Pair(), ["q.weight", "q.bias", "k.weight", "k.bias"])],
)
def test_modules_of_one_scope_are_one(inner, keys):
    assert list(js.bind(Outer(inner), jnp.ones((3, 4))).keys) == keys


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


class Nested(nn.Module):
    """Python makes the last layer first; torch would register it last."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(3)(x)))


def test_layers_of_a_compact_method_come_in_the_order_of_their_calls():
    binding = js.bind(Nested(), jnp.ones((1, 4)))
    assert list(binding.shapes.values()) == [(3, 4), (3,), (2, 3), (2,)]


def test_nothing_that_is_traced_outlives_the_binding():
    with jax.checking_leaks():
        assert js.bind(Pair(), jnp.ones((3, 4))).keys


class Gain(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x, update_stats=False)


class SharedNorm(nn.Module):
    def setup(self):
        self.norm = nn.SpectralNorm(nn.Dense(4))
        self.gain = Gain(self.norm)

    def __call__(self, x):
        return self.gain(x)


def test_a_shared_normalisation_of_weights_is_tied_in_all_its_parts():
    model, x = SharedNorm(), jnp.ones((3, 4))
    variables = model.init(jax.random.key(0), x)
    found = js.state_dict(variables, js.bind(model, x))
    inner = [key.removeprefix("norm.") for key in found if key.startswith("norm.")]
    assert len(inner) == 4
    for key in inner:
        assert found[f"norm.{key}"] is found[f"gain.layer.{key}"]


class Member(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="fc")(x + self.param("shift", nn.initializers.ones, (4,)))


def test_an_ensemble_is_a_list_of_models():
    model = nn.vmap(Member, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3)()
    keys = ["shift", "fc.weight", "fc.bias"]
    assert list(js.bind(model, jnp.ones((3, 5, 4))).keys) == [f"{n}.{key}" for n in range(3) for key in keys]


class Owned(nn.Module):
    owner: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="fc")(x)


class Owner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Owned(self, name="part")(x)


def test_a_module_that_knows_its_owner_does_not_hold_it():
    assert js.bind(Owner(), jnp.ones((1, 2))).keys == ("part.fc.weight", "part.fc.bias")
