"""param_groups: who is in which, and numbers that change without compiling anything anew."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstate.binding import Binding, Rule
from jaxstate.errors import OptimizerError
from jaxstate.optim import adam, adamw, param_groups, set_hyperparameters, sgd

PARAMS = {"fc": {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}, "norm": {"bias": jnp.ones(2)}}
BINDING = Binding(
    (
        Rule("fc.weight", "fc.kernel", "i o -> o i"),
        Rule("fc.bias", "fc.bias", "o -> o"),
        Rule("n.{i}.shift", "norm.bias", "i -> ", i=range(2)),
    )
)


@pytest.mark.parametrize(
    "binding, selectors, expected",
    [
        (None, ["*bias", "*kernel"], [["fc.bias", "norm.bias"], ["fc.kernel"]]),
        (None, [["fc.bias", "*kernel"], "norm.*"], [["fc.bias", "fc.kernel"], ["norm.bias"]]),
        (BINDING, ["n.*", lambda name: name.startswith("fc")], [["norm.bias"], ["fc.bias", "fc.kernel"]]),
        (BINDING, ["*", []], [["fc.bias", "fc.kernel", "norm.bias"], []]),
    ],
)
def test_selectors_divide_the_parameters(binding, selectors, expected):
    tx = sgd(param_groups=[{"params": s} for s in selectors], binding=binding)
    assert [group["params"] for group in param_groups(tx.init(PARAMS))] == expected


@pytest.mark.parametrize(
    "selectors, words",
    [
        (["*bias"], 'no group chooses "fc.weight", "n.0.shift", "n.1.shift"'),
        (["*", "fc.bias"], 'groups 0, 1 all choose "fc.bias"'),
        (["*", "*gamma"], r'"\*gamma" of group 1 matches none of'),
        (["fc*", "n.0.*", "n.1.*"], '"n.0.shift", "n.1.shift" are one leaf, norm.bias'),
    ],
)
def test_selectors_that_do_not_divide_them_are_refused(selectors, words):
    tx = sgd(param_groups=[{"params": s} for s in selectors], binding=BINDING)
    with pytest.raises(OptimizerError, match=words):
        tx.init(PARAMS)


def test_a_group_needs_params_and_options_that_torch_takes():
    with pytest.raises(OptimizerError, match="a group says what its parameters are"):
        sgd(param_groups=[{"lr": 1.0}])
    with pytest.raises(OptimizerError, match="Invalid learning rate: -1"):
        sgd(param_groups=[{"params": "*", "lr": -1}])


def test_numbers_change_without_another_compilation():
    traces = []

    @jax.jit
    def step(params, opt):
        traces.append(1)
        updates, opt = tx.update(PARAMS, opt, params)
        return optax.apply_updates(params, updates), opt

    tx = optax.chain(optax.clip(9.0), adamw(lr=0.1))
    opt = tx.init(PARAMS)
    first, opt = step(PARAMS, opt)
    opt = set_hyperparameters(opt, lr=0.0123, betas=(0.5, 0.75), weight_decay=0.0)
    second, opt = step(first, opt)
    still, opt = step(second, set_hyperparameters(opt, lr=0.0))
    assert len(traces) == 1
    assert param_groups(opt)[0]["betas"] == (0.5, 0.75)
    assert not np.array_equal(first["fc"]["bias"], second["fc"]["bias"])
    assert np.array_equal(still["fc"]["bias"], second["fc"]["bias"])


def test_one_group_and_traced_values():
    tx = sgd(param_groups=[{"params": "fc*"}, {"params": "norm*"}])
    opt = tx.init(PARAMS)
    assert [g["lr"] for g in param_groups(set_hyperparameters(opt, lr=0.1, group=-1))] == [1e-3, 0.1]

    @jax.jit
    def scaled(opt, lr):
        updates, _ = tx.update(PARAMS, set_hyperparameters(opt, lr=lr), PARAMS)
        return updates["fc"]["bias"]

    rates = jnp.array([0.5, 2.0])
    assert jax.vmap(lambda lr: scaled(opt, lr))(rates).tolist() == [[-0.5] * 3, [-2.0] * 3]


def test_integers_stay_integers_until_they_are_not():
    opt = sgd(weight_decay=0).init(PARAMS)
    assert type(param_groups(opt)[0]["weight_decay"]) is int
    assert param_groups(set_hyperparameters(opt, weight_decay=0.1))[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    "values, words",
    [
        ({"nesterov": True}, '"nesterov" cannot be set: the numbers of SGD are "lr", "momentum"'),
        ({"lr": (1.0, 2.0)}, "lr takes one number"),
        ({"lr": 1.0, "group": 1}, "there is no group 1: the optimizer has 1"),
        ({"momentum": 0.9}, r"no momentum_buffer; make it with js.optim.sgd\(lr=0.001, momentum=0.9"),
    ],
)
def test_what_cannot_be_set_is_refused(values, words):
    with pytest.raises(OptimizerError, match=words):
        set_hyperparameters(sgd().init(PARAMS), **values)


def test_pairs_stay_pairs():
    with pytest.raises(OptimizerError, match="betas takes 2 numbers, not 0.9"):
        set_hyperparameters(adam().init(PARAMS), betas=0.9)


def test_momentum_may_pause():
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.ones(3))
    oracle = torch.optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.4, foreach=False)
    tx, params = sgd(lr=0.1, momentum=0.9, dampening=0.4), {"w": jnp.ones(3)}
    opt = tx.init(params)
    for t, momentum in enumerate([0.0, 0.9, 0.9, 0.0, 0.9]):
        opt, oracle.param_groups[0]["momentum"] = set_hyperparameters(opt, momentum=momentum), momentum
        slope = np.float32([1, -2, t])
        p.grad = torch.from_numpy(slope.copy())
        oracle.step()
        updates, opt = tx.update({"w": jnp.asarray(slope)}, opt, params)
        params = optax.apply_updates(params, updates)
        assert np.allclose(params["w"], p.detach().numpy(), rtol=1e-6)
