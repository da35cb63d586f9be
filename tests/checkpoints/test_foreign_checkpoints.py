"""Checkpoints that Flax users have: written by plain Orbax, v0 and v1, opened by us."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from orbax.checkpoint import v1

import jaxstate as js
from jaxstate.errors import CheckpointError
from jaxstate.tree import flat


class Net(nnx.Module):
    def __init__(self, rngs, features=4):
        self.fc = nnx.Linear(3, features, rngs=rngs)
        self.bn = nnx.BatchNorm(features, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs, param_dtype=jnp.bfloat16) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)


@pytest.fixture(scope="module")
def trained():
    net = Net(nnx.Rngs(0))
    net.bn.mean[...] = jnp.float32([1, -2, 3, 4])
    net.drop.rngs.count[...] = jnp.uint32(5)
    return net


def same(left, right):
    left, right = flat(left), flat(right)
    assert list(left) == list(right)
    for path in left:
        a, b = (
            jax.random.key_data(x) if "key<" in str(x.dtype) else np.asarray(x)
            for x in (left[path], right[path])
        )
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), path


def standard(path, tree):
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def pytree(path, tree):
    v0.PyTreeCheckpointer().save(path, tree)


def manager(path, tree):
    with v0.CheckpointManager(path.parent / "steps") as steps:
        steps.save(7, args=v0.args.StandardSave(tree))
    (path.parent / "steps" / "7").rename(path)


def composite(path, tree):
    with v0.CheckpointManager(path.parent / "steps") as steps:
        args = {"model": v0.args.PyTreeSave(tree), "meta": v0.args.JsonSave({"a": 1})}
        steps.save(7, args=v0.args.Composite(**args))
    (path.parent / "steps" / "7").rename(path)


WRITERS = {
    "v0 standard": standard,
    "v0 pytree": pytree,
    "v0 manager": manager,
    "v0 composite": composite,
    "v1": v1.save,
    "v1 named": lambda path, tree: v1.save_checkpointables(path, {"params": tree}),
}


@pytest.mark.parametrize("form", ["state", "pure dict"])
@pytest.mark.parametrize("writer", WRITERS)
def test_an_nnx_model(tmp_path, trained, writer, form):
    state = nnx.state(trained)
    WRITERS[writer](tmp_path / "c", state if form == "state" else nnx.to_pure_dict(state))
    for template in (Net(nnx.Rngs(1)), nnx.eval_shape(lambda: Net(nnx.Rngs(1)))):
        found = js.orbax.restore(tmp_path / "c", template)
        assert type(found.model) is Net and found.binding == js.bind(trained)
        same(nnx.state(found.model), state)


def test_a_step_of_a_manager(tmp_path, trained):
    with v0.CheckpointManager(tmp_path) as steps:
        for step in (5, 30):
            steps.save(step, args=v0.args.StandardSave(nnx.state(trained)))
    with pytest.raises(CheckpointError, match=r"folder of steps \[5, 30\]; name one of them, such as .*/30"):
        js.orbax.restore(tmp_path, Net(nnx.Rngs(1)))
    found = js.orbax.restore(tmp_path / "30", Net(nnx.Rngs(1)))
    assert found.step == 30
    same(nnx.state(found.model), nnx.state(trained))


@pytest.mark.parametrize("writer", ["v0 standard", "v1"])
def test_a_model_and_its_optimizer(tmp_path, trained, writer):
    tx = optax.adam(1e-3)
    optimizer = nnx.Optimizer(trained, tx, wrt=nnx.Param)
    optimizer.opt_state[0].mu.fc.kernel[...] = jnp.full((3, 4), 0.3)
    optimizer.step[...] = jnp.uint32(9)
    tree = {"model": nnx.state(trained), "optimizer": nnx.state(optimizer), "step": 9}
    WRITERS[writer](tmp_path / "c", tree)
    template = Net(nnx.Rngs(1))
    found = js.orbax.restore(tmp_path / "c", template, nnx.Optimizer(template, tx, wrt=nnx.Param))
    assert found.step == 9
    same(nnx.state(found.model), nnx.state(trained))
    same(nnx.state(found.opt_state), nnx.state(optimizer))


def train_state(seed, tx):
    module = linen.Dense(5)
    variables = module.init(jax.random.key(seed), jnp.ones((1, 3)))
    return TrainState.create(apply_fn=module.apply, params=variables["params"], tx=tx)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_train_state(tmp_path, writer):
    tx = optax.chain(optax.clip(1.0), optax.adamw(optax.linear_schedule(0.1, 0, 9)))
    state = train_state(0, tx)
    state = state.apply_gradients(grads=jax.tree.map(jnp.cos, state.params))
    WRITERS[writer](tmp_path / "c", state)
    fresh = train_state(1, tx)
    # The moments are called as the parameters are, and are not taken for them.
    at = "params.params" if writer == "v1 named" else None
    options = {} if at is None else {"at": at}
    found = js.orbax.restore(tmp_path / "c", fresh.params, **options)
    same(found.model, state.params)
    if writer not in ("v0 composite", "v1 named"):
        found = js.orbax.restore(tmp_path / "c", fresh.params, fresh)
        assert found.opt_state.step == 1 and found.step == 1
        same(found.opt_state.opt_state, state.opt_state)
        found = js.orbax.restore(tmp_path / "c", {"params": fresh.params}, fresh.opt_state)
        same(found.opt_state, state.opt_state)


def test_what_was_opened_is_written_for_torch(tmp_path):
    tx = optax.adamw(0.3, weight_decay=0.07)
    state = train_state(0, tx)
    state = state.apply_gradients(grads=jax.tree.map(jnp.cos, state.params))
    v1.save(tmp_path / "theirs", state)
    with pytest.raises(CheckpointError, match="not written by jaxstate"):
        js.orbax.to_torch(tmp_path / "theirs")
    found = js.orbax.restore(tmp_path / "theirs", {"params": state.params}, train_state(1, tx))
    binding = js.bind(linen.Dense(5), jax.ShapeDtypeStruct((1, 3), "float32"))
    js.orbax.save(tmp_path / "ours", found.model, found.opt_state, binding=binding, step=found.step)
    made = js.orbax.to_torch(tmp_path / "ours", optimizer=js.optim.adamw(lr=0.3, weight_decay=0.07))
    assert made["step"] == 1 and np.array_equal(made["model"]["weight"], np.asarray(state.params["kernel"]).T)
    mu = np.asarray(state.opt_state[0].mu["kernel"]).T
    assert np.array_equal(made["optimizer"]["state"][0]["exp_avg"], mu)


def test_a_place_that_is_not_clear(tmp_path):
    params = {"w": np.float32([1, 2]), "b": np.float32([3])}
    other = {"w": np.float32([4, 5]), "b": np.float32([6])}
    v1.save(tmp_path / "c", {"ema": other, "params": params, "model": other, "step": 3})
    with pytest.raises(CheckpointError, match=r"several places .*\['ema', 'model', 'params'\]: say at="):
        js.orbax.restore(tmp_path / "c", params)
    assert js.orbax.restore(tmp_path / "c", params, at="ema").model["w"].tolist() == [4, 5]
    v1.save(tmp_path / "d", {"ema": other})
    with pytest.raises(CheckpointError, match=r"does not fit at any place .*it fits at \['ema'\]"):
        js.orbax.restore(tmp_path / "d", params)


def test_what_does_not_fit(tmp_path, trained):
    v1.save(tmp_path / "c", nnx.state(trained))
    with pytest.raises(
        CheckpointError, match=r"params: fc.kernel is float32\[3,4\] in the .* float32\[3,5\]"
    ):
        js.orbax.restore(tmp_path / "c", Net(nnx.Rngs(0), features=5))
    with pytest.raises(CheckpointError, match=r"bn.bias is in the checkpoint and not in the template"):
        js.orbax.restore(tmp_path / "c", {"fc": {"kernel": np.ones((3, 4), "f"), "bias": np.ones(4, "f")}})
    with pytest.raises(CheckpointError, match="fc.kernal is not in the .*\n.*did you mean fc.kernel"):
        js.orbax.restore(tmp_path / "c", {"fc": {"kernal": np.ones((3, 4), "f")}})
    with pytest.raises(CheckpointError, match="needs templates; it has .*fc.kernel.value float32"):
        js.orbax.restore(tmp_path / "c")


@pytest.mark.parametrize(
    "other", [optax.sgd(0.1), optax.sgd(0.1, 0.9), optax.chain(optax.scale_by_adam(), optax.scale(-0.1))]
)
def test_another_optimizer(tmp_path, other):
    state = train_state(0, optax.adam(optax.constant_schedule(0.1)))
    v1.save(tmp_path / "c", state)
    with pytest.raises(CheckpointError, match="is in the checkpoint and not in the|0.trace.bias is not in"):
        js.orbax.restore(tmp_path / "c", None, other.init(state.params))
    v1.save(tmp_path / "d", {"params": state.params, "step": 3})
    assert js.orbax.restore(tmp_path / "d", None, optax.sgd(0.1).init(state.params)).step == 3
    with pytest.raises(CheckpointError, match="rngs= and sharding= are for checkpoints of jaxstate"):
        js.orbax.restore(tmp_path / "d", state.params, rngs=jax.random.key(0))


def test_dtypes_are_compared_and_cast_here(tmp_path):
    x = np.float32([1 / 3, 2 / 3])
    v1.save(tmp_path / "c", {"params": {"w": x, "n": np.array([2**40])}})
    half = {"w": jax.ShapeDtypeStruct((2,), "bfloat16"), "n": np.zeros(1, int)}
    with pytest.raises(CheckpointError, match="pass cast=True"):
        js.orbax.restore(tmp_path / "c", half)
    found = js.orbax.restore(tmp_path / "c", half, cast=True).model
    assert np.asarray(found["w"]).tobytes() == x.astype(ml_dtypes.bfloat16).tobytes()
    assert found["n"].tolist() == [2**40]
    with pytest.raises(CheckpointError, match="n has values that int32 does not hold"):
        js.orbax.restore(tmp_path / "c", half | {"n": jax.ShapeDtypeStruct((1,), "int32")}, cast=True)


def test_random_state_that_is_not_there(tmp_path, trained):
    v1.save(tmp_path / "c", nnx.to_pure_dict(nnx.state(trained, nnx.Not(nnx.RngState))))
    template = Net(nnx.Rngs(1))
    found = js.orbax.restore(tmp_path / "c", template).model
    same(nnx.state(found, nnx.RngState), nnx.state(template, nnx.RngState))
    with pytest.raises(CheckpointError, match="drop.rngs.key is random state, abstract in the template"):
        js.orbax.restore(tmp_path / "c", nnx.eval_shape(lambda: Net(nnx.Rngs(1))))
