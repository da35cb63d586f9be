"""The transformations inside jax and optax: scan, vmap, chain, masked, MultiSteps, and NNX's states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxstate.binding import Binding, Rule
from jaxstate.errors import OptimizerError
from jaxstate.optim import adamw, load_state_dict, sgd, state_dict

PARAMS = {"a": jnp.arange(1.0, 4.0), "b": jnp.ones((2, 2))}
GRADS = [jax.tree.map(lambda p, t=t: jnp.sin(p + t), PARAMS) for t in range(4)]
BINDING = Binding((Rule("b", "b", "i o -> o i"), Rule("a", "a", "i -> i")))


def trained(tx, params=PARAMS, grads=GRADS):
    opt = tx.init(params)
    for slope in grads:
        updates, opt = jax.jit(tx.update)(slope, opt, params)
        params = optax.apply_updates(params, updates)
    return params, opt


def same(left, right):
    close = jax.tree.map(lambda x, y: np.allclose(x, y, rtol=1e-6, atol=1e-7), left, right)
    assert jax.tree.structure(left) == jax.tree.structure(right) and jax.tree.all(close)


@pytest.mark.parametrize("tx", [adamw(lr=0.1, amsgrad=True), sgd(lr=0.1, momentum=0.9)], ids=["adamw", "sgd"])
def test_scan_is_the_loop(tx):
    def body(carry, slope):
        params, opt = carry
        updates, opt = tx.update(slope, opt, params)
        return (optax.apply_updates(params, updates), opt), None

    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *GRADS)
    same(jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), stacked)[0], trained(tx))


def test_vmap_trains_an_ensemble():
    tx = adamw(lr=0.1)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    opt = jax.vmap(tx.init)(many)
    updates, opt = jax.vmap(tx.update)(many, opt, many)
    one, _ = tx.update(
        jax.tree.map(lambda p: 2 * p, PARAMS), tx.init(PARAMS), jax.tree.map(lambda p: 2 * p, PARAMS)
    )
    same(jax.tree.map(lambda u: u[1], updates), one)


def test_chain_clips_first():
    tx = optax.chain(optax.clip(0.1), sgd(lr=1.0))
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    same(updates, jax.tree.map(lambda g: -jnp.clip(g, -0.1, 0.1), GRADS[0]))


def test_masked_optimizes_a_part_and_its_state_travels():
    tx = optax.masked(adamw(lr=0.1), {"a": False, "b": True})
    _, opt = trained(tx)
    alone, _ = trained(adamw(lr=0.1), {"b": PARAMS["b"]}, [{"b": g["b"]} for g in GRADS])
    osd = state_dict(opt, BINDING)
    assert list(osd["state"]) == [0] and osd["param_groups"][0]["params"] == [0]
    same(load_state_dict(tx.init(PARAMS), osd, BINDING), opt)
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    first, _ = trained(adamw(lr=0.1), {"b": PARAMS["b"]}, [{"b": GRADS[0]["b"]}])
    same(PARAMS["b"] + updates["b"], first["b"])


def test_multi_steps_keeps_one_state():
    tx = optax.MultiSteps(adamw(lr=0.1), 2)
    _, opt = trained(tx)
    assert state_dict(opt, BINDING)["state"][0]["step"] == 2.0


def test_lists_and_single_arrays_are_trees():
    for params in ([jnp.ones(2), {"x": jnp.ones(3)}], jnp.ones(4)):
        updates, _ = sgd(lr=1.0).update(params, sgd(lr=1.0).init(params), params)
        same(updates, jax.tree.map(lambda p: -p, params))


def test_a_gradient_of_none_changes_no_bit():
    params = {"a": jnp.array([-0.0, 0.0, 1e-37]), "b": PARAMS["b"]}
    tx = adamw(lr=0.1)
    updates, opt = tx.update({"a": None, "b": PARAMS["b"]}, tx.init(params), params)
    after = optax.apply_updates(params, updates)["a"]
    assert np.asarray(after).tobytes() == np.asarray(params["a"]).tobytes()
    assert opt.step.tolist() == [0, 1]


def test_nnx_states_and_their_paths():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    binding = Binding((Rule("weight", "kernel", "i o -> o i"), Rule("bias", "bias", "o -> o")))
    tx = adamw(
        lr=0.1, param_groups=[{"params": "bias", "weight_decay": 0.0}, {"params": "weight"}], binding=binding
    )

    def loss(model):
        return jnp.sum(model(jnp.ones((1, 2))) ** 2)

    opt = tx.init(params)
    updates, opt = jax.jit(tx.update)(nnx.grad(loss)(model), opt, params)
    nnx.update(model, optax.apply_updates(params, updates))
    osd = state_dict(opt, binding)
    assert {i: entry["exp_avg"].shape for i, entry in osd["state"].items()} == {0: (3,), 1: (3, 2)}
    same(load_state_dict(tx.init(params), osd, binding), opt)


def test_nnx_optimizer_takes_it():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    before = np.asarray(model.bias[...])
    optimizer = nnx.Optimizer(model, sgd(lr=0.5, momentum=0.9), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2)))))(model))
    assert np.array_equal(np.asarray(model.bias[...]), before - 0.5)


def test_tree_map_params_is_told_why_not():
    tx = adamw()
    with pytest.raises(OptimizerError, match="optax.tree_map_params inits.*map over state.buffers instead"):
        optax.tree_map_params(tx, lambda x: x, tx.init(PARAMS))


def test_init_may_be_abstract():
    tx = adamw()
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.structure(abstract) == jax.tree.structure(tx.init(PARAMS))
    half = tx.init(jax.eval_shape(lambda: PARAMS))
    assert isinstance(half.buffers["exp_avg"]["a"], jax.ShapeDtypeStruct)
