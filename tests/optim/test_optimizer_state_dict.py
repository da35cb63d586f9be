"""state_dict against torch's own after the same steps, and what load_state_dict takes and leaves."""

import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import DIFFERENT, EQUAL, FEW, Pair, as_tensors, to_jax  # noqa: E402

from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.optim import adam, adamw, load_state_dict, param_groups, sgd, state_dict  # noqa: E402

CASES = {
    "sgd": (torch.optim.SGD, sgd, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "maximize": True}),
    "adam": (torch.optim.Adam, adam, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, adamw, {"lr": 0.013}),
}


def pair_of(name, binding=FEW):
    torch_class, make, options = CASES[name]
    return Pair(torch_class, make(**options, foreach=False), binding, options)


def stepped(pair, steps=3):
    """torch's and our state after the same steps."""
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, steps)
    _, ours = pair.jax_steps(pair.start, pair.init(), 0, steps)
    return opt, ours


def typed(value):
    """A value with its type, its order of keys and its bits to compare."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        return array.shape, str(array.dtype)
    return type(value), value


@pytest.mark.parametrize("name", CASES)
def test_keys_order_types_and_shapes_are_torchs(name):
    opt, ours = stepped(pair_of(name))
    assert typed(state_dict(ours, FEW)) == typed(opt.state_dict())


def test_options_of_groups_come_first_as_in_torch():
    names = list(FEW.parameters)
    groups = [
        {"params": names[1:], "weight_decay": 0.5, "name": "x"},
        {"params": names[:1], "initial_lr": 0.3},
    ]
    ours = [{**groups[0], "params": lambda n: n != names[0]}, {**groups[1], "params": names[0]}]
    opt, state = stepped(_grouped(groups, ours))
    assert typed(state_dict(state, FEW)) == typed(opt.state_dict())


def _grouped(groups, ours):
    return Pair(torch.optim.AdamW, adamw(foreach=False, param_groups=ours, binding=FEW), FEW, {}, groups)


@pytest.mark.parametrize("name", CASES)
def test_torch_to_jax_to_torch_is_bit_for_bit(name):
    pair = pair_of(name, DIFFERENT)
    opt, _ = stepped(pair)
    osd = opt.state_dict()
    back = state_dict(load_state_dict(pair.init(), osd, DIFFERENT), DIFFERENT)
    assert typed(back) == typed(osd)
    for i, entry in osd["state"].items():
        assert all(np.array_equal(back["state"][i][key], value.numpy()) for key, value in entry.items())


@pytest.mark.parametrize("name", CASES)
def test_before_the_first_step_there_are_no_entries(name):
    pair = pair_of(name)
    assert typed(state_dict(pair.init(), FEW)) == typed(pair.torch(pair.start)[0].state_dict())


def test_arrays_own_their_memory():
    _, ours = stepped(pair_of("adamw", DIFFERENT))
    arrays = [a for entry in state_dict(ours, DIFFERENT)["state"].values() for a in entry.values()]
    assert all(a.flags.owndata and a.flags.writeable and a.flags.c_contiguous for a in arrays)
    assert len({a.__array_interface__["data"][0] for a in arrays}) == len(arrays)


def test_a_loaded_state_does_not_follow_torchs_tensors():
    pair = pair_of("adamw", DIFFERENT)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    ours = load_state_dict(pair.init(), opt.state_dict(), DIFFERENT)
    before = jax.tree.map(np.array, ours)
    pair.torch_steps(opt, params, 2, 4)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), ours, before))


def test_nothing_given_is_changed():
    pair = pair_of("adamw")
    opt, ours = stepped(pair)
    osd = opt.state_dict()
    before = copy.deepcopy(osd)
    load_state_dict(pair.init(), osd, FEW)
    assert typed(osd) == typed(before)


def test_names_in_the_file_decide_over_order_and_are_kept():
    pair = pair_of("adamw", EQUAL)
    arrays = {name: torch.nn.Parameter(torch.from_numpy(a)) for name, a in pair.start.items()}
    shuffled = list(reversed(arrays.items()))
    opt = torch.optim.AdamW(shuffled, foreach=False)
    for name, p in shuffled:
        p.grad = torch.from_numpy(pair.grads[0][name])
    opt.step()
    osd = opt.state_dict()
    state = load_state_dict(pair.init(), osd, EQUAL)
    assert np.allclose(np.asarray(state.buffers["exp_avg"]["a"]["kernel"]).T, 0.1 * pair.grads[0]["z.weight"])
    back = state_dict(state, EQUAL)
    assert typed(back) == typed(osd)
    assert np.array_equal(back["state"][0]["exp_avg"], osd["state"][0]["exp_avg"].numpy())
    assert "param_names" not in state_dict(state, EQUAL, param_names=False)["param_groups"][0]


def test_names_are_written_if_asked_for():
    named = state_dict(pair_of("sgd").init(), FEW, param_names=True)["param_groups"][0]
    assert list(named)[0] == "param_names" and named["param_names"] == list(FEW.parameters)


def test_template_may_be_abstract_and_keeps_its_sharding():
    pair = pair_of("adamw")
    opt, ours = stepped(pair)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), ours)
    loaded = load_state_dict(abstract, opt.state_dict(), FEW)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves((loaded.step, loaded.buffers)))
    assert jax.tree.structure(loaded) == jax.tree.structure(ours)


def test_the_rest_of_a_chain_is_returned_with_its_count():
    pair = pair_of("adamw")
    tx = optax.chain(optax.clip_by_global_norm(1.0), pair.tx, optax.scale_by_schedule(lambda n: 1.0))
    opt, ours = stepped(pair)
    loaded = load_state_dict(tx.init(to_jax(FEW, pair.start)), opt.state_dict(), FEW)
    assert loaded[0] == optax.EmptyState() and int(loaded[2].count) == int(loaded[1].step[0]) > 0
    assert typed(state_dict(loaded, FEW)) == typed(opt.state_dict())


def test_a_params_only_tree_has_no_prefix():
    binding = Binding((Rule("fc.weight", "params.fc.kernel", "i o -> o i", shape=(2, 3)),))
    params = {"fc": {"kernel": jnp.ones((2, 3))}}
    tx = adam(param_groups=[{"params": "fc.weight"}], binding=binding)
    _, opt = tx.update(params, tx.init(params), params)
    osd = state_dict(opt, binding)
    assert osd["state"][0]["exp_avg"].shape == (3, 2)
    again = load_state_dict(tx.init(params), osd, binding)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), again, opt))


ONE = Binding((Rule("w", "w", "i o -> o i", shape=(2, 3)),))


@pytest.mark.parametrize("step", [3, 3.0, np.int64(3), torch.tensor([3]), torch.tensor(3.0), jnp.float32(3)])
def test_steps_of_older_files(step):
    tx = adam()
    entry = {"step": step, "exp_avg": np.ones((3, 2), "f"), "exp_avg_sq": np.ones((3, 2), "f")}
    group = {"lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-8, "weight_decay": 0, "params": [7]}
    loaded = load_state_dict(
        tx.init({"w": jnp.ones((2, 3))}), {"state": {7: entry}, "param_groups": [group]}, ONE
    )
    assert loaded.step.tolist() == [3]
    assert param_groups(loaded)[0]["betas"] == [0.8, 0.9]


@pytest.mark.parametrize(
    "torch_class, make", [(torch.optim.Adam, adam), (torch.optim.AdamW, adamw), (torch.optim.SGD, sgd)]
)
def test_missing_options_are_filled_as_torch_fills_them(torch_class, make):
    opt = torch_class([torch.nn.Parameter(torch.ones(3, 2))])
    old = opt.state_dict()
    kept = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "params")
    old["param_groups"] = [{key: value for key, value in old["param_groups"][0].items() if key in kept}]
    opt.load_state_dict(old)
    loaded = load_state_dict(make().init({"w": jnp.ones((2, 3))}), old, ONE)
    assert typed(state_dict(loaded, ONE)) == typed(opt.state_dict())


@pytest.mark.parametrize("entry", [{}, {"momentum_buffer": None}])
def test_an_empty_buffer_means_the_first_step(entry):
    tx = sgd(lr=0.1, momentum=0.9, dampening=0.5)
    init = tx.init({"w": jnp.ones((2, 3))})
    osd = {**state_dict(init, ONE), "state": {0: entry}}
    assert load_state_dict(init, osd, ONE).step.tolist() == [0]


def test_bfloat16_tensors_come_bit_for_bit():
    values = torch.randn(3, 2).bfloat16()
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    init = adam().init(params)
    osd = {**state_dict(init, ONE), "state": {0: {"step": 1, "exp_avg": values, "exp_avg_sq": values}}}
    back = state_dict(load_state_dict(init, osd, ONE), ONE)["state"][0]["exp_avg"]
    assert back.dtype == ml_dtypes.bfloat16
    assert np.array_equal(back.view(np.uint16), values.view(torch.uint16).numpy())


def test_moments_are_rounded_only_if_asked():
    init = adam().init({"w": jnp.ones((2, 3))})
    wide = {"step": 1, "exp_avg": np.full((3, 2), 0.1), "exp_avg_sq": np.ones((3, 2))}
    osd = {**state_dict(init, ONE), "state": {0: wide}}
    with pytest.raises(ValueError, match=r'state\[0\] \("w"\) has exp_avg of float64.*cast=True'):
        load_state_dict(init, osd, ONE)
    loaded = load_state_dict(init, osd, ONE, cast=True)
    assert loaded.buffers["exp_avg"]["w"].dtype == jnp.float32


def test_a_tensor_learning_rate_stays_an_array():
    p = torch.nn.Parameter(torch.ones(3, 2))
    osd = torch.optim.Adam([p], lr=torch.tensor(0.1)).state_dict()
    loaded = load_state_dict(adam().init({"w": jnp.ones((2, 3))}), osd, ONE)
    lr = state_dict(loaded, ONE)["param_groups"][0]["lr"]
    assert isinstance(lr, np.ndarray) and lr.dtype == np.float32 and lr == np.float32(0.1)


def test_the_last_step_is_torchs():
    init = adam().init({"w": jnp.ones((2, 3))})
    late = replace(init, step=jnp.array([2**24 + 1], jnp.int32))
    assert state_dict(late, ONE)["state"][0]["step"] == np.float32(2**24)


def test_torch_takes_what_is_written():
    opt, ours = stepped(pair_of("amsgrad", DIFFERENT))
    written = as_tensors(state_dict(ours, DIFFERENT))
    opt.load_state_dict(written)
    assert typed(opt.state_dict()) == typed(written)
