"""A weight decay of 0 is left out of the program, and is a number again wherever it becomes another."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxstate as js
from jaxstate.binding import Binding, Rule
from jaxstate.optim import adam, adamw, load_state_dict, param_groups, set_hyperparameters, sgd, state_dict

PARAMS = {"b": jnp.float32([1, -2, 3, 0.5, 7]), "w": jnp.arange(12, dtype=jnp.float32).reshape(4, 3) - 5}
GRADS = jax.tree.map(jnp.cos, PARAMS)
BINDING = Binding((Rule("w", "w", "i o -> o i"), Rule("b", "b", "o -> o")))
GROUPS = [{"params": "b", "weight_decay": 0}, {"params": "w", "weight_decay": 0.3}]


def decays(opt):
    return [group["weight_decay"] for group in param_groups(opt)]


def leaves(opt):
    """How many of the groups have a leaf for it."""
    return sum(bool(jax.tree.leaves(group.numbers["weight_decay"])) for group in opt.param_groups)


def counting(tx):
    """A compiled step, and the list that it grows by one whenever it is traced."""
    traces = []

    @jax.jit
    def step(params, opt):
        traces.append(1)
        updates, opt = tx.update(GRADS, opt, params)
        return optax.apply_updates(params, updates), opt

    return step, traces


def test_the_program_reads_no_parameter_for_nothing():
    def read(tx):
        text = str(jax.make_jaxpr(lambda opt, p: tx.update({"b": p["b"]}, opt, p)[1])(tx.init(only), only))
        return text.count("mul")

    only = {"b": PARAMS["b"]}
    assert read(sgd(momentum=0.9)) < read(sgd(momentum=0.9, weight_decay=0.3))
    assert leaves(sgd().init(only)) == 0 and leaves(sgd(weight_decay=0.3).init(only)) == 1


def test_another_number_compiles_once_more_and_zero_then_nothing():
    tx = adam(lr=0.1)
    step, traces = counting(tx)
    params, opt = step(PARAMS, tx.init(PARAMS))
    for value in (0, 0.0, 0.3, 0.7, 0.0):
        opt = set_hyperparameters(opt, weight_decay=value, lr=0.2)
        assert decays(opt) == [value]
        params, opt = step(params, opt)
    assert len(traces) == 2


@pytest.mark.parametrize("zero", [0, jnp.zeros(())], ids=["left out", "traced"])
@pytest.mark.parametrize("make", [sgd, adam, adamw, js.optim.rmsprop, js.optim.asgd, js.optim.muon])
def test_left_out_or_traced_a_zero_does_the_same(make, zero):
    params = {"w": PARAMS["w"]}
    tx = make(lr=0.1, weight_decay=0)
    opt = set_hyperparameters(tx.init(params), weight_decay=zero)
    updates, _ = tx.update({"w": GRADS["w"]}, opt, params)
    expected, _ = make(lr=0.1, weight_decay=1e-30).update({"w": GRADS["w"]}, tx.init(params), params)
    assert leaves(opt) == (0 if isinstance(zero, int) else 1)
    assert np.allclose(updates["w"], expected["w"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("here", [0, 0.3], ids=["zero here", "another here"])
def test_a_file_whose_groups_differ_is_loaded(here):
    torch = pytest.importorskip("torch")
    arrays = {"w": np.array(PARAMS["w"]).T.copy(), "b": np.array(PARAMS["b"])}
    p = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in arrays.items()}
    rows = [{**group, "params": [p[group["params"]]]} for group in GROUPS]
    oracle = torch.optim.SGD(rows, lr=0.1, momentum=0.9, foreach=False)
    tx = sgd(lr=0.7, momentum=0.9, weight_decay=here, param_groups=[{"params": "b"}, {"params": "w"}])
    step, traces = counting(tx)
    step(PARAMS, tx.init(PARAMS))
    for n in range(4):
        if n == 2:
            opt = load_state_dict(tx.init(PARAMS), copy.deepcopy(oracle.state_dict()), BINDING)
            params = {"w": jnp.array(p["w"].detach().numpy().T), "b": jnp.array(p["b"].detach().numpy())}
        if n >= 2:
            params, opt = step(params, opt)
        p["w"].grad, p["b"].grad = (torch.from_numpy(np.array(GRADS[k]).T.copy()) for k in ("w", "b"))
        oracle.step()
    assert decays(opt) == [0, 0.3] and type(decays(opt)[0]) is int
    # What is an array in the template stays one, as a tree of shardings like the template would have it.
    assert len(traces) == 2 and leaves(opt) == (2 if here else 1)
    assert np.allclose(params["w"], p["w"].detach().numpy().T, rtol=1e-6)
    assert np.allclose(params["b"], p["b"].detach().numpy(), rtol=1e-6)
    assert state_dict(opt, BINDING)["param_groups"] == oracle.state_dict()["param_groups"]


def test_injected_zeros_stay_arrays():
    tx = optax.inject_hyperparams(adam)(lr=0.1, weight_decay=0.0)
    step, traces = counting(tx)
    params, opt = step(PARAMS, tx.init(PARAMS))
    opt.hyperparams["weight_decay"] = jnp.float32(0.3)
    params, opt = step(params, opt)
    assert len(traces) == 1 and np.isclose(state_dict(opt, BINDING)["param_groups"][0]["weight_decay"], 0.3)


@pytest.mark.parametrize("saved, template", [(0, 0), (0, 0.3), (0.3, 0), (0.3, 0.7)])
def test_orbax_keeps_either(tmp_path, saved, template):
    net = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    made = [nnx.Optimizer(net, sgd(weight_decay=x, momentum=0.9), wrt=nnx.Param) for x in (saved, template)]
    js.orbax.save(tmp_path / "c", net, made[0])
    restored = js.orbax.restore(tmp_path / "c", net, made[1]).opt_state
    assert decays(restored) == [saved]
    restored.update(net, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2)))))(net))


def test_nnx_gets_a_variable_for_it():
    def trained(optimizer):
        net = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        for _ in range(2):
            optimizer.update(net, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2))) ** 2))(net))
        return np.asarray(net.kernel[...])

    net = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    plain, decayed = (nnx.Optimizer(net, sgd(lr=0.1, weight_decay=x), wrt=nnx.Param) for x in (0, 0.3))
    assert np.array_equal(trained(set_hyperparameters(plain, weight_decay=0.3)), trained(decayed))
    assert decays(plain) == [0]


def test_the_momentum_of_rmsprop_may_pause():
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.ones(3))
    oracle = torch.optim.RMSprop([p], lr=0.1, momentum=0.9, alpha=0.7, eps=0.0, foreach=False)
    tx, params = js.optim.rmsprop(lr=0.1, momentum=0.9, alpha=0.7, eps=0.0), {"w": jnp.ones(3)}
    opt = tx.init(params)
    for t, momentum in enumerate([0.9, 0.0, 0.9, 0.5, 0.0]):
        opt, oracle.param_groups[0]["momentum"] = set_hyperparameters(opt, momentum=momentum), momentum
        slope = np.float32([1, -2, t + 1])
        p.grad = torch.from_numpy(slope.copy())
        oracle.step()
        updates, opt = jax.jit(tx.update)({"w": jnp.asarray(slope)}, opt, params)
        params = optax.apply_updates(params, updates)
        assert np.allclose(params["w"], p.detach().numpy(), rtol=1e-6, atol=1e-6)
        assert np.allclose(opt.buffers["momentum_buffer"]["w"], oracle.state[p]["momentum_buffer"], rtol=1e-6)
