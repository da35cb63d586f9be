"""Models of every kind, and parts of them, come back bit for bit into templates of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxstate as js
from jaxstate.errors import CheckpointError
from jaxstate.tree import flat


def same(left, right):
    left, right = flat(left), flat(right)
    assert list(left) == list(right)
    for path in left:
        a, b = (
            jax.random.key_data(x) if "key<" in str(x.dtype) else np.asarray(x)
            for x in (left[path], right[path])
        )
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), path


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attn = nnx.MultiHeadAttention(2, 6, qkv_features=8, decode=False, dropout_rate=0.1, rngs=rngs)
        self.norm = nnx.LayerNorm(6, param_dtype=jnp.bfloat16, rngs=rngs)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 3, rngs=rngs)
        self.fc = nnx.Linear(3, 3, rngs=rngs)
        self.again = self.fc


class Stack(nnx.Module):
    def __init__(self, rngs):
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs)))
        self.blocks = make(rngs)


NNX = {
    "a linear layer": lambda rngs: nnx.Linear(3, 5, rngs=rngs),
    "no bias, half": lambda rngs: nnx.Linear(3, 5, use_bias=False, param_dtype=jnp.float16, rngs=rngs),
    "a sequence": lambda rngs: nnx.Sequential(
        nnx.Conv(2, 3, (3, 2), rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    ),
    "attention": Attention,
    "tied": Tied,
    "a stack": Stack,
}


@pytest.mark.parametrize("name", NNX)
def test_nnx_models(tmp_path, name):
    model = NNX[name](nnx.Rngs(0))
    js.orbax.save(tmp_path / "made" / "on the way", model)
    for template in (NNX[name](nnx.Rngs(1)), nnx.eval_shape(lambda: NNX[name](nnx.Rngs(1)))):
        found = js.orbax.restore(tmp_path / "made" / "on the way", template)
        assert type(found.model) is type(model)
        same(nnx.state(found.model), nnx.state(model))
        assert nnx.graphdef(found.model) == nnx.graphdef(model)


class Boxed(linen.Module):
    @linen.compact
    def __call__(self, x):
        kernel = linen.with_partitioning(linen.initializers.normal(), (None, "x"))
        x = linen.Dense(4, kernel_init=kernel)(x)
        return linen.BatchNorm(use_running_average=True)(x)


def test_linen_variables_with_boxes(tmp_path):
    module, x = Boxed(), jnp.ones((2, 3))
    variables = module.init(jax.random.key(0), x)
    variables["batch_stats"]["BatchNorm_0"]["mean"] += jnp.arange(4.0)
    binding = js.bind(module, x)
    js.orbax.save(tmp_path / "c", variables, binding=binding)
    found = js.orbax.restore(tmp_path / "c", jax.eval_shape(module.init, jax.random.key(0), x)).model
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    same(found, variables)
    assert jnp.array_equal(module.apply(found, x), module.apply(variables, x))


def test_the_parameters_alone(tmp_path):
    model = NNX["a sequence"](nnx.Rngs(0))
    js.orbax.save(tmp_path / "c", model, optax.adam(0.1).init(nnx.state(model, nnx.Param)))
    params = nnx.state(NNX["a sequence"](nnx.Rngs(1)), nnx.Param)
    for template in (params, nnx.to_pure_dict(params)):
        found = js.orbax.restore(tmp_path / "c", template).model
        assert type(found) is type(template)
        same(found, nnx.state(model, nnx.Param))
    half = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, "bfloat16"), params)
    same(
        js.orbax.restore(tmp_path / "c", half, cast=True).model,
        jax.tree.map(lambda p: p.astype("bfloat16"), nnx.state(model, nnx.Param)),
    )
    del params["layers"][1]
    with pytest.raises(CheckpointError, match="leaves that the template lacks: .*layers.1.scale"):
        js.orbax.restore(tmp_path / "c", params)


def test_an_optimizer_of_nnx(tmp_path):
    model, tx = NNX["a linear layer"](nnx.Rngs(0)), js.optim.adamw(lr=0.1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.cos, nnx.state(model, nnx.Param)))
    js.orbax.save(tmp_path / "c", model, optimizer)
    other = NNX["a linear layer"](nnx.Rngs(1))
    found = js.orbax.restore(tmp_path / "c", other, nnx.Optimizer(other, tx, wrt=nnx.Param))
    assert type(found.opt_state) is nnx.Optimizer and found.opt_state.step == 1
    same(nnx.state(found.opt_state), nnx.state(optimizer))
    osd = js.optim.state_dict(optimizer, js.bind(model))
    assert repr(js.orbax.to_torch(tmp_path / "c")["optimizer"]) == repr(osd)


def test_an_average_beside_the_optimizer(tmp_path):
    model = NNX["a linear layer"](nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model))
    average = js.averaging.AveragedModel.of(params)
    average = js.averaging.update_parameters(average, params, use_buffers=True)
    opt = {"opt": js.optim.sgd(lr=0.1, momentum=0.7).init(params), "average": average}
    js.orbax.save(tmp_path / "c", model, opt)
    found = js.orbax.restore(tmp_path / "c", None, jax.eval_shape(lambda: opt))
    assert found.model is None and jax.tree.structure(found.opt_state) == jax.tree.structure(opt)
    same(found.opt_state, opt)
    assert "param_groups" in js.orbax.to_torch(tmp_path / "c")["optimizer"]


def test_random_state_that_is_not_there(tmp_path):
    js.orbax.save(tmp_path / "c", nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5)))
    noisy = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(CheckpointError, match="random: layers.1.rngs.count is not in the checkpoint"):
        js.orbax.restore(tmp_path / "c", noisy)
    js.orbax.save(tmp_path / "d", noisy)
    quiet = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(1)), nnx.Dropout(0.5))
    same(nnx.state(js.orbax.restore(tmp_path / "d", quiet).model), nnx.state(noisy, nnx.Param))
