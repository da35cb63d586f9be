"""add_param_group: torch's checks in torch's words, and training that goes on as torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adamw, add_param_group, load_state_dict, param_groups, sgd, state_dict  # noqa: E402

BINDING = Binding(
    (
        Rule("b.weight", "b.kernel", "i o -> o i", shape=(2, 3)),
        Rule("a.weight", "a.kernel", "i o -> o i", shape=(3, 4)),
        Rule("a.bias", "a.bias", "o -> o", shape=(4,)),
    )
)
OPTIONS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}
ALL = {
    "a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "b": {"kernel": jnp.ones((2, 3))},
}
OLD = {"b": ALL["b"]}
GROUP = {"params": "a.*", "lr": 0.5, "weight_decay": 0.0}


def slopes(seed, tree):
    rng = np.random.default_rng(seed)
    whole = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape).astype("f")), ALL)
    return {key: whole[key] for key in tree}


def oracle(torch_class, options):
    named = {"b.weight": (3, 2), "a.weight": (4, 3), "a.bias": (4,)}
    params = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in named.items()}
    return params, torch_class([params["b.weight"]], **options)


def torch_step(opt, params, seed, tree):
    grads = slopes(seed, tree)
    for name, p in params.items():
        module, last = name.split(".")
        p.grad = None
        if module in grads:
            leaf = grads[module]["kernel" if last == "weight" else last]
            p.grad = torch.from_numpy(np.array(leaf.T))
    opt.step()


@pytest.mark.parametrize(
    "torch_class, make, options",
    [
        (torch.optim.AdamW, adamw, OPTIONS),
        (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "dampening": 0.25}),
    ],
)
def test_training_goes_on_as_torchs(torch_class, make, options):
    params, opt = oracle(torch_class, options)
    tx, ours, tree = make(**options), None, OLD
    ours = tx.init(tree)
    for seed in range(3):
        torch_step(opt, params, seed, OLD)
        updates, ours = tx.update(slopes(seed, OLD), ours, tree)
        tree = optax.apply_updates(tree, updates)
    opt.add_param_group({"params": [params["a.weight"], params["a.bias"]], "lr": 0.5, "weight_decay": 0.0})
    tree = {**ALL, "b": tree["b"]}
    ours = add_param_group(ours, GROUP, tree, BINDING, optimizer=tx)
    for seed in range(3, 6):
        torch_step(opt, params, seed, ALL)
        updates, ours = jax.jit(tx.update)(slopes(seed, ALL), ours, tree)
        tree = optax.apply_updates(tree, updates)
    assert np.allclose(tree["a"]["kernel"], params["a.weight"].detach().numpy().T, rtol=1e-5)
    assert np.allclose(tree["b"]["kernel"], params["b.weight"].detach().numpy().T, rtol=1e-5)
    osd, theirs = state_dict(ours, BINDING), opt.state_dict()
    assert [g["params"] for g in osd["param_groups"]] == [g["params"] for g in theirs["param_groups"]]
    assert [list(g) for g in osd["param_groups"]] == [list(g) for g in theirs["param_groups"]]
    for i, entry in theirs["state"].items():
        assert all(np.allclose(osd["state"][i][k], x.numpy(), rtol=1e-5, atol=1e-6) for k, x in entry.items())


def test_the_old_state_is_left_alone_and_a_chain_goes_along():
    tx = optax.chain(optax.clip(1.0), adamw(**OPTIONS))
    opt = tx.init(OLD)
    new = add_param_group(opt, GROUP, ALL, BINDING, optimizer=adamw(**OPTIONS))
    assert opt[1].paths == ("b.kernel",) and new[1].paths == ("a.bias", "a.kernel", "b.kernel")
    assert len(param_groups(opt)) == 1 and len(param_groups(new)) == 2


def refused(group, opt=None, params=ALL, binding=BINDING, **how):
    with pytest.raises(OptimizerError) as error:
        add_param_group(adamw().init(OLD) if opt is None else opt, group, params, binding, **how)
    return str(error.value)


def torch_refused(group, optimizer=None):
    params, opt = oracle(torch.optim.AdamW, {})
    opt = opt if optimizer is None else optimizer
    with pytest.raises((ValueError, TypeError)) as error:
        opt.add_param_group(group(params) if callable(group) else group)
    return str(error.value)


def test_what_torch_refuses_is_refused_in_its_words():
    assert refused([1]) == torch_refused([1])
    assert refused({"params": {"a"}}) == torch_refused(lambda p: {"params": {p["a.bias"]}})
    words = torch_refused(lambda p: {"params": [p["b.weight"], p["a.bias"]]})
    assert refused({"params": "*"}, optimizer=adamw()).startswith(words)
    words = torch_refused(lambda p: {"params": [("a.bias", p["a.bias"])]})
    assert refused({"params": "a.*", "param_names": ["a.bias"]}, optimizer=adamw()) == words


def named(osd):
    return {**osd, "param_groups": [{"param_names": ["b.weight"], **osd["param_groups"][0]}]}


def test_names_are_all_or_none():
    params, _ = oracle(torch.optim.AdamW, {})
    theirs = torch.optim.AdamW([("b.weight", params["b.weight"])])
    tx = adamw()
    opt = load_state_dict(tx.init(OLD), named(state_dict(tx.init(OLD), BINDING)), BINDING)
    assert refused(GROUP, opt, optimizer=tx) == torch_refused({"params": [params["a.bias"]]}, theirs)
    some = [("a.weight", params["a.weight"]), params["a.bias"]]
    words = torch_refused({"params": some}, theirs)
    assert refused({**GROUP, "param_names": ["a.weight"]}, opt, optimizer=tx).startswith(words)
    assert 'the parameters are "a.weight", "a.bias"' in refused(
        {**GROUP, "param_names": ["x", "y"]}, opt, optimizer=tx
    )
    new = add_param_group(opt, {**GROUP, "param_names": ["a.bias", "a.weight"]}, ALL, BINDING, optimizer=tx)
    theirs.add_param_group({"params": [("a.bias", params["a.bias"]), ("a.weight", params["a.weight"])]})
    found, expected = (x["param_groups"] for x in (state_dict(new, BINDING), theirs.state_dict()))
    assert [g["param_names"] for g in found] == [g["param_names"] for g in expected]
    assert [g["params"] for g in found] == [g["params"] for g in expected]


def test_options_are_never_guessed():
    words = refused({"params": "a.*", "lr": 0.5})
    assert 'leaves out "betas", "eps", "weight_decay", "amsgrad", "maximize"' in words
    assert "optimizer=js.optim.adamw(lr=0.5, betas=(0.9, 0.999)" in words
    assert "without groups of its own" in refused(GROUP, optimizer=sgd())
    assert refused({**GROUP, "lr": -1.0}, optimizer=adamw()) == "Invalid learning rate: -1.0"


def test_parameters_are_all_said():
    assert 'params= is without "b.kernel"' in refused(GROUP, params={"a": ALL["a"]}, optimizer=adamw())
    words = refused({"params": "a.bias"}, optimizer=adamw())
    assert 'params= has "a.kernel", which neither the optimizer nor the group has' in words
    assert '"c.*" of group 0 matches none' in refused({"params": "c.*"}, optimizer=adamw())
    assert "a group says what its parameters are" in refused({"lr": 1.0}, optimizer=adamw())


def test_a_partition_has_masks():
    tx = optax.partition(
        {"x": adamw(), "y": adamw()}, {"b": {"kernel": "x"}, "a": {"kernel": "y", "bias": "y"}}
    )
    assert "belongs to one of these 2 states" in refused(GROUP, tx.init(ALL), optimizer=adamw())
