"""nnx.Optimizer and nnx.ModelAndOptimizer: a new one with torch's state, and torch's state of one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch")

from optimizer_pair import as_tensors  # noqa: E402

import jaxstate as js  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402

OPTIONS = {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-5}
X = np.random.default_rng(0).normal(size=(5, 3)).astype("f")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.second = nnx.Linear(4, 2, rngs=rngs)
        self.first = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.second = torch.nn.Linear(4, 2)
        self.first = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def loss(model):
    return jnp.mean(model(jnp.asarray(X)) ** 2)


def torch_steps(net, opt, count):
    for _ in range(count):
        opt.zero_grad()
        net(torch.from_numpy(X)).pow(2).mean().backward()
        opt.step()


def nnx_steps(model, optimizer, count):
    for _ in range(count):
        grads = nnx.grad(loss)(model)
        if isinstance(optimizer, nnx.ModelAndOptimizer):
            optimizer.update(grads)
        else:
            optimizer.update(model, grads)


def weights(net):
    return {key: value.detach().numpy().copy() for key, value in net.state_dict().items()}


def assert_near(found, expected, start):
    moved = max(np.max(np.abs(expected[key] - start[key])) for key in start)
    assert max(np.max(np.abs(found[key] - expected[key])) for key in start) / moved < 2e-5


KINDS = {
    "ours": (js.optim.adamw(**OPTIONS), {}),
    "chain": (optax.chain(optax.clip(100.0), js.optim.adamw(**OPTIONS)), {}),
    "optax": (
        optax.adamw(optax.constant_schedule(0.02), b1=0.8, b2=0.9, eps=1e-5, weight_decay=0.1),
        {"optimizer": js.optim.adamw(**OPTIONS)},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holder", ["Optimizer", "ModelAndOptimizer"])
def test_training_goes_on(kind, holder):
    tx, how = KINDS[kind]
    torch.manual_seed(0)
    net = TorchNet()
    start = weights(net)
    opt = torch.optim.AdamW(net.parameters(), **OPTIONS)
    torch_steps(net, opt, 4)
    model = js.load_state_dict(Net(nnx.Rngs(0)), net.state_dict())
    binding = js.bind(model)
    made = getattr(nnx, holder)(model, tx, wrt=nnx.Param)
    optimizer = js.optim.load_state_dict(made, opt.state_dict(), binding, **how)
    assert type(optimizer) is type(made) and int(optimizer.step[...]) == 4
    assert int(made.step[...]) == 0 and not any(np.any(x) for x in moments(made))
    nnx_steps(model, optimizer, 3)
    torch_steps(net, opt, 3)
    assert_near({k: np.asarray(v) for k, v in js.state_dict(model).items()}, weights(net), start)

    osd = as_tensors(js.optim.state_dict(optimizer, binding, **how))
    twin = TorchNet()
    twin.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in js.state_dict(model).items()})
    again = torch.optim.AdamW(twin.parameters())
    again.load_state_dict(osd)
    torch_steps(twin, again, 3)
    torch_steps(net, opt, 3)
    assert_near(weights(twin), weights(net), start)


def moments(optimizer):
    leaves = jax.tree.leaves(nnx.as_pure(optimizer.opt_state))
    return [np.asarray(x) for x in leaves if getattr(x, "ndim", 0) > 1]


def test_variables_keep_their_kind_and_the_model_is_shared():
    model = Net(nnx.Rngs(0))
    made = nnx.ModelAndOptimizer(model, js.optim.adamw(), wrt=nnx.Param)
    osd = js.optim.state_dict(made, js.bind(model))
    loaded = js.optim.load_state_dict(made, osd, js.bind(model))
    assert loaded.model is model and loaded.tx is made.tx

    def kinds(o):
        return [type(x) for x in jax.tree.leaves(o.opt_state, is_leaf=lambda x: isinstance(x, nnx.Variable))]

    assert kinds(loaded) == kinds(made) and type(loaded.step) is type(made.step)
    graphdef, state = nnx.split(loaded)
    assert nnx.merge(graphdef, state).step[...] == 0


def test_a_jitted_step_goes_on():
    model = Net(nnx.Rngs(0))
    made = nnx.Optimizer(model, js.optim.sgd(lr=0.1, momentum=0.9), wrt=nnx.Param)
    nnx_steps(model, made, 1)
    osd = js.optim.state_dict(made, js.bind(model))
    loaded = js.optim.load_state_dict(made, osd, js.bind(model), step=1)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    step(model, loaded)
    assert int(loaded.step[...]) == 2


def test_sgd_does_not_say_flaxs_step():
    model = Net(nnx.Rngs(0))
    made = nnx.Optimizer(model, js.optim.sgd(lr=0.1, momentum=0.9), wrt=nnx.Param)
    osd = js.optim.state_dict(made, js.bind(model))
    with pytest.raises(OptimizerError, match=r"step=:\n\t.step counts steps, and this optimizer writes none"):
        js.optim.load_state_dict(made, osd, js.bind(model))


def test_hyperparameters_of_a_holder():
    model = Net(nnx.Rngs(0))
    made = nnx.Optimizer(model, js.optim.adamw(lr=0.5), wrt=nnx.Param)
    slower = js.optim.set_hyperparameters(made, lr=0.25)
    assert [js.optim.param_groups(o)[0]["lr"] for o in (made, slower)] == [0.5, 0.25]


def test_the_holder_may_be_abstract():
    model = Net(nnx.Rngs(0))
    made = nnx.Optimizer(model, js.optim.adamw(), wrt=nnx.Param)
    nnx_steps(model, made, 2)
    osd = js.optim.state_dict(made, js.bind(model))
    abstract = nnx.eval_shape(lambda: nnx.Optimizer(Net(nnx.Rngs(0)), js.optim.adamw(), wrt=nnx.Param))
    loaded = js.optim.load_state_dict(abstract, osd, js.bind(model))
    assert int(loaded.step[...]) == 2
    here, there = (nnx.as_pure(o.opt_state) for o in (made, loaded))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), here, there))
