"""Computing on torch's arrays: which leaves are taken and refused, and the states, by torch's names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip("torch")

from optimizer_pair import as_tensors  # noqa: E402
from test_optimizer_state_dict import typed  # noqa: E402

from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import (  # noqa: E402
    adafactor,
    labels,
    load_state_dict,
    muon,
    param_groups,
    set_hyperparameters,
    state_dict,
)
from jaxstate.optim._torch_dict.groups_json import groups_from_json, groups_to_json  # noqa: E402
from jaxstate.rules.declared import JaxOnly, Sum  # noqa: E402

QKV = Rule("qkv.weight", "{x}.kernel", "i o -> (x o) i", x=("q", "k", "v"), shape=(4, 2))
CONV = Rule("conv.weight", "conv.kernel", "h w i o -> o i h w", shape=(2, 3, 4, 5))
STACK = Rule("h.{l}.bias", "blocks.bias", "l o -> o", l=range(3), shape=(3, 6))
SMALL = Binding((QKV, CONV, STACK))


def tree(rules, seed=0):
    """Random leaves of these rules."""
    rng, made = np.random.default_rng(seed), {}
    for rule in rules:
        for path in rule.paths:
            parent, leaf = path.split(".")
            made.setdefault(parent, {})[leaf] = jnp.asarray(rng.normal(size=rule.shape), jnp.float32)
    return made


def stepped(tx, params, steps=2):
    opt, update = tx.init(params), jax.jit(tx.update)
    for seed in range(steps):
        grads = jax.tree.map(lambda p, seed=seed: jnp.cos((seed + 2) * p), params)
        updates, opt = update(grads, opt, params)
        params = optax.apply_updates(params, updates)
    return params, opt


PARAMS = tree(SMALL.rules)
TORCH = SMALL.of_parameters().state_dict(
    {f"{parent}.{leaf}": x for parent, row in PARAMS.items() for leaf, x in row.items()}
)


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert jax.tree.all(jax.tree.map(lambda x, y: np.allclose(x, y, rtol=2e-6, atol=1e-6), left, right))


def test_keys_order_types_and_shapes_are_torchs():
    options = {"lr": 0.05, "eps": (None, 0.01), "maximize": True, "foreach": False}
    tensors = {name: torch.nn.Parameter(torch.from_numpy(np.array(a))) for name, a in TORCH.items()}
    oracle = torch.optim.Adafactor(tensors.values(), **options)
    for p in tensors.values():
        p.grad = torch.cos(2 * p.detach())
    oracle.step()
    tx = adafactor(**options, binding=SMALL)
    _, opt = stepped(tx, PARAMS, 1)
    osd = state_dict(opt, SMALL)
    assert typed(osd) == typed(oracle.state_dict())
    for i, entry in oracle.state_dict()["state"].items():
        assert all(np.allclose(osd["state"][i][key], x, rtol=1e-5, atol=1e-7) for key, x in entry.items())
    again = state_dict(load_state_dict(tx.init(PARAMS), oracle.state_dict(), SMALL), SMALL)
    assert typed(again) == typed(oracle.state_dict())
    for i, entry in oracle.state_dict()["state"].items():
        assert all(np.array_equal(again["state"][i][key], x) for key, x in entry.items())
    oracle.load_state_dict(as_tensors(osd))
    oracle.step()


def test_muons_keys_order_types_and_shapes_are_torchs():
    binding, params = Binding((QKV,)), tree([QKV])
    options = {"nesterov": False, "ns_coefficients": (3.0, -3.2, 1.2), "adjust_lr_fn": "original"}
    p = torch.nn.Parameter(torch.from_numpy(np.array(TORCH["qkv.weight"])))
    oracle = torch.optim.Muon([p], **options)
    before = oracle.state_dict()
    tx = muon(**options, binding=binding)
    assert typed(state_dict(tx.init(params), binding)) == typed(before)
    p.grad = torch.ones_like(p)
    oracle.step()
    _, opt = stepped(tx, params, 1)
    assert typed(state_dict(opt, binding)) == typed(oracle.state_dict())


def test_names_are_written_and_read():
    _, opt = stepped(adafactor(binding=SMALL), PARAMS)
    osd = state_dict(opt, SMALL, param_names=True)
    assert osd["param_groups"][0]["param_names"] == list(SMALL.parameters)
    shuffled = list(reversed(SMALL.parameters))
    ids = {name: i for i, name in enumerate(shuffled)}
    turned = {ids[name]: osd["state"][i] for i, name in enumerate(SMALL.parameters)}
    group = {**osd["param_groups"][0], "param_names": shuffled}
    again = load_state_dict(
        adafactor(binding=SMALL).init(PARAMS), {"state": turned, "param_groups": [group]}, SMALL
    )
    same(again.buffers, opt.buffers)


def test_without_a_binding_the_leaves_are_torchs_arrays():
    bound, opt = stepped(adafactor(lr=0.1, binding=SMALL), PARAMS)
    plain, other = stepped(adafactor(lr=0.1), TORCH)
    for name, x in SMALL.of_parameters().state_dict(dict(_leaves(bound))).items():
        assert np.allclose(plain[name], x, rtol=2e-6, atol=1e-6)
    same(other.buffers, opt.buffers)
    assert typed(state_dict(other, SMALL)) == typed(state_dict(opt, SMALL))
    same(load_state_dict(adafactor().init(TORCH), state_dict(opt, SMALL), SMALL).buffers, opt.buffers)


def _leaves(params):
    return ((f"{parent}.{leaf}", x) for parent, row in params.items() for leaf, x in row.items())


def test_leaves_that_are_not_torchs_arrays_are_refused():
    _, opt = stepped(adafactor(), {"conv": PARAMS["conv"]}, 1)
    with pytest.raises(OptimizerError, match=r'"conv.kernel" are not; js.optim.adafactor\(..., binding='):
        state_dict(opt, SMALL)
    square = Binding((Rule("w", "w", "i o -> o i", shape=(3, 3)), Rule("b", "b", "a b -> a b", shape=(3, 3))))
    params = {"w": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
    with pytest.raises(OptimizerError, match=r'Muon takes torch\'s own arrays, and "w" are not'):
        state_dict(muon().init(params), square)
    with pytest.raises(OptimizerError, match=r'"w" are not; js.optim.muon'):
        load_state_dict(muon().init(params), {"state": {}, "param_groups": []}, square)
    assert len(state_dict(muon(binding=square).init(params), square)["param_groups"][0]["params"]) == 2
    same_names = Binding((Rule("b", "b", "a b -> a b", shape=(3, 3)),))
    assert state_dict(muon().init({"b": params["b"]}), same_names)["param_groups"][0]["params"] == [0]


@pytest.mark.parametrize(
    "rule, params, size",
    [
        (CONV, {"conv": {"kernel": jnp.ones((2, 3, 4, 5))}}, [5, 4, 2, 3]),
        (STACK, {"blocks": {"bias": jnp.ones((3, 6))}}, [6]),
    ],
)
def test_muon_takes_matrices_of_torchs(rule, params, size):
    with pytest.raises(ValueError) as theirs:
        torch.optim.Muon([torch.nn.Parameter(torch.ones(size))])
    with pytest.raises(OptimizerError) as ours:
        muon(binding=Binding((rule,))).init(params)
    assert str(ours.value).startswith(str(theirs.value).replace("torch.Size(", "").replace(")", ""))
    assert rule.keys[0] in str(ours.value)


def test_leaves_that_are_no_parameters_of_torchs_are_refused():
    biases = Sum((Rule("b_ih", "cell.bias", "k -> k"), Rule("b_hh", "cell.bias", "k -> k")))
    binding = Binding((QKV, biases, JaxOnly("cell.zero", 0.0)))
    params = {**tree([QKV]), "cell": {"bias": jnp.ones(3), "zero": jnp.zeros(3)}}
    with pytest.raises(OptimizerError, match='(?s)"b_ih", "b_hh" are held as their sum.*cell.zero has no'):
        adafactor(binding=binding).init(params)
    with pytest.raises(OptimizerError, match='(?s)does not bind these parameters.*"strange"'):
        adafactor(binding=binding).init({"strange": jnp.ones(3)})
    with pytest.raises(OptimizerError, match=r"a part of the leaves of Rule\(.qkv.weight"):
        adafactor(binding=binding).init({"q": tree([QKV])["q"]})


def test_gradients_are_those_of_whole_parameters():
    tx, params = adafactor(binding=SMALL), PARAMS
    opt, grads = tx.init(params), jax.tree.map(jnp.ones_like, PARAMS)
    with pytest.raises(OptimizerError, match=r"update\(grads, state, params\)"):
        tx.update(grads, opt)
    with pytest.raises(OptimizerError, match=r'"qkv.weight" is one parameter.*"k.kernel", has a gradient of'):
        tx.update({**grads, "k": {"kernel": None}}, opt, params)
    with pytest.raises(OptimizerError, match=r"of conv.kernel has shape \(4, 2\), the parameter \(2, 3"):
        tx.update({**grads, "conv": params["q"]}, opt, params)
    with pytest.raises(OptimizerError, match="not the parameters of init"):
        tx.update({"conv": grads["conv"]}, opt, {"conv": params["conv"]})
    none = {"q": {"kernel": None}, "k": {"kernel": None}, "v": {"kernel": None}}
    updates, new = tx.update({**grads, **none}, opt, params)
    after = optax.apply_updates(params, updates)
    assert all(np.array_equal(after[x]["kernel"], params[x]["kernel"]) for x in none)
    assert dict(zip(new.paths, new.step.tolist(), strict=True))["qkv.weight"] == 0
    assert sorted(new.step.tolist()) == [0, 1, 1, 1, 1]
    assert list(state_dict(new, SMALL)["state"]) == [
        i for i, name in enumerate(SMALL.parameters) if name != "qkv.weight"
    ]


def test_masked_takes_a_part_of_the_model():
    mask = jax.tree.map(lambda _: False, PARAMS) | {"conv": {"kernel": True}}
    params, opt = stepped(optax.masked(adafactor(lr=0.3, binding=SMALL), mask), PARAMS, 1)
    alone, other = stepped(adafactor(lr=0.3, binding=SMALL), {"conv": PARAMS["conv"]}, 1)
    same(params["conv"], alone["conv"])
    assert typed(state_dict(opt, SMALL)) == typed(state_dict(other, SMALL))


def test_linen_parameters_have_no_prefix_of_their_own():
    binding = Binding((Rule("fc.weight", "params.fc.kernel", "i o -> o i", shape=(2, 3)),))
    _, opt = stepped(muon(binding=binding), {"fc": {"kernel": jnp.ones((2, 3))}}, 1)
    assert state_dict(opt, binding)["state"][0]["momentum_buffer"].shape == (3, 2)


def test_nnx_states():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    binding = Binding((Rule("weight", "kernel", "i o -> o i"), Rule("bias", "bias", "o -> o")))
    params = nnx.state(model, nnx.Param)
    after, opt = stepped(adafactor(binding=binding), params)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    shapes = [{key: x.shape for key, x in e.items()} for e in state_dict(opt, binding)["state"].values()]
    assert shapes == [{"step": (), "row_var": (3, 1), "col_var": (1, 2)}, {"step": (), "variance": (3,)}]


def test_scan_multi_steps_and_abstract_leaves():
    tx = adafactor(lr=0.1, binding=SMALL)

    def body(carry, grads):
        params, opt = carry
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), None

    grads = jax.tree.map(lambda p: jnp.stack([jnp.cos(2 * p), jnp.sin(p)]), PARAMS)
    carry = PARAMS, tx.init(PARAMS)
    looped = carry
    for t in range(2):
        looped, _ = body(looped, jax.tree.map(lambda g, t=t: g[t], grads))
    same(jax.jit(lambda c, g: jax.lax.scan(body, c, g)[0])(carry, grads), looped)
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(abstract).buffers)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), carry[1].buffers)
    osd = state_dict(looped[1], SMALL)
    same(load_state_dict(tx.init(abstract), osd, SMALL), looped[1])
    same(load_state_dict(jax.eval_shape(tx.init, PARAMS), osd, SMALL), looped[1])
    _, many = stepped(optax.MultiSteps(tx, 2), PARAMS)
    assert state_dict(many, SMALL)["state"][0]["step"] == 1.0


def test_hyperparameters_change_and_travel():
    tx = adafactor(binding=SMALL)
    opt = set_hyperparameters(tx.init(PARAMS), lr=0.3, eps=(1e-20, 0.1))
    assert (param_groups(opt)[0]["lr"], param_groups(opt)[0]["eps"]) == (0.3, (1e-20, 0.1))
    assert param_groups(opt)[0]["params"] == sorted(SMALL.parameters)
    other = adafactor(lr=0.3, eps=(1e-20, 0.1), binding=SMALL)
    expected, _ = other.update(PARAMS, other.init(PARAMS), PARAMS)
    same(tx.update(PARAMS, opt, PARAMS)[0], expected)
    back = load_state_dict(tx.init(PARAMS), state_dict(opt, SMALL), SMALL)
    assert param_groups(back)[0]["eps"] == (1e-20, 0.1)
    none = load_state_dict(opt, state_dict(tx.init(PARAMS), SMALL), SMALL)
    assert param_groups(none)[0]["eps"] == (None, 1e-3)
    for state in (opt, none):
        again = groups_from_json(state, json.loads(json.dumps(groups_to_json(state))))
        assert typed(param_groups(again)) == typed(param_groups(state))


def test_a_file_with_other_flags_is_refused_with_the_call():
    binding, params = Binding((QKV,)), tree([QKV])
    osd = state_dict(muon(ns_steps=3, adjust_lr_fn="match_rms_adamw", binding=binding).init(params), binding)
    with pytest.raises(OptimizerError, match=r"ns_steps=3 instead of 5.*js.optim.muon\(.*ns_steps=3"):
        load_state_dict(muon(binding=binding).init(params), osd, binding)
    eps = {**osd, "param_groups": [{**osd["param_groups"][0], "lr": None}]}
    with pytest.raises(OptimizerError, match="has lr=None, which is no number"):
        load_state_dict(muon(binding=binding).init(params), eps, binding)


def test_a_buffer_of_another_shape_is_refused():
    _, opt = stepped(adafactor(binding=SMALL), PARAMS, 1)
    osd = state_dict(opt, SMALL)
    names = list(SMALL.parameters)
    i = names.index("conv.weight")
    osd["state"][i]["row_var"] = osd["state"][i]["row_var"][..., 0]
    osd["state"][names.index("h.0.bias")]["row_var"] = np.ones(3, "f")
    with pytest.raises(OptimizerError) as error:
        load_state_dict(opt, osd, SMALL)
    assert '("conv.weight") has row_var of shape (5, 4, 2), and the parameter has (5, 4, 2, 1)' in str(
        error.value
    )
    assert '("h.0.bias") has "row_var", which Adafactor here does not keep' in str(error.value)


def _case(make, torch_class, **options):
    return pytest.param(make, torch_class, options, id=f"{torch_class.__name__}-{options}")


@pytest.mark.parametrize(
    "make, torch_class, options",
    [
        _case(adafactor, torch.optim.Adafactor, lr=-1.0),
        _case(adafactor, torch.optim.Adafactor, beta2_decay=0.1),
        _case(adafactor, torch.optim.Adafactor, eps=(-1.0, 1e-3)),
        _case(adafactor, torch.optim.Adafactor, eps=(None, -1e-3)),
        _case(adafactor, torch.optim.Adafactor, d=0.5),
        _case(adafactor, torch.optim.Adafactor, weight_decay=-0.5),
        _case(muon, torch.optim.Muon, lr=-1.0),
        _case(muon, torch.optim.Muon, momentum=-1.0),
        _case(muon, torch.optim.Muon, weight_decay=-1.0),
        _case(muon, torch.optim.Muon, adjust_lr_fn="other"),
        _case(muon, torch.optim.Muon, ns_steps=100),
        _case(muon, torch.optim.Muon, ns_coefficients=(1.0, 2.0)),
    ],
)
def test_options_that_torch_refuses(make, torch_class, options):
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = torch.ones(2, 3)
    with pytest.raises(ValueError) as theirs:
        torch_class([p], **options).step()
    with pytest.raises(OptimizerError) as ours:
        make(**options)
    assert str(ours.value) == str(theirs.value)


def test_defaults_are_torchs():
    p = torch.nn.Parameter(torch.ones(2, 3))
    binding = Binding((Rule("w", "w", "a b -> a b", shape=(2, 3)),))
    for make, torch_class in ((adafactor, torch.optim.Adafactor), (muon, torch.optim.Muon)):
        osd = state_dict(make().init({"w": jnp.ones((2, 3))}), binding)
        assert typed(osd) == typed(torch_class([p]).state_dict())


def test_optax_states_are_refused():
    params = {"qkv.weight": jnp.ones((6, 4))}
    with pytest.raises(OptimizerError, match=r"two largest axes.*js.optim.adafactor\(lr=0.2"):
        state_dict(optax.adafactor(0.2).init(params), SMALL, optimizer=adafactor(lr=0.2))
    with pytest.raises(OptimizerError, match=r"bias of its momentum.*js.optim.muon\(lr=0.2"):
        state_dict(optax.contrib.muon(0.2).init(params), SMALL, optimizer=muon(lr=0.2, binding=SMALL))


def test_labels_keep_the_parts_of_a_parameter_together():
    shapes = SMALL.shapes
    made = labels(PARAMS, {"a": lambda n: len(shapes[n]) == 2, "b": ["conv.*", "h.*"]}, SMALL)
    assert made == {
        "blocks": {"bias": "b"},
        "conv": {"kernel": "b"},
        **{x: {"kernel": "a"} for x in ("q", "k", "v")},
    }
    with pytest.raises(OptimizerError, match='no group chooses "h.0.bias"'):
        labels(PARAMS, {"a": "qkv.*", "b": "conv.*"}, SMALL)
