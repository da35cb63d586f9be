"""The optimizers that move each element by itself against torch, and their dicts against torch's."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from elementwise_cases import CASES, CLASSES, NEW, ONE_EACH  # noqa: E402
from optimizer_pair import BOUND, DIFFERENT, EQUAL, FEW, Pair, as_tensors, displacement_error  # noqa: E402

from jaxstate import optim  # noqa: E402
from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import load_state_dict, set_hyperparameters, state_dict  # noqa: E402
from jaxstate.optim._double import Double, split  # noqa: E402
from jaxstate.optim._radam import rectifier  # noqa: E402

SMALL = Binding((Rule("w", "kernel", "i o -> o i", shape=(4, 3)), Rule("b", "bias", "o -> o", shape=(5,))))
OTHERS = [case for case in ONE_EACH if case.id not in ("sgd", "adam", "adamw")]


def pair_of(name, binding=SMALL, row=-1, **changes):
    options = CASES[name][row]
    make = getattr(optim, name)
    return Pair(CLASSES[name], make(**options, foreach=False), binding, options, **changes)


def typed(value):
    """A value with its type, and its order of keys; of an array shape and dtype."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        return array.shape, str(array.dtype)
    return type(value), value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("torch_class, make, options", NEW)
def test_training_goes_on_in_the_other_library(torch_class, make, options, dtype):
    with jax.enable_x64(dtype == "float64"):
        errors = Pair(torch_class, make(**options, foreach=False), SMALL, options, dtype=dtype).errors(5, 6)
    assert max(errors) <= BOUND[dtype], errors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("torch_class, make, options", NEW)
def test_the_dict_is_torchs(torch_class, make, options, dtype):
    with jax.enable_x64(dtype == "float64"):
        pair = Pair(torch_class, make(**options, foreach=False), SMALL, options, dtype=dtype)
        opt, params = pair.torch(pair.start)
        pair.torch_steps(opt, params, 0, 3)
        _, ours = pair.jax_steps(pair.start, pair.init(), 0, 3)
        found, expected = state_dict(ours, SMALL), opt.state_dict()
        assert typed(found) == typed(expected)
        for i, entry in expected["state"].items():
            for key, value in entry.items():
                assert np.allclose(found["state"][i][key], value, rtol=100 * BOUND[dtype], atol=BOUND[dtype])
        again = state_dict(load_state_dict(pair.init(), expected, SMALL), SMALL)
    assert typed(again) == typed(expected)
    for i, entry in expected["state"].items():
        assert all(np.array_equal(again["state"][i][key], value.numpy()) for key, value in entry.items())


@pytest.mark.parametrize("torch_class, make, options", OTHERS)
def test_before_the_first_step(torch_class, make, options):
    pair = Pair(torch_class, make(**options, foreach=False), FEW, options)
    expected, found = pair.torch(pair.start)[0].state_dict(), state_dict(pair.init(), FEW)
    assert typed(found) == typed(expected)
    for i, entry in expected["state"].items():
        assert all(np.array_equal(found["state"][i][key], value.numpy()) for key, value in entry.items())


@pytest.mark.parametrize("name", ["adagrad", "nadam"])
def test_every_kind_of_rule_carries_the_state(name):
    assert max(pair_of(name, DIFFERENT).errors(3, 3)) <= BOUND["float32"]


@pytest.mark.parametrize("name", ["asgd", "nadam", "rmsprop"])
def test_equal_shapes_go_by_name(name):
    assert max(pair_of(name, EQUAL).errors(3, 3)) <= BOUND["float32"]


@pytest.mark.parametrize("torch_class, make, options", ONE_EACH)
def test_complex_parameters_are_pairs_of_real_ones(torch_class, make, options):
    pair = Pair(torch_class, make(**options, foreach=False), SMALL, options, dtype="complex64")
    assert max(pair.errors(3, 4)) <= BOUND["float32"]
    opt, params = pair.torch(pair.start)
    before = typed(state_dict(pair.init(), SMALL)), typed(opt.state_dict())
    pair.torch_steps(opt, params, 0, 2)
    _, ours = pair.jax_steps(pair.start, pair.init(), 0, 2)
    assert before[0] == before[1] and typed(state_dict(ours, SMALL)) == typed(opt.state_dict())


def test_the_gradient_of_a_complex_parameter_is_the_conjugate_of_jaxs():
    start, target = np.array([1 + 2j, -3 + 1j], "complex64"), np.array([2 - 1j, 1 + 1j], "complex64")
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt, tx = torch.optim.RMSprop([p], lr=0.1, foreach=False), optim.rmsprop(lr=0.1)
    (p * torch.from_numpy(target)).abs().pow(2).sum().add((p * (2 + 1j)).real.sum()).backward()
    opt.step()

    def loss(z):
        return jnp.sum(jnp.abs(z * target) ** 2) + jnp.sum((z * (2 + 1j)).real)

    params = jnp.array(start)
    updates, _ = tx.update(jnp.conj(jax.grad(loss)(params)), tx.init(params), params)
    assert np.allclose(params + updates, p.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("torch_class, make, options", OTHERS)
def test_dtypes_of_bfloat16_are_torchs(torch_class, make, options):
    p, params = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)), {"bias": jnp.ones(5, jnp.bfloat16)}
    opt, tx = torch_class([p], **options, foreach=False), make(**options)
    p.grad = torch.full((5,), 0.5, dtype=torch.bfloat16)
    opt.step()
    updates, state = tx.update({"bias": jnp.full(5, 0.5, jnp.bfloat16)}, tx.init(params), params)
    assert updates["bias"].dtype == jnp.bfloat16
    found = state_dict(state, SMALL.only(["b"]))["state"][0]
    expected = {key: str(value.dtype) for key, value in opt.state[p].items()}
    assert {key: f"torch.{value.dtype}" for key, value in found.items()} == expected
    moved = np.asarray(params["bias"] + updates["bias"], np.float32)
    assert np.allclose(moved, p.detach().float().numpy(), atol=2**-7)


FILLED = ("lr", "betas", "eps", "weight_decay", "lambd", "alpha", "t0", "rho", "lr_decay", "params")
FILLED += ("initial_accumulator_value", "momentum_decay", "etas", "step_sizes")


@pytest.mark.parametrize("torch_class, make, options", OTHERS)
def test_options_that_older_files_lack(torch_class, make, options):
    opt = torch_class([torch.nn.Parameter(torch.ones(3, 4))])
    old = opt.state_dict()
    old["param_groups"] = [{k: v for k, v in old["param_groups"][0].items() if k in FILLED}]
    opt.load_state_dict(copy.deepcopy(old))
    binding = SMALL.only(["w"])
    loaded = load_state_dict(make().init({"kernel": jnp.ones((4, 3))}), old, binding)
    assert typed(state_dict(loaded, binding)) == typed(opt.state_dict())


@pytest.mark.parametrize("name", ["asgd", "nadam"])
def test_scalars_that_older_files_have_as_floats(name):
    pair = pair_of(name)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    osd = opt.state_dict()
    scalars = [key for key, value in osd["state"][0].items() if value.ndim == 0]
    old = {i: {**e, **{key: float(e[key]) for key in scalars}} for i, e in osd["state"].items()}
    loaded = state_dict(load_state_dict(pair.init(), {**osd, "state": old}, SMALL), SMALL)
    assert len(scalars) > 1 and typed(loaded) == typed(osd)
    assert all(loaded["state"][1][key] == osd["state"][1][key].numpy() for key in scalars)


@pytest.mark.parametrize("name, buffer", [("asgd", "eta"), ("nadam", "mu_product")])
def test_scalars_of_layers_in_one_leaf_agree(name, buffer):
    pair = pair_of(name, DIFFERENT)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    osd = opt.state_dict()
    at = list(DIFFERENT.parameters).index("h.1.bias")
    osd["state"][at][buffer] += 0.25
    with pytest.raises(OptimizerError, match=f"blocks.bias is one leaf with one {buffer}, and the file has"):
        load_state_dict(pair.init(), osd, DIFFERENT)
    with pytest.raises(OptimizerError, match=rf"has {buffer} of shape \(1,\), and the parameter has \(\)"):
        osd["state"][at][buffer] = torch.ones(1)
        load_state_dict(pair.init(), osd, DIFFERENT)


def test_scalars_of_parts_of_one_key_agree():
    pair = pair_of("nadam", DIFFERENT)
    _, ours = pair.jax_steps(pair.start, pair.init(), 0, 1)
    leaves = ours.buffer("mu_product")
    torn = ours.with_buffer("mu_product", {**leaves, "attn.query.kernel": leaves["conv.bias"] * 2})
    with pytest.raises(OptimizerError, match='"attn.in_proj" has one mu_product in torch, and here'):
        state_dict(torn, DIFFERENT)


def test_scalars_that_torch_has_widened_are_rounded_only_if_asked():
    with jax.enable_x64(True):
        pair = pair_of("nadam", dtype="float64")
        opt, params = pair.torch(pair.start)
        arrays = pair.torch_steps(opt, params, 0, 2)
        opt, params = pair.torch(arrays, copy.deepcopy(opt.state_dict()))
        pair.torch_steps(opt, params, 2, 3)
        with pytest.raises(OptimizerError, match="mu_product of float64, which float32 would round"):
            load_state_dict(pair.init(), opt.state_dict(), SMALL)
        loaded = load_state_dict(pair.init(), opt.state_dict(), SMALL, cast=True)
        assert loaded.buffers["mu_product"]["bias"].dtype == np.float32


@pytest.mark.parametrize("name", ["asgd", "rprop", "nadam", "radam", "adagrad"])
def test_a_learning_rate_that_changes_before_the_first_step_and_after(name):
    pair = pair_of(name)
    opt, params = pair.torch(pair.start)
    arrays, ours = pair.start, pair.init()
    for t, lr in enumerate([0.2, 0.01, 0.07]):
        opt.param_groups[0]["lr"] = lr
        expected = pair.torch_steps(opt, params, t, t + 1)
        arrays, ours = pair.jax_steps(arrays, set_hyperparameters(ours, lr=lr), t, t + 1)
    assert displacement_error(arrays, expected, pair.start) <= BOUND["float32"]


def test_adagrad_has_an_entry_for_frozen_parameters():
    pair = pair_of("adagrad", row=2)
    for grads in pair.grads:
        grads["w"] = None
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    loaded = load_state_dict(pair.init(), opt.state_dict(), SMALL)
    assert loaded.step.tolist() == [2, 0]
    again = state_dict(loaded, SMALL)
    assert typed(again) == typed(opt.state_dict()) and np.all(again["state"][0]["sum"] == np.float32(0.2))
    del again["state"][0]
    with pytest.raises(OptimizerError, match=r'state has no entry for id 0 \("w"\)'):
        load_state_dict(pair.init(), again, SMALL)


def test_adagrad_starts_all_groups_at_the_constructors_value():
    names = list(SMALL.parameters)
    groups = [{"params": [name], "initial_accumulator_value": i} for i, name in enumerate(names)]
    ours = [{**group, "params": name} for group, name in zip(groups, names, strict=True)]
    options = {"initial_accumulator_value": 0.3}
    tx = optim.adagrad(**options, foreach=False, param_groups=ours, binding=SMALL)
    pair = Pair(torch.optim.Adagrad, tx, SMALL, options, groups)
    expected, found = pair.torch(pair.start)[0].state_dict(), state_dict(pair.init(), SMALL)
    assert typed(found) == typed(expected)
    assert all(np.array_equal(found["state"][i]["sum"], expected["state"][i]["sum"]) for i in range(2))


def test_groups_with_other_flags_write_their_buffers_in_torchs_order():
    names = list(SMALL.parameters)
    flags = [{"centered": True}, {"centered": True, "momentum": 0.7}]
    groups = [{"params": [name], **row} for name, row in zip(names, flags, strict=True)]
    ours = [{**group, "params": group["params"][0]} for group in groups]
    tx = optim.rmsprop(foreach=False, param_groups=ours, binding=SMALL)
    pair = Pair(torch.optim.RMSprop, tx, SMALL, {}, groups)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    _, state = pair.jax_steps(pair.start, pair.init(), 0, 2)
    assert typed(state_dict(state, SMALL)) == typed(opt.state_dict())
    assert max(pair.errors(2, 3)) <= BOUND["float32"]


def test_rmsprops_momentum_may_pause():
    pair = pair_of("rmsprop")
    opt, params = pair.torch(pair.start)
    arrays, ours = pair.start, pair.init()
    for t, momentum in enumerate([0.7, 0.0, 0.0, 0.4]):
        opt.param_groups[0]["momentum"] = momentum
        expected = pair.torch_steps(opt, params, t, t + 1)
        arrays, ours = pair.jax_steps(arrays, set_hyperparameters(ours, momentum=momentum), t, t + 1)
    assert displacement_error(arrays, expected, pair.start) <= BOUND["float32"]


def test_rprop_sees_the_sign_of_tiny_gradients():
    p, params = torch.nn.Parameter(torch.zeros(6)), {"b": jnp.zeros(6)}
    oracle, tx = torch.optim.Rprop([p], lr=0.1, foreach=False), optim.rprop(lr=0.1)
    opt = tx.init(params)
    for sizes in ([1e-20, 1e-22, 1e-23, 1.0, -1e-20, 1e-30], [1e-20, -1e-22, 1e-23, -1e-37, 1e-20, 1.0]):
        p.grad = torch.tensor(sizes)
        oracle.step()
        updates, opt = jax.jit(tx.update)({"b": jnp.array(sizes)}, opt, params)
        params = {"b": params["b"] + updates["b"]}
    assert np.array_equal(params["b"], p.detach().numpy())
    assert np.array_equal(opt.buffers["step_size"]["b"], oracle.state[p]["step_size"].numpy())


def test_radam_rectifies_when_torch_does():
    # All second betas of three digits, in float32, against torch's formula in double.
    betas = np.arange(1, 1000) / 1000
    parts = jnp.asarray(np.stack([split(float(beta), np.float32) for beta in betas]))
    ours = jax.jit(jax.vmap(lambda row, t: rectifier(Double(row), t), in_axes=(0, None)))
    infinite = 2 / (1 - betas) - 1
    for t in [*range(1, 40), 100, 1000, 20000]:
        power = np.array([float(beta) ** t for beta in betas])
        rho = infinite - 2 * t * power / (1 - power)
        used, r = (np.asarray(x) for x in (lambda u, r: (u, r.high))(*ours(parts, jnp.int32(t))))
        assert np.array_equal(used, rho > 5)
        top = ((rho - 4) * (rho - 2) * infinite)[used]
        assert np.allclose(r[used], np.sqrt(top / ((infinite - 4) * (infinite - 2) * rho)[used]), rtol=1e-6)


STEADY = {
    "asgd": {"lr": 0.01, "lambd": 0.01, "t0": 50},
    "adadelta": {},
    "rprop": {"step_sizes": (1e-6, 0.05)},
}


def drift(name, dtype, steps):
    """How far ours is from torch after many steps, and how far torch is from itself with foreach=True."""
    options = STEADY.get(name, {"lr": 0.01})
    with jax.enable_x64(dtype == "float64"):
        tx = getattr(optim, name)(**options)
        pair = Pair(CLASSES[name], tx, SMALL, options, dtype=dtype, scale=0.01, steps=steps)
        reference = pair.torch_steps(*pair.torch(pair.start), 0, steps)
        opt, params = pair.torch(pair.start)
        opt.param_groups[0]["foreach"] = True
        other = pair.torch_steps(opt, params, 0, steps)
        found, _ = pair.jax_steps(pair.start, pair.init(), 0, steps)
    return [displacement_error(arrays, reference, pair.start) for arrays in (found, other)]


@pytest.mark.parametrize("name", CASES)
def test_a_hundred_steps(name):
    found, foreach = drift(name, "float32", 100)
    assert found <= max(foreach, BOUND["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_thousand_steps(name, dtype):
    """Run with `pytest -m slow tests/optim/test_elementwise.py`."""
    found, foreach = drift(name, dtype, 1000)
    assert found <= max(foreach, BOUND[dtype])


def test_what_torch_takes_back():
    for name in CASES:
        pair = pair_of(name)
        _, ours = pair.jax_steps(pair.start, pair.init(), 0, 2)
        written = as_tensors(state_dict(ours, SMALL))
        opt, _ = pair.torch(pair.start, copy.deepcopy(written))
        assert typed(opt.state_dict()) == typed(written)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: optim.rmsprop(lr=-1), "Invalid learning rate: -1"),
        (lambda: optim.rmsprop(alpha=-0.5), "Invalid alpha value: -0.5"),
        (lambda: optim.rmsprop(eps=-1), "Invalid epsilon value: -1"),
        (lambda: optim.adagrad(initial_accumulator_value=-1), "Invalid initial_accumulator_value value: -1"),
        (lambda: optim.adagrad(fused=True, foreach=True), "`fused` and `foreach` cannot be `True` together."),
        (lambda: optim.adam(fused=True, differentiable=True), "`fused` does not support `differentiable`"),
        (lambda: optim.rprop(etas=(0.5, 0.9)), "Invalid eta values: 0.5, 0.9"),
        (lambda: optim.adamax(betas=(0.9, float("nan"))), "Invalid beta parameter at index 1: nan"),
    ],
)
def test_what_torch_refuses(make, words):
    with pytest.raises(OptimizerError) as error:
        make()
    assert str(error.value) == words


def test_other_flags_than_the_files_name_the_call():
    pair = pair_of("radam", row=2)
    osd = pair.torch(pair.start)[0].state_dict()
    init = optim.radam().init({"kernel": jnp.ones((4, 3)), "bias": jnp.ones(5)})
    with pytest.raises(OptimizerError, match=r"js.optim.radam\(lr=0.05.*decoupled_weight_decay=True"):
        load_state_dict(init, osd, SMALL)
