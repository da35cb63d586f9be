"""What L-BFGS refuses: in torch's words where torch has some, and all of a file's faults at once."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lbfgs_pair import LAYERS, LBFGSPair  # noqa: E402

from jaxstate.binding import Binding  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adam, lbfgs, load_state_dict, set_hyperparameters, sgd, state_dict  # noqa: E402
from jaxstate.rules.declared import JaxOnly  # noqa: E402
from jaxstate.rules.rule import Rule  # noqa: E402

PARAMS = {"w": jnp.ones(3)}
CLOSURE = jax.value_and_grad(lambda params: jnp.sum(params["w"] ** 2))


@pytest.mark.parametrize("options", [{"lr": -0.5}, {"lr": float("nan")}, {"lr": "two"}], ids=str)
def test_what_torch_refuses_is_refused_in_its_words(options):
    theirs, ours = (
        ({"lr": make([0.1, 0.2])} if options["lr"] == "two" else options) for make in (torch.tensor, np.array)
    )
    with pytest.raises(ValueError) as expected:
        torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))], **theirs)
    with pytest.raises(OptimizerError) as found:
        lbfgs(**ours)
    assert str(found.value) == str(expected.value)


def test_there_is_one_group():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)]
    with pytest.raises(ValueError) as expected:
        torch.optim.LBFGS(groups)
    with pytest.raises(OptimizerError) as found:
        lbfgs(param_groups=[{"params": "a"}, {"params": "b"}])
    assert str(found.value) == str(expected.value)
    tx = lbfgs(lr=0.5, param_groups=[{"params": "*", "lr": 0.25, "name": "all"}])
    assert float(tx.init(PARAMS).param_groups[0]["lr"]) == 0.25


def test_another_line_search_is_refused_before_the_first_step():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError) as expected:
        torch.optim.LBFGS([p], line_search_fn="armijo").step(lambda: (p**2).sum().backward() or (p**2).sum())
    with pytest.raises(OptimizerError) as found:
        lbfgs(line_search_fn="armijo")
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_iter": 2.5}, r"max_iter is a whole number, not 2.5"),
        ({"max_eval": 2.5}, r"max_eval is a whole number, not 2.5"),
        ({"history_size": 0}, r"history_size is 1 at least"),
        ({"max_eval": 0, "line_search_fn": "strong_wolfe"}, r"fails with max_eval=0; 1 is the least"),
    ],
    ids=str,
)
def test_what_fails_in_torchs_step_is_refused(options, words):
    with pytest.raises(OptimizerError, match=words):
        lbfgs(**options)


def update(grads=PARAMS, params=PARAMS, **extra):
    tx = lbfgs()
    return tx.update(grads, tx.init(PARAMS), params, **extra)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: update(), r"update\(grads, state, params, value=loss, value_and_grad_fn=closure\)"),
        (lambda: update(value=1.0), r"where loss, grads = closure\(params\)"),
        (lambda: update(params=None, value=1.0, value_and_grad_fn=CLOSURE), r"evaluates the loss several"),
        (lambda: sgd().update(PARAMS, lbfgs().init(PARAMS), PARAMS), r"evaluates the loss several"),
        (
            lambda: update(value=jnp.ones(2), value_and_grad_fn=CLOSURE),
            r"the loss is one number, not an array of shape \(2,\)",
        ),
        (
            lambda: update({"w": jnp.ones(2)}, value=1.0, value_and_grad_fn=CLOSURE),
            r"the gradient of w has shape \(2,\), the parameter \(3,\)",
        ),
        (
            lambda: update({"w": jnp.ones(4)}, {"w": jnp.ones(4)}, value=1.0, value_and_grad_fn=CLOSURE),
            r"not the parameters of init: \[\('w', \(4,\)\)\]",
        ),
        (lambda: lbfgs().init({"w": jnp.ones(3, jnp.bfloat16)}), r"all of float64, not w \(bfloat16\)"),
        (lambda: lbfgs().init({"w": jnp.ones(3, jnp.complex64)}), r"real floating-point.*complex64"),
        (
            lambda: lbfgs().init({"w": np.ones(3), "v": np.ones(3, np.float32)}),
            r"not v \(float32\), w \(float64\)",
        ),
        (lambda: set_hyperparameters(lbfgs().init(PARAMS), history_size=3), r'"history_size" cannot be set'),
    ],
)
def test_calls_that_cannot_work(call, words):
    with pytest.raises(OptimizerError, match=words):
        call()


def test_a_leaf_that_torch_lacks_has_no_place_in_the_vector():
    binding = Binding((Rule("w", "w", "i -> i", shape=(3,)), JaxOnly("b", 0.0, (2,), "float32")))
    with pytest.raises(OptimizerError, match=r"JaxOnly.*does not say.*leave them out of the tree"):
        lbfgs(binding=binding).init({"w": jnp.ones(3), "b": jnp.zeros(2)})


def test_plain_optax_states_are_refused():
    with pytest.raises(OptimizerError, match=r"optax.lbfgs takes its first step from another norm"):
        state_dict((), LAYERS, optimizer=lbfgs())


@pytest.fixture(scope="module")
def moved():
    """A template, and torch's dict after a few steps."""
    options = {"lr": 0.3, "max_iter": 2, "max_eval": 5, "history_size": 3}
    pair = LBFGSPair("layers", options, dtype="float32")
    opt, params, closure = pair.torch()
    pair.torch_steps(opt, params, closure, 2)
    return pair.init(), opt.state_dict()


def put(key, value):
    return lambda osd: osd["state"][0].__setitem__(key, value)


def drop(*keys):
    return lambda osd: [osd["state"][0].pop(key) for key in keys]


def at(key, i, value):
    return lambda osd: osd["state"][0][key].__setitem__(i, value)


@pytest.mark.parametrize(
    "change, words",
    [
        (put("d", torch.ones(7)), r"state\[0\] has d of shape \(7,\), and \(114,\) is that of its place"),
        (put("d", None), r'state\[0\] has no "d"'),
        (drop("t", "prev_loss"), r'has no "t", "prev_loss"'),
        (put("d", "text"), r"has d, which is no array but str"),
        (put("prev_flat_grad", torch.ones(114).double()), r"prev_flat_grad of float64.*cast=True"),
        (at("old_dirs", 1, torch.ones(3)), r"has old_dirs\[1\] of shape \(3,\)"),
        (at("ro", 0, torch.ones(1)), r"has ro\[0\] of shape \(1,\), and \(\)"),
        (at("al", 2, None), r"has al filled at \[0, 1\], and 3 pairs"),
        (put("al", [None]), r"has al of length 1, and history_size=3"),
        (put("al", None), r'has "al", which are no lists'),
        (put("old_stps", []), r"has lists of lengths .*'old_stps': 0.*equal, and at most history_size=3"),
        (put("old_dirs", torch.ones(3, 114)), r'has "old_dirs", which are no lists'),
        (put("n_iter", -1), r"has n_iter=-1, which is no count"),
        (put("func_evals", None), r"has func_evals=None, which is no count"),
        (put("func_evals", 2**31), r"which is no count"),
        (put("n_iter", 0), r'has n_iter=0, from where torch starts anew, and yet "d", "t"'),
        (put("momentum_buffer", torch.ones(1)), r'"momentum_buffer", which LBFGS here does not keep'),
        (put("t", 1e300), r"has t=1e\+300, which float32 does not hold"),
        (put("t", torch.ones(2)), r"has t of shape \(2,\)"),
        (put("prev_loss", torch.ones(())), r"has prev_loss=tensor\(1.\), which is no number"),
        (lambda osd: osd["state"].__setitem__(1, {"d": 1}), r"one entry, under id 0.*others under \[1\]"),
        (lambda osd: osd["state"].__setitem__(0, [1]), r"state\[0\] is no dict but \[1\]"),
        (
            lambda osd: osd["state"][0].update(old_dirs=[], old_stps=[], ro=[], al=[None] * 3),
            r"has H_diag=.* and no pairs, with which it is 1",
        ),
        (
            lambda osd: osd["param_groups"][0].update(history_size=5, line_search_fn="strong_wolfe"),
            r"history_size=5 instead of 3.*: js.optim.lbfgs\(lr=0.3, max_iter=2, max_eval=5, tolerance_grad="
            r"1e-07, tolerance_change=1e-09, history_size=5, line_search_fn='strong_wolfe'\)",
        ),
        (lambda osd: osd["param_groups"][0].pop("max_eval"), r'group 0 of the file has no "max_eval"'),
    ],
)
def test_entries_that_do_not_fit_are_refused(moved, change, words):
    template, osd = moved
    load_state_dict(template, osd, LAYERS)
    osd = copy.deepcopy(osd)
    change(osd)
    with pytest.raises(OptimizerError, match=words) as error:
        load_state_dict(template, osd, LAYERS)
    assert str(error.value).startswith("Error(s) in loading state_dict for LBFGS:\n\t")


def test_all_faults_are_told_at_once(moved):
    template, osd = moved
    osd = copy.deepcopy(osd)
    osd["state"][0].update(d=torch.ones(2), prev_loss="low")
    osd["state"][0]["old_stps"][0] = torch.ones(5)
    with pytest.raises(OptimizerError) as error:
        load_state_dict(template, osd, LAYERS)
    assert len(str(error.value).split("\n\t")) == 1 + 3


def test_the_states_of_other_optimizers_do_not_fit(moved):
    template, osd = moved
    params = LBFGSPair("layers", {}, dtype="float32").params()
    other = state_dict(adam().update(params, adam().init(params), params)[1], LAYERS)
    with pytest.raises(OptimizerError, match=r'"exp_avg"'):
        load_state_dict(template, other, LAYERS)
    with pytest.raises(OptimizerError, match=r'"old_dirs"'):
        load_state_dict(adam().init(params), osd, LAYERS)
