"""L-BFGS goes on in the other library, with torch's iterations, evaluations and reasons to stop."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from lbfgs_pair import LBFGSPair, as_tensors, jax_step  # noqa: E402
from optimizer_pair import cases_of  # noqa: E402

from jaxstate.optim import lbfgs, load_state_dict, set_hyperparameters, state_dict  # noqa: E402

WOLFE = "strong_wolfe"

# Options, and how many steps before and after the move.
CASES = [
    ({"lr": 0.7, "max_iter": 4, "history_size": 3, "line_search_fn": WOLFE}, 3, 4),
    ({"lr": 0.5, "max_iter": 1, "history_size": 3, "line_search_fn": WOLFE}, 4, 5),
    ({"lr": 1.5, "max_iter": 20, "history_size": 3, "line_search_fn": WOLFE}, 1, 1),
    ({"lr": 0.7, "max_iter": 20, "max_eval": 6, "history_size": 3, "line_search_fn": WOLFE}, 2, 3),
    ({"lr": 4.0, "max_iter": 20, "max_eval": 7, "history_size": 3, "line_search_fn": WOLFE}, 2, 2),
    ({"lr": 0.3, "max_iter": 20, "history_size": 3}, 1, 1),
    ({"lr": 0.3, "max_iter": 4, "history_size": 3}, 2, 3),
    ({"lr": 0.3, "max_iter": 1, "history_size": 3}, 4, 5),
    ({"lr": 0.3, "max_iter": 20, "max_eval": 6, "history_size": 3}, 3, 4),
    ({"lr": 0.3, "max_iter": 20, "tolerance_grad": 0.3, "history_size": 3}, 2, 3),
    ({"lr": 0.3, "max_iter": 20, "tolerance_change": 3e-2, "history_size": 3}, 2, 3),
]
LONG = [
    ({"max_iter": 6, "line_search_fn": WOLFE}, 2, 2),
    ({"lr": 0.3, "max_iter": 6}, 2, 2),
]
# PyTorch's own table of cases.
TABLE = [(options, 1, 1) for options in cases_of("LBFGS")]


def named(case):
    return "-".join(f"{key}={value}" for key, value in case[0].items()) if isinstance(case, tuple) else case


@pytest.mark.parametrize("problem", ["layers", "rosenbrock"])
@pytest.mark.parametrize("case", CASES + LONG + TABLE, ids=named)
def test_training_goes_on_in_the_other_library(problem, case):
    options, k, n = case
    with jax.enable_x64(True):
        pair = LBFGSPair(problem, options)
        errors = pair.errors(k, n)
        opt, there, state, here = pair.both(k + n)
    assert max(*errors, pair.error(here, there)) <= 1e-9
    entry = opt.state_dict()["state"][0]
    assert (entry["func_evals"], entry["n_iter"]) == (int(state.memory.func_evals), int(state.n_iter))


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 6, 7)], ids=named)
def test_float32_is_no_further_from_torch_than_torch_is_from_itself(case):
    options, k, n = case
    pair = LBFGSPair("layers", options, dtype="float32")
    reference = pair.torch_steps(*pair.torch(), k + n)
    orders = [np.random.default_rng(seed).permutation(24) for seed in range(8)]
    others = [LBFGSPair("layers", options, dtype="float32", rows=rows) for rows in orders]
    own = max(pair.error(other.torch_steps(*other.torch(), k + n), reference) for other in others)
    # Of a handful of numbers of the same spread, one is now and then a few times the largest other.
    assert max(pair.errors(k, n)) <= 4 * own <= 1e-3


@pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=named)
def test_without_a_binding_the_order_is_the_leaves_own(case):
    options, k, n = case
    with jax.enable_x64(True):
        assert max(LBFGSPair("layers", options, bound=False).errors(k, n)) <= 1e-9


def test_parameters_in_the_order_of_the_files_names():
    names = ["h.1.weight", "fc.weight", "b.bias", "h.0.weight", "b.weight"]
    with jax.enable_x64(True):
        pair = LBFGSPair("layers", CASES[0][0], names=names)
        reference = pair.torch_steps(*pair.torch(), 6)
        opt, params, closure = pair.torch()
        arrays = pair.torch_steps(opt, params, closure, 2)
        state = load_state_dict(pair.init(), opt.state_dict(), pair.binding)
        here, state = pair.jax_steps(pair.params(arrays), state, 2)
        osd = as_tensors(state_dict(state, pair.binding))
        assert osd["param_groups"] == opt.state_dict()["param_groups"]
        back = pair.torch_steps(*pair.torch(pair.arrays(here), osd), 2)
        assert pair.error(back, reference) <= 1e-9


def test_a_second_step_and_a_loaded_state_compile_nothing():
    pair = LBFGSPair("rosenbrock", {"lr": 0.5, "max_iter": 2, "history_size": 7}, dtype="float32")
    step = jax_step("rosenbrock", "float32")
    before = step._cache_size()
    params, opt = pair.jax_steps(pair.params(), pair.init(), 3)
    opt = load_state_dict(pair.init(), state_dict(opt, pair.binding), pair.binding)
    opt = set_hyperparameters(opt, lr=0.25, max_iter=5, max_eval=4, tolerance_change=1e-5)
    pair.jax_steps(params, opt, 2)
    assert step._cache_size() == before + 1


def test_hyperparameters_may_change_between_steps():
    pair = LBFGSPair("rosenbrock", CASES[6][0])
    with jax.enable_x64(True):
        opt, params, closure = pair.torch()
        pair.torch_steps(opt, params, closure, 2)
        opt.param_groups[0].update(lr=0.11, max_iter=3)
        there = pair.torch_steps(opt, params, closure, 2)
        here, state = pair.jax_steps(pair.params(), pair.init(), 2)
        here, _ = pair.jax_steps(here, set_hyperparameters(state, lr=0.11, max_iter=3), 2)
        assert pair.error(pair.arrays(here), there) <= 1e-9


def test_a_parameter_without_a_gradient_stays_and_is_counted():
    p, q = (torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in ([2.0, -3.0], [5.0, 7.0, 9.0]))
    opt = torch.optim.LBFGS([q, p], max_iter=3, lr=0.4)

    def closure():
        opt.zero_grad()
        loss = (p**4).sum()
        loss.backward()
        return loss

    def ours(params):
        value, slope = jax.value_and_grad(lambda x: jnp.sum(x**4))(params["p"])
        return value, {"a": None, "p": slope}

    with jax.enable_x64(True):
        params = {"a": jnp.array([5.0, 7.0, 9.0]), "p": jnp.array([2.0, -3.0])}
        tx = optax.chain(lbfgs(max_iter=3, lr=0.4), optax.identity())
        state = tx.init(params)
        for _ in range(2):
            opt.step(closure)
            value, grads = ours(params)
            updates, state = tx.update(grads, state, params, value=value, value_and_grad_fn=ours)
            params = optax.apply_updates(params, updates)
    assert params["a"].tolist() == q.tolist()
    np.testing.assert_allclose(params["p"], p.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(state[0].memory.d, opt.state_dict()["state"][0]["d"].numpy(), rtol=1e-12)


def test_a_loss_that_is_not_a_number_stops_where_torch_stops():
    # The first step overshoots into where the logarithm is none.
    for line_search_fn in (None, WOLFE):
        p = torch.nn.Parameter(torch.tensor([0.05, 0.9], dtype=torch.float64))
        opt = torch.optim.LBFGS([p], lr=1, max_iter=6, line_search_fn=line_search_fn)

        def closure(p=p, opt=opt):
            opt.zero_grad()
            loss = (30 * p - torch.log(1 - p)).sum()
            loss.backward()
            return loss

        with jax.enable_x64(True):
            ours = jax.value_and_grad(lambda x: jnp.sum(30 * x - jnp.log(1 - x)))
            params, tx = jnp.array([0.05, 0.9]), lbfgs(lr=1, max_iter=6, line_search_fn=line_search_fn)
            opt.step(closure)
            value, grads = ours(params)
            updates, state = tx.update(grads, tx.init(params), params, value=value, value_and_grad_fn=ours)
        entry = opt.state_dict()["state"][0]
        assert (entry["func_evals"], entry["n_iter"]) == (int(state.memory.func_evals), int(state.n_iter))
        np.testing.assert_allclose(params + updates, p.detach().numpy(), rtol=1e-12)


def rugged(numpy, x, a):
    """A function with many minima, walls and kinks, on which every branch of the search is taken."""
    waves = a[0] * numpy.sin(a[1] * x) + a[2] * x**2 + a[3] * numpy.abs(x) + 0.02 * x**4
    return waves.sum() + a[4] * x[0] * x[1]


def rugged_case(seed):
    """A start, a function's numbers, and options, of which some are extreme."""
    rng = np.random.default_rng(seed)
    a = np.array([3, 0, 0, 0, 0.5]) * rng.normal(size=5) + [0, *rng.uniform(0.3, [5, 0.5, 1]), 0]
    options = {
        "lr": float(rng.choice([1e-3, 0.1, 0.5, 1, 3, 30])),
        "max_iter": int(rng.integers(1, 6)),
        "max_eval": int(rng.integers(1, 12)),
    }
    return 2 * rng.normal(size=3), a, options


def torch_rugged(start, a, options):
    """Where torch ends, and its entry."""
    p, a = torch.nn.Parameter(torch.tensor(start)), torch.tensor(a)
    opt = torch.optim.LBFGS([p], history_size=4, line_search_fn=WOLFE, **options)

    def closure():
        opt.zero_grad()
        loss = rugged(torch, p, a)
        loss.backward()
        return loss

    opt.step(closure)
    return p.detach().numpy(), opt.state[p]


@jax.jit
def jax_rugged(x, state, a):
    closure = jax.value_and_grad(lambda x: rugged(jnp, x, a))
    value, grads = closure(x)
    updates, state = lbfgs().update(grads, state, x, value=value, value_and_grad_fn=closure)
    return x + updates, state


def test_every_branch_of_the_line_search(monkeypatch):
    module, taken, kinds = sys.modules["torch.optim.lbfgs"], set(), set()
    cubic = module._cubic_interpolate

    def watched(x1, f1, g1, x2, f2, g2, bounds=None):
        halved = bool((g1 + g2 - 3 * (f1 - f2) / (x1 - x2)) ** 2 - g1 * g2 < 0)
        taken.add(("zooming" if bounds is None else "bracketing", halved))
        return cubic(x1, f1, g1, x2, f2, g2, bounds)

    monkeypatch.setattr(module, "_cubic_interpolate", watched)
    with jax.enable_x64(True):
        template = lbfgs(lr=0.5, history_size=4, line_search_fn=WOLFE).init(jnp.ones(3))
        for seed in range(60):
            start, a, options = rugged_case(seed)
            there, entry = torch_rugged(start, a, options)
            here, state = jax_rugged(jnp.array(start), set_hyperparameters(template, **options), a)
            kinds.add(int(state.memory.t_kind))
            assert {int: 0, float: 1, torch.Tensor: 2}[type(entry["t"])] == int(state.memory.t_kind)
            assert (entry["func_evals"], entry["n_iter"]) == (int(state.memory.func_evals), int(state.n_iter))
            np.testing.assert_allclose(here, there, rtol=1e-8, atol=1e-8)
    # Between the ends of a bracket the cubic always has a minimum.
    assert kinds == {0, 1, 2} and taken == {("bracketing", False), ("bracketing", True), ("zooming", False)}


def test_the_model_is_compiled_twice_whatever_the_search():
    # Once for the evaluation that the caller makes, once inside the loops.
    for line_search_fn in (None, WOLFE):
        tx, params = lbfgs(line_search_fn=line_search_fn), {"w": jnp.ones(3)}

        def closure(params):
            return jax.value_and_grad(lambda p: jnp.sum(jax.lax.erf(p["w"])))(params)

        def step(params, state, tx=tx, closure=closure):
            value, grads = closure(params)
            return tx.update(grads, state, params, value=value, value_and_grad_fn=closure)

        assert str(jax.make_jaxpr(step)(params, tx.init(params))).count("= erf ") == 2


def test_init_may_be_abstract():
    pair = LBFGSPair("layers", CASES[0][0], dtype="float32")
    whole = pair.init()
    half = pair.tx.init(jax.eval_shape(pair.params))
    assert isinstance(half.memory.old_dirs, jax.ShapeDtypeStruct)
    for abstract in (half, jax.eval_shape(pair.tx.init, pair.params())):
        kinds = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), abstract, whole)
        assert jax.tree.all(kinds)
    opt, params, closure = pair.torch()
    pair.torch_steps(opt, params, closure, 2)
    loaded = [load_state_dict(state, opt.state_dict(), pair.binding) for state in (half, whole)]
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), *loaded))
