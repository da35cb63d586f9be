"""torch file -> checkpoint -> torch file: every bit comes back, and no program of the model is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

import jaxstate as js
from jaxstate.errors import CheckpointError, OptimizerError

OPTIMIZERS = {
    "Adadelta": dict(lr=0.7, rho=0.83, weight_decay=0.07),
    "Adafactor": dict(lr=0.05, beta2_decay=-0.7),
    "Adagrad": dict(lr=0.05, lr_decay=0.13, initial_accumulator_value=0.2),
    "Adam": dict(lr=0.1 + 0.2, betas=(0.83, 0.997), amsgrad=True),
    "AdamW": dict(lr=1 / 3, weight_decay=0.07, foreach=False),
    "Adamax": dict(lr=0.05, betas=(0.83, 0.97)),
    "ASGD": dict(lr=0.05, lambd=0.3, t0=1, alpha=0.6),
    "LBFGS": dict(lr=0.7, history_size=3, max_iter=4),
    "Muon": dict(lr=0.05, momentum=0.7),
    "NAdam": dict(lr=0.05, momentum_decay=0.02),
    "RAdam": dict(lr=0.05, betas=(0.4, 0.85)),
    "RMSprop": dict(lr=0.05, alpha=0.83, momentum=0.7, centered=True),
    "Rprop": dict(lr=0.05, etas=(0.4, 1.3)),
    "SGD": dict(lr=0.05, momentum=0.9, dampening=0.3),
    "SparseAdam": dict(lr=0.05, betas=(0.83, 0.97)),
}
FEW_NAMES = {"Muon": ["weight"], "SparseAdam": ["weight"]}
OURS = {"SparseAdam": "sparse_adam"}
BOUND = ("Adafactor", "Muon", "LBFGS")


def equal(found, expected):
    """The same types, keys in the same order, and every bit."""
    if isinstance(expected, torch.Tensor | np.ndarray):
        found, expected = (torch.as_tensor(x) for x in (found, expected))
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.numpy(force=True).tobytes() == expected.numpy(force=True).tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected) and len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            equal(*pair)
    else:
        assert type(found) is type(expected) and repr(found) == repr(expected)


def trained_in_torch(name, seed, steps=2):
    torch.manual_seed(seed)
    net = torch.nn.Linear(3, 5)
    names = FEW_NAMES.get(name, ["weight", "bias"])
    params = [getattr(net, n) for n in names]
    optimizer = getattr(torch.optim, name)(params, **OPTIMIZERS[name])

    def closure():
        optimizer.zero_grad()
        loss = net(torch.arange(12.0).reshape(4, 3) / 7).square().sum()
        loss.backward()
        if name == "SparseAdam":
            params[0].grad = params[0].grad.to_sparse(1)
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return net, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(tmp_path, name):
    net, optimizer = trained_in_torch(name, 0)
    expected = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    model = nnx.Linear(3, 5, rngs=nnx.Rngs(1))
    binding = js.bind(model, like=expected["model"])
    model = js.load_state_dict(model, expected["model"], binding)
    params = nnx.to_pure_dict(nnx.state(model))
    params = {k: params[k] for k in params if not (name in FEW_NAMES and k == "bias")}
    options = {k: v for k, v in OPTIMIZERS[name].items() if k != "foreach"}
    options |= {"binding": binding} if name in BOUND else {}
    template = getattr(js.optim, OURS.get(name, name.lower()))(**options).init(params)
    opt = js.optim.load_state_dict(template, expected["optimizer"], binding)
    js.orbax.save(tmp_path / "c", model, opt, binding=binding, step=2)
    js.save(js.orbax.to_torch(tmp_path / "c"), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.pop("step") == 2
    equal(back, expected)
    restored = js.orbax.restore(tmp_path / "c", model, jax.eval_shape(lambda: template))
    equal(js.optim.state_dict(restored.opt_state, binding), js.optim.state_dict(opt, binding))
    assert jax.tree.structure(restored.opt_state) == jax.tree.structure(opt)


@pytest.mark.parametrize("name", ["AdamW", "LBFGS", "Adafactor"])
def test_double_precision_leaves_a_process_that_has_none(tmp_path, name):
    with jax.enable_x64(True):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 5).double()
        optimizer = getattr(torch.optim, name)(net.parameters(), **OPTIMIZERS[name])

        def closure():
            optimizer.zero_grad()
            loss = net(torch.arange(12.0).double().reshape(4, 3) / 7).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        expected = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
        model = nnx.Linear(3, 5, param_dtype=jnp.float64, rngs=nnx.Rngs(1))
        binding = js.bind(model, like=expected["model"])
        model = js.load_state_dict(model, expected["model"], binding)
        options = {k: v for k, v in OPTIMIZERS[name].items() if k != "foreach"}
        options |= {"binding": binding} if name in BOUND else {}
        template = getattr(js.optim, name.lower())(**options).init(nnx.to_pure_dict(nnx.state(model)))
        opt = js.optim.load_state_dict(template, expected["optimizer"], binding)
        js.orbax.save(tmp_path / "c", model, opt, binding=binding)
    js.save(js.orbax.to_torch(tmp_path / "c"), tmp_path / "back.pt")
    equal(torch.load(tmp_path / "back.pt", weights_only=True), expected)


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = torch.nn.Embedding(7, 3)
        self.bn = torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(3, 7, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("scale", torch.tensor([0.5, -0.0, float("nan")]))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.wte = nnx.Embed(7, 3, rngs=rngs)
        self.bn = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_what_only_torch_has(tmp_path):
    """Tied keys, counters, constants, `_metadata`, an order of keys, a scheduler, other entries."""
    torch.manual_seed(0)
    net = TorchNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.7)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5], gamma=0.37)
    for _ in range(3):
        net.bn(torch.randn(4, 3))
        net.wte.weight.grad = torch.randn(7, 3)
        optimizer.step()
        scheduler.step()
    names = ["model", "optimizer", "scheduler"]
    states = [x.state_dict() for x in (net, optimizer, scheduler)]
    file = dict(zip(names, states, strict=True)) | {
        "step": 3,
        "epoch": 11,
        "best": float("inf"),
        "tag": (1, "x"),
    }
    torch.save(file, tmp_path / "a.pt")
    ckpt = js.load(tmp_path / "a.pt")
    rules = [
        js.Rule("wte.weight", "wte.embedding", "v d -> v d"),
        js.Tied("head.weight", "wte.weight"),
        js.TorchOnly("scale", ckpt["model"]["scale"]),
    ]
    model = Net(nnx.Rngs(1))
    read = [rule for rule in js.bind(model).rules if rule.keys != ("wte.weight",)]
    binding = js.Binding((*rules, *read)).of(leaves_of(model))
    binding = binding.like(ckpt["model"])
    model = js.load_state_dict(model, ckpt["model"], binding)
    tx = js.optim.sgd(lr=1.0, momentum=0.7)
    opt = js.optim.load_state_dict(tx.init(nnx.state(model, nnx.Param)), ckpt["optimizer"], binding)
    multi = js.optim.schedulers.MultiStepLR(milestones=[1])
    state = js.optim.schedulers.load_state_dict(multi, ckpt["scheduler"])
    extra = {key: ckpt[key] for key in ("epoch", "best", "tag")}
    js.orbax.save(tmp_path / "c", model, opt, step=3, binding=binding, scheduler=state, extra=extra)
    made = js.orbax.to_torch(tmp_path / "c")
    js.save(made, tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    equal(back, torch.load(tmp_path / "a.pt", weights_only=True))
    assert back["model"]["head.weight"].data_ptr() == back["model"]["wte.weight"].data_ptr()
    assert back["model"]._metadata == net.state_dict()._metadata
    scheduler.load_state_dict(back["scheduler"])


def leaves_of(model):
    from jaxstate.adapters import adapter_of

    return adapter_of(model).leaves(model)


def test_linen_and_its_train_state(tmp_path):
    from flax.training.train_state import TrainState

    module = linen.Dense(5)
    variables = module.init(jax.random.key(0), jnp.ones((1, 3)))
    binding = js.bind(module, jax.ShapeDtypeStruct((1, 3), "float32"))
    tx = js.optim.adam(lr=0.05)
    state = TrainState.create(apply_fn=module.apply, params=variables["params"], tx=tx)
    for n in range(3):
        state = state.apply_gradients(grads=jax.tree.map(lambda p, n=n: jnp.sin(p + n), state.params))
    js.orbax.save(tmp_path / "c", {"params": state.params}, state, binding=binding)
    made = js.orbax.to_torch(tmp_path / "c")
    equal(dict(made["model"]), dict(js.state_dict(state.params, binding)))
    equal(made["optimizer"], js.optim.state_dict(state, binding))
    fresh = TrainState.create(apply_fn=module.apply, params=variables["params"], tx=tx)
    again = js.orbax.restore(tmp_path / "c", {"params": fresh.params}, fresh)
    assert again.opt_state.step == 3 and again.opt_state.tx is tx
    equal(js.optim.state_dict(again.opt_state, binding), made["optimizer"])


NESTS = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), js.optim.adam(lr=3e-4)),
    "masked": lambda: optax.masked(js.optim.sgd(lr=0.3, momentum=0.7), {"kernel": True, "bias": False}),
    "injected": lambda: optax.inject_hyperparams(js.optim.adamw)(lr=0.3),
    "accumulated": lambda: optax.MultiSteps(js.optim.adam(lr=0.3), 1),
    "scheduled": lambda: js.optim.adam(lr=optax.linear_schedule(0.3, 0.1, 7)),
    "partitioned": lambda: optax.partition(
        {"a": js.optim.sgd(lr=0.3, momentum=0.7), "b": js.optim.sgd(lr=0.1, momentum=0.7)},
        {"kernel": "a", "bias": "b"},
    ),
}


@pytest.mark.parametrize("name", NESTS)
def test_states_in_nests(tmp_path, name):
    model, tx = nnx.Linear(3, 5, rngs=nnx.Rngs(1)), NESTS[name]()
    binding, params = js.bind(model), nnx.to_pure_dict(nnx.state(model))
    opt = tx.init(params)
    for n in range(3):
        grads = jax.tree.map(lambda p, n=n: jnp.sin(n + p), params)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    if name == "masked":
        binding = binding.only("weight")
        params = {"kernel": params["kernel"]}
    js.orbax.save(tmp_path / "c", params, opt, binding=binding, step=3)
    equal(js.orbax.to_torch(tmp_path / "c")["optimizer"], js.optim.state_dict(opt, binding))


def test_several_optimizers_are_taken_one_at_a_time(tmp_path):
    parts = {"a": js.optim.sgd(lr=0.3, momentum=0.7), "b": js.optim.adam(lr=0.1)}
    tx = optax.partition(parts, {"kernel": "a", "bias": "b"})
    model = nnx.Linear(3, 5, rngs=nnx.Rngs(1))
    params = nnx.to_pure_dict(nnx.state(model))
    _, opt = tx.update(jax.tree.map(jnp.cos, params), tx.init(params), params)
    js.orbax.save(tmp_path / "c", params, opt, binding=js.bind(model))
    with pytest.raises(OptimizerError, match="label='a'"):
        js.orbax.to_torch(tmp_path / "c")
    for label in parts:
        expected = js.optim.state_dict(opt, js.bind(model), label=label)
        equal(js.orbax.to_torch(tmp_path / "c", label=label)["optimizer"], expected)


def test_a_plain_optax_state_is_asked_for_its_optimizer(tmp_path):
    model, tx = nnx.Linear(3, 5, rngs=nnx.Rngs(1)), optax.adamw(0.3, weight_decay=0.07)
    params = nnx.state(model, nnx.Param)
    _, opt = tx.update(jax.tree.map(jnp.cos, params), tx.init(params), params)
    js.orbax.save(tmp_path / "c", model, opt)
    with pytest.raises(CheckpointError, match="optimizer=js.optim.adamw"):
        js.orbax.to_torch(tmp_path / "c")
    same = js.optim.adamw(lr=0.3, weight_decay=0.07)
    expected = js.optim.state_dict(opt, js.bind(model), optimizer=same)
    equal(js.orbax.to_torch(tmp_path / "c", optimizer=same)["optimizer"], expected)


def test_names_that_are_taken(tmp_path):
    js.orbax.save(tmp_path / "c", nnx.Linear(3, 5, rngs=nnx.Rngs(1)), step=3, extra={"step": 4})
    with pytest.raises(CheckpointError, match=r"extra has entries \['step'\]"):
        js.orbax.to_torch(tmp_path / "c")


def test_a_tensor_is_no_leaf(tmp_path):
    with pytest.raises(CheckpointError, match="optimizer: m is a Tensor, no array of numbers"):
        js.orbax.save(tmp_path / "c", nnx.Linear(3, 5, rngs=nnx.Rngs(1)), {"m": torch.ones(2)})
