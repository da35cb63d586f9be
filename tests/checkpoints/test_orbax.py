"""A checkpoint comes back whole into its templates, or says what does not fit; plain Orbax opens it too."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import jaxstate as js
from jaxstate.errors import CheckpointError
from jaxstate.tree import flat


class Net(nnx.Module):
    def __init__(self, rngs, features=4):
        self.fc = nnx.Linear(3, features, rngs=rngs)
        self.bn = nnx.BatchNorm(features, rngs=rngs)
        self.half = nnx.Param(jnp.arange(3, dtype=jnp.bfloat16))


def trained(tx, steps=3):
    net = Net(nnx.Rngs(0))
    params = nnx.state(net, nnx.Param)
    opt = tx.init(params)
    for n in range(steps):
        grads = jax.tree.map(
            lambda x, n=n: jnp.sin(n + jnp.arange(x.size).reshape(x.shape)).astype(x.dtype), params
        )
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    nnx.update(net, params)
    net.bn.mean[...] = jnp.float32([1, 2, 3, 4])
    return net, opt


def same(left, right):
    left, right = flat(left), flat(right)
    assert list(left) == list(right)
    for path in left:
        a, b = np.asarray(left[path]), np.asarray(right[path])
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), path


OPTIMIZERS = {
    "sgd": lambda: js.optim.sgd(lr=0.1, momentum=0.9),
    "sgd without momentum": lambda: js.optim.sgd(lr=0.1),
    "adamw": lambda: js.optim.adamw(lr=3e-4, betas=(0.85, 0.97), amsgrad=True),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), js.optim.adam(lr=3e-4)),
    "optax": lambda: optax.adamw(optax.linear_schedule(1e-3, 0, 10)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_comes_back(tmp_path, name):
    tx = OPTIMIZERS[name]()
    net, opt = trained(tx)
    js.orbax.save(tmp_path / "c", net, opt, step=7)
    template = Net(nnx.Rngs(1))
    restored = js.orbax.restore(tmp_path / "c", template, tx.init(nnx.state(template, nnx.Param)))
    assert type(restored.model) is Net and restored.step == 7 and restored.binding == js.bind(net)
    same(nnx.state(restored.model), nnx.state(net))
    same(restored.opt_state, opt)
    assert jax.tree.structure(restored.opt_state) == jax.tree.structure(opt)


def test_groups_come_back_verbatim(tmp_path):
    groups = [{"params": "*bias", "weight_decay": 0, "name": "b", "initial_lr": 0.1}, {"params": "*[!s]"}]
    tx = js.optim.adamw(lr=0.1 + 0.2, param_groups=groups)
    net, opt = trained(tx, 1)
    opt = js.optim.set_hyperparameters(opt, lr=1 / 3, group=0)
    js.orbax.save(tmp_path / "c", net, opt)
    plain = js.optim.adamw(lr=1.0, foreach=True, param_groups=[{"params": "*bias"}, {"params": "*[!s]"}])
    restored = js.orbax.restore(tmp_path / "c", net, plain.init(nnx.state(net, nnx.Param)))
    assert repr(js.optim.param_groups(restored.opt_state)) == repr(js.optim.param_groups(opt))


def test_groups_of_several_optimizers_come_back(tmp_path):
    def labelled(params):
        return jax.tree.map(lambda x: "flat" if x.ndim == 1 else "rest", params)

    def tx(lr, **options):
        parts = {"flat": js.optim.sgd(lr=lr, momentum=0.9, **options), "rest": js.optim.adam(lr=lr)}
        return optax.partition(parts, labelled)

    net, _ = trained(js.optim.adam(), 0)
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    opt = tx(0.3, foreach=True).init(params)
    js.orbax.save(tmp_path / "c", net, opt)
    restored = js.orbax.restore(tmp_path / "c", net, tx(0.1).init(params))
    for label in ("flat", "rest"):
        before, after = (state.inner_states[label].inner_state for state in (opt, restored.opt_state))
        assert repr(js.optim.param_groups(after)) == repr(js.optim.param_groups(before))
    with pytest.raises(CheckpointError, match="groups are of|is not in the checkpoint"):
        js.orbax.restore(tmp_path / "c", net, js.optim.adam().init(params))


def test_abstract_and_sharded_templates_are_filled_in_place(tmp_path):
    tx = js.optim.adam()
    net, opt = trained(tx)
    js.orbax.save(tmp_path / "c", net, opt)
    template = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    restored = js.orbax.restore(tmp_path / "c", template, jax.eval_shape(tx.init, nnx.state(net, nnx.Param)))
    same(nnx.state(restored.model), nnx.state(net))
    same(restored.opt_state, opt)


def test_the_model_alone(tmp_path):
    net, opt = trained(js.optim.adam())
    js.orbax.save(tmp_path / "c", net, opt)
    restored = js.orbax.restore(tmp_path / "c", Net(nnx.Rngs(1)))
    assert restored.opt_state is None and restored.step is None
    same(nnx.state(restored.model), nnx.state(net))


def test_the_binding_that_was_saved_writes_the_torch_file(tmp_path):
    net, _ = trained(js.optim.adam())
    file = js.state_dict(net)
    file["bn.num_batches_tracked"][...] = 17
    js.orbax.save(tmp_path / "c", net, binding=js.bind(net, like=file))
    restored = js.orbax.restore(tmp_path / "c", Net(nnx.Rngs(1)))
    again = js.state_dict(restored.model, restored.binding)
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in file.items()}


def test_numpy_trees_with_numbers_stay_numpy(tmp_path):
    binding = js.Binding((js.Rule("w", "w", "i o -> o i"), js.Rule("n", "n", "->")))
    tree = {"w": np.arange(6, dtype=ml_dtypes.float8_e4m3fn).reshape(2, 3), "n": np.array(2**40)}
    js.orbax.save(tmp_path / "c", tree, {"count": 3, "empty": np.zeros((0, 2)), "rate": 0.5}, binding=binding)
    template = {"count": 0, "empty": np.zeros((0, 2)), "rate": 0.0}
    restored = js.orbax.restore(tmp_path / "c", {k: np.zeros_like(v) for k, v in tree.items()}, template)
    same(restored.model, tree)
    assert restored.opt_state["count"] == 3 and type(restored.opt_state["count"]) is int
    assert restored.opt_state["rate"] == 0.5


def test_plain_orbax_opens_it(tmp_path):
    net, _ = trained(js.optim.adam())
    js.orbax.save(tmp_path / "c", net)
    target = {
        path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flat(nnx.state(net, nnx.Param)).items()
    }
    found = ocp.load_checkpointables(tmp_path / "c", {"params": target})["params"]
    np.testing.assert_array_equal(found["fc.kernel"], net.fc.kernel[...])


def test_what_does_not_fit_is_listed(tmp_path):
    tx = js.optim.adam()
    net, opt = trained(tx)
    js.orbax.save(tmp_path / "c", net, opt)
    wide = Net(nnx.Rngs(0), features=5)
    with pytest.raises(CheckpointError) as caught:
        js.orbax.restore(tmp_path / "c", wide, tx.init(nnx.state(wide, nnx.Param)))
    text = str(caught.value)
    assert "params: fc.kernel is float32[3,4] in the checkpoint and float32[3,5] in the template" in text
    assert "buffers: bn.mean is float32[4]" in text and "optimizer: buffers.exp_avg.fc.kernel is" in text


def test_another_dtype_is_no_fit(tmp_path):
    tree, binding = {"w": np.ones(3, "float32")}, js.Binding((js.Rule("w", "w", "a -> a"),))
    js.orbax.save(tmp_path / "c", tree, binding=binding)
    for dtype in ("float16", "float64", "int32"):
        with pytest.raises(CheckpointError, match="params: w is"):
            js.orbax.restore(tmp_path / "c", {"w": np.ones(3, dtype)})


def test_another_optimizer_is_no_fit(tmp_path):
    net, opt = trained(js.optim.adam())
    js.orbax.save(tmp_path / "c", net, opt)
    with pytest.raises(CheckpointError, match="buffers.momentum_buffer.* is not in the checkpoint"):
        js.orbax.restore(tmp_path / "c", net, js.optim.sgd(momentum=0.9).init(nnx.state(net, nnx.Param)))


def test_nothing_is_overwritten(tmp_path):
    net, _ = trained(js.optim.adam())
    js.orbax.save(tmp_path / "c", net)
    with pytest.raises(CheckpointError, match="never written over another"):
        js.orbax.save(tmp_path / "c", net)


def test_what_orbax_cannot_keep_is_refused_before_it_is_asked(tmp_path):
    net, _ = trained(js.optim.adam())
    with pytest.raises(CheckpointError, match="optimizer: name is a str, no array"):
        js.orbax.save(tmp_path / "c", net, {"name": "x"})
    with pytest.raises(CheckpointError, match="is abstract, and has no values"):
        js.orbax.save(tmp_path / "c", nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")]
)
def test_other_places_are_no_checkpoint(tmp_path, make):
    make(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no whole checkpoint of Orbax"):
        js.orbax.restore(tmp_path / "c", Net(nnx.Rngs(0)))
