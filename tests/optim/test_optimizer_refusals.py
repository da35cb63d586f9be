"""What does not fit is refused: torch's words where torch has some, and the call that would work."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adam, adamw, load_state_dict, sgd, state_dict  # noqa: E402
from jaxstate.rules.declared import JaxOnly, Sum  # noqa: E402

BINDING = Binding(
    (
        Rule("b.weight", "a.kernel", "i o -> o i", shape=(2, 3)),
        Rule("a.{l}.bias", "h.bias", "l o -> o", l=range(2), shape=(2, 3)),
    )
)
PARAMS = {"a": {"kernel": jnp.ones((2, 3))}, "h": {"bias": jnp.ones((2, 3))}}


def good(tx):
    _, opt = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    return state_dict(opt, BINDING)


def changed(change, tx=None):
    """A state_dict that is right but for one change."""
    osd = good(tx or adamw())
    change(osd)
    return osd


@pytest.mark.parametrize(
    "torch_class, make, options",
    [
        (torch.optim.SGD, sgd, {"lr": -0.5}),
        (torch.optim.SGD, sgd, {"momentum": -1.0}),
        (torch.optim.SGD, sgd, {"weight_decay": -1}),
        (torch.optim.SGD, sgd, {"nesterov": True}),
        (torch.optim.SGD, sgd, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        *(
            pair
            for options in (
                {"lr": -0.5},
                {"eps": -1e-3},
                {"betas": (1.0, 0.9)},
                {"betas": (0.9, -0.1)},
                {"weight_decay": -0.1},
                {"betas": (0, 0.9)},
            )
            for pair in ((torch.optim.Adam, adam, options), (torch.optim.AdamW, adamw, options))
        ),
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(torch_class, make, options):
    with pytest.raises(ValueError) as theirs:
        torch_class([torch.nn.Parameter(torch.ones(1))], **options)
    with pytest.raises(OptimizerError) as ours:
        make(**options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("sizes", [[1, 1], [2], [4]])
def test_groups_that_do_not_fit_are_refused_in_torchs_words(sizes):
    def oracle(sizes):
        rows = [[torch.nn.Parameter(torch.ones(1)) for _ in range(n)] for n in sizes]
        return torch.optim.AdamW([{"params": row} for row in rows])

    osd = oracle(sizes).state_dict()
    with pytest.raises(ValueError) as theirs:
        oracle([3]).load_state_dict(osd)
    with pytest.raises(OptimizerError) as ours:
        load_state_dict(adamw().init(PARAMS), osd, BINDING)
    assert str(ours.value).startswith(str(theirs.value))


def put(*path):
    """A change that puts the last of a path where the others lead."""
    *keys, last, value = path

    def change(osd):
        node = osd
        for key in keys:
            node = node[key]
        node[last] = value

    return change


def drop(*path):
    *keys, last = path

    def change(osd):
        node = osd
        for key in keys:
            node = node[key]
        del node[last]

    return change


def as_json(osd):
    osd["state"] = {str(i): entry for i, entry in osd["state"].items()}


@pytest.mark.parametrize(
    "change, words",
    [
        (drop("state"), r'has "state" and "param_groups", not "param_groups"'),
        (put("param_groups", {}), r'"param_groups" is a list of dicts'),
        (put("state", [1]), r'"state" is a dict by id, not list'),
        (as_json, r"ids are ints, and this state has '0', as JSON makes of them; mend it with.*int\(i\)"),
        (put("param_groups", 0, "params", [0, 1, "2"]), r"this state has '2'"),
        (put("param_groups", 0, "params", [0, 1, 1]), r"ids \[1\] stand for several parameters each"),
        (put("state", 99, {}), r"entries for ids that no group lists: \[99\]"),
        (put("state", 0, None), r'state\[0\] \("b.weight"\) is no dict but None'),
        (put("state", 0, 3), r'state\[0\] \("b.weight"\) is no dict but 3'),
        (put("state", 0, "exp_avg", np.ones((2, 3), "f")), r"exp_avg of shape \(2, 3\).*has \(3, 2\)"),
        (put("state", 0, "exp_avg", "text"), r"exp_avg, which is no array but str"),
        (drop("state", 0, "exp_avg"), r'state\[0\] \("b.weight"\) has no "exp_avg"'),
        (drop("state", 0, "step"), r'has no "step"'),
        (put("state", 0, "exp_inf", np.ones((3, 2), "f")), r'has "exp_inf", which AdamW here does not keep'),
        (put("state", 0, "step", 1.5), r"step 1.5, which is no count"),
        (put("state", 0, "step", -1), r"step -1, which is no count"),
        (put("state", 0, "step", float("nan")), r"step nan, which is no count"),
        (put("state", 0, "step", np.ones(2)), r"step array.*no count"),
        (put("state", 1, "step", 5), r"h.bias is one leaf with one step.*'a.0.bias': 5, 'a.1.bias': 1"),
        (drop("state", 1), r"h.bias is one leaf with one step.*'a.0.bias': 0, 'a.1.bias': 1"),
        (drop("param_groups", 0, "lr"), r'group 0 of the file has no "lr"'),
        (drop("param_groups", 0, "betas"), r'group 0 of the file has no "betas"'),
        (put("param_groups", 0, "betas", 0.9), r"betas=0.9, which is no number"),
        (put("param_groups", 0, "lr", "fast"), r"lr='fast', which is no number"),
        (
            put("param_groups", 0, "param_names", ["b.weigth", "a.0.bias", "a.1.bias"]),
            r'did you mean "b.weight"',
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, words):
    with pytest.raises(OptimizerError, match=words):
        load_state_dict(adamw().init(PARAMS), changed(change), BINDING)


def test_all_problems_come_at_once():
    osd = changed(put("state", 0, "step", -1))
    del osd["state"][1]["exp_avg"], osd["param_groups"][0]["lr"]
    with pytest.raises(OptimizerError) as error:
        load_state_dict(adamw().init(PARAMS), osd, BINDING)
    assert all(word in str(error.value) for word in ("step -1", '"exp_avg"', '"lr"'))


@pytest.mark.parametrize(
    "file, template, call",
    [
        (
            adamw(amsgrad=True),
            adamw(),
            "js.optim.adamw(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=True)",
        ),
        (
            adamw(weight_decay=0.0),
            adam(),
            "js.optim.adamw(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)",
        ),
        (adam(), adamw(), "js.optim.adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0)"),
        (
            adam(maximize=True),
            adam(),
            "js.optim.adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, maximize=True)",
        ),
        (sgd(momentum=0.9), sgd(), "js.optim.sgd(lr=0.001, momentum=0.9, dampening=0, weight_decay=0)"),
        (
            sgd(momentum=0.9, nesterov=True),
            sgd(momentum=0.9),
            "js.optim.sgd(lr=0.001, momentum=0.9, dampening=0, weight_decay=0, nesterov=True)",
        ),
    ],
)
def test_another_algorithm_is_refused_with_the_call_that_fits(file, template, call):
    osd = good(file)
    with pytest.raises(OptimizerError) as error:
        load_state_dict(template.init(PARAMS), osd, BINDING)
    assert call in str(error.value)
    js = type("js", (), {"optim": type("optim", (), {"sgd": sgd, "adam": adam, "adamw": adamw})})
    fitting = eval(call, {"js": js})
    loaded = load_state_dict(fitting.init(PARAMS), osd, BINDING)
    again = state_dict(loaded, BINDING)
    assert again["param_groups"] == osd["param_groups"] and list(again["state"]) == list(osd["state"])


def test_a_sum_carries_no_state():
    binding = Binding((Sum((Rule("ih", "bias", "k -> k"), Rule("hh", "bias", "k -> k"))),))
    params = {"bias": jnp.ones(3)}
    opt = adam().init(params)
    with pytest.raises(OptimizerError, match='"ih", "hh" are held as their sum, "bias".*twice as far'):
        state_dict(opt, binding)
    oracle = torch.optim.Adam([torch.nn.Parameter(torch.ones(3)) for _ in range(2)])
    with pytest.raises(OptimizerError, match="held as their sum"):
        load_state_dict(opt, oracle.state_dict(), binding)


def test_a_leaf_that_torch_lacks_may_not_be_trained():
    binding = Binding((Rule("w", "w", "i -> i"), JaxOnly("b", 0.0)))
    params, tx = {"b": jnp.zeros(3), "w": jnp.ones(3)}, adam()
    _, frozen = tx.update({"b": None, "w": jnp.ones(3)}, tx.init(params), params)
    assert list(state_dict(frozen, binding)["state"]) == [0]
    _, trained = tx.update(params, tx.init(params), params)
    with pytest.raises(OptimizerError, match="leaf b was trained"):
        state_dict(trained, binding)


QKV = Binding((Rule("qkv", "{p}.w", "i o -> (p o) i", p=("q", "k"), shape=(2, 3)),))


def test_parts_of_one_torch_parameter_stay_together():
    params, tx = {"q": {"w": jnp.ones((2, 3))}, "k": {"w": jnp.ones((2, 3))}}, adam()
    _, opt = tx.update({"q": params["q"], "k": {"w": None}}, tx.init(params), params)
    with pytest.raises(OptimizerError, match=r'"qkv" has one step in torch and \[0, 1\] here'):
        state_dict(opt, QKV)
    torn = adam(param_groups=[{"params": "q.w"}, {"params": "k.w"}]).init(params)
    with pytest.raises(OptimizerError, match='"qkv" are one parameter in torch and lie in several groups'):
        state_dict(torn, QKV)
    with pytest.raises(OptimizerError, match="holds a part of the leaves"):
        state_dict(tx.init({"q": params["q"]}), QKV)


def test_parameters_that_the_binding_does_not_know_are_listed():
    with pytest.raises(OptimizerError, match=r'(?s)optimizer has "strange".*the Binding has .*"a.kernel"'):
        state_dict(adam().init({"strange": jnp.ones(3)}), BINDING)


def test_no_state_or_several():
    opt = adam().init(PARAMS)
    with pytest.raises(OptimizerError, match="holds no states of a jaxstate optimizer"):
        state_dict((), BINDING)
    with pytest.raises(OptimizerError, match="holds 2 states"):
        state_dict((opt, opt), BINDING)


def test_integers_are_refused():
    for dtype in (jnp.int32, jnp.bool_):
        with pytest.raises(OptimizerError, match=f"floating-point parameters.*w \\({jnp.dtype(dtype)}\\)"):
            adam().init({"w": jnp.ones(3, dtype)})


def test_updates_need_the_parameters_of_init():
    tx = adam()
    opt = tx.init(PARAMS)
    with pytest.raises(OptimizerError, match=r"update\(grads, state, params\)"):
        tx.update(PARAMS, opt)
    with pytest.raises(OptimizerError, match="not the parameters of init"):
        tx.update({"w": jnp.ones(3)}, opt, {"w": jnp.ones(3)})
    short = jax.tree.map(lambda x: x[:1], PARAMS)
    with pytest.raises(
        OptimizerError, match=r"gradient of a.kernel has shape \(1, 3\), the parameter \(2, 3\)"
    ):
        tx.update(short, opt, PARAMS)


def test_two_leaves_of_one_name():
    with pytest.raises(OptimizerError, match='several leaves.*"a.b"'):
        adam().init({"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})


def test_a_refused_file_changes_nothing():
    osd = changed(put("state", 0, "step", -1))
    before = copy.deepcopy(osd)
    with pytest.raises(OptimizerError):
        load_state_dict(adamw().init(PARAMS), osd, BINDING)
    assert osd["param_groups"] == before["param_groups"] and list(osd["state"]) == list(before["state"])
