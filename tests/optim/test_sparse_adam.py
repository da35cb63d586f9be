"""SparseAdam against torch's: rows that repeat, zeros that are specified, rows that are never touched."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

torch = pytest.importorskip("torch")

from optimizer_pair import cases_of  # noqa: E402

from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adam, adamw, load_state_dict, muon, sparse_adam, state_dict  # noqa: E402

BINDING = Binding(
    (
        Rule("b.weight", "second", "v d -> v d", shape=(5, 4)),
        Rule("a.weight", "first", "d v -> v d", shape=(3, 7)),
    )
)
OPTIONS = [
    {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3},
    {"lr": 0.02, "betas": (0.7, 0.9), "eps": 1e-6, "maximize": True},
]
BOUND = {"float32": 2e-6, "float64": 1e-14}
START = {
    "b.weight": np.random.default_rng(0).normal(size=(5, 4)),
    "a.weight": np.random.default_rng(1).normal(size=(7, 3)),
}


def looked_up(step, dtype):
    """The rows that a step specifies: some twice, one of zeros, other ones in the next step."""
    rng = np.random.default_rng(step)
    ids = {"b.weight": rng.integers(0, 4, 3), "a.weight": rng.integers(0, 6, 5)}
    rows = {name: rng.normal(size=(len(i), START[name].shape[1])).astype(dtype) for name, i in ids.items()}
    rows["a.weight"][0] = 0
    return ids, rows


def torch_steps(params, opt, start, stop, dtype):
    for step in range(start, stop):
        ids, rows = looked_up(step, dtype)
        for name, p in params.items():
            index, values = torch.from_numpy(ids[name])[None], torch.from_numpy(rows[name])
            p.grad = torch.sparse_coo_tensor(index, values, p.shape, check_invariants=True)
        opt.step()
    return {name: p.detach().numpy().copy() for name, p in params.items()}


def torch_pair(arrays, options, osd=None):
    params = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in arrays.items()}
    given = {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    opt = torch.optim.SparseAdam(list(params.values()), **given)
    if osd is not None:
        opt.load_state_dict(as_tensors(osd))
    return params, opt


def as_tensors(osd):
    entries = {
        i: {k: v if k == "step" else torch.from_numpy(v) for k, v in entry.items()}
        for i, entry in osd["state"].items()
    }
    return {"state": entries, "param_groups": copy.deepcopy(osd["param_groups"])}


def slopes(step, dtype):
    """Rows of one table; the other is transposed here, so that its rows are elements."""
    ids, rows = looked_up(step, dtype)
    second = sparse.BCOO((jnp.asarray(rows["b.weight"]), jnp.asarray(ids["b.weight"])[:, None]), shape=(5, 4))
    whole = sparse.BCOO((jnp.asarray(rows["a.weight"]), jnp.asarray(ids["a.weight"])[:, None]), shape=(7, 3))
    first = sparse.bcoo_transpose(sparse.bcoo_update_layout(whole, n_dense=0), permutation=(1, 0))
    return {"second": second, "first": first}


def jax_steps(tx, arrays, opt, start, stop, dtype):
    params = {"second": jnp.asarray(arrays["b.weight"]), "first": jnp.asarray(arrays["a.weight"].T)}
    update = jax.jit(tx.update)
    for step in range(start, stop):
        updates, opt = update(slopes(step, dtype), opt, params)
        params = optax.apply_updates(params, updates)
    return {"b.weight": np.asarray(params["second"]), "a.weight": np.asarray(params["first"]).T}, opt


def error(found, expected, start):
    moved = max(np.max(np.abs(expected[name] - start[name])) for name in start)
    return max(np.max(np.abs(found[name] - expected[name])) for name in start) / moved


CASES = [
    *((options, "float32") for options in OPTIONS + cases_of("SparseAdam")),
    *((options, "float64") for options in OPTIONS),
]


@pytest.mark.parametrize("options, dtype", CASES, ids=str)
def test_training_goes_on_in_the_other_library(options, dtype):
    with jax.enable_x64(dtype == "float64"):
        # Where the steps are small beside the parameters, the roundings of the parameters are not.
        scale = 1 if "betas" in options else 1e-4
        start = {name: (scale * array).astype(dtype) for name, array in START.items()}
        tx = sparse_adam(**options)
        init = tx.init({"second": jnp.asarray(start["b.weight"]), "first": jnp.asarray(start["a.weight"].T)})
        reference = torch_steps(*torch_pair(start, options), 0, 9, dtype)
        params, oracle = torch_pair(start, options)
        arrays = torch_steps(params, oracle, 0, 4, dtype)
        opt = load_state_dict(init, oracle.state_dict(), BINDING)
        there, _ = jax_steps(tx, arrays, opt, 4, 9, dtype)
        arrays, opt = jax_steps(tx, start, init, 0, 4, dtype)
        osd = state_dict(opt, BINDING)
        assert _typed(osd) == _typed(oracle.state_dict())
        back = torch_steps(*torch_pair(arrays, options, osd), 4, 9, dtype)
    assert error(there, reference, start) <= BOUND[dtype] and error(back, reference, start) <= BOUND[dtype]


def _typed(osd):
    def shown(value):
        return (value.shape, str(np.asarray(value).dtype)) if hasattr(value, "shape") else value

    entries = [(i, [(k, type(v) is int, shown(v)) for k, v in e.items()]) for i, e in osd["state"].items()]
    groups = [[(k, type(v) is tuple, shown(v)) for k, v in group.items()] for group in osd["param_groups"]]
    return entries, groups


def test_rows_out_of_bounds_are_padding_and_other_rows_keep_every_bit():
    params = {"w": jnp.array([[-0.0, 1e-37], [1.0, 2.0], [3.0, -0.0]])}
    padded = sparse.BCOO((jnp.ones((2, 2)), jnp.array([[1], [3]])), shape=(3, 2))
    tx = sparse_adam(lr=0.5)
    updates, opt = tx.update({"w": padded}, tx.init(params), params)
    after = np.asarray(optax.apply_updates(params, updates)["w"])
    assert after[[0, 2]].tobytes() == np.asarray(params["w"])[[0, 2]].tobytes()
    assert np.allclose(after[1], [0.5, 1.5])
    assert np.array_equal(np.asarray(opt.buffers["exp_avg"]["w"])[[0, 2]], np.zeros((2, 2)))


def test_a_gradient_of_a_lookup():
    params, ids = {"table": jnp.arange(8.0).reshape(4, 2)}, jnp.array([2, 0, 2])

    def loss(rows):
        return jnp.sum(rows**2)

    rows = jax.grad(loss)(params["table"][ids])
    grads = {"table": sparse.BCOO((rows, ids[:, None]), shape=(4, 2))}
    tx = sparse_adam(lr=0.1)
    updates, _ = tx.update(grads, tx.init(params), params)
    p = torch.nn.Embedding.from_pretrained(torch.arange(8.0).reshape(4, 2), freeze=False, sparse=True)
    (p(torch.tensor([2, 0, 2])) ** 2).sum().backward()
    torch.optim.SparseAdam(p.parameters(), lr=0.1).step()
    moved = p.weight.detach().numpy() - np.arange(8.0).reshape(4, 2)
    assert np.allclose(updates["table"], moved, atol=1e-6) and np.all(moved[[1, 3]] == 0)


def test_dense_gradients_are_refused_in_torchs_words():
    params = {"w": jnp.ones((3, 2))}
    tx = sparse_adam()
    with pytest.raises(OptimizerError) as ours:
        tx.update(params, tx.init(params), params)
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    with pytest.raises(RuntimeError) as theirs:
        torch.optim.SparseAdam([p]).step()
    assert str(ours.value).startswith(str(theirs.value))


@pytest.mark.parametrize("tx", [adam(), adamw(), muon()], ids=["Adam", "AdamW", "Muon"])
def test_sparse_gradients_are_refused_by_the_others(tx, request):
    params = {"w": jnp.ones((3, 2))}
    grads = {"w": sparse.BCOO.fromdense(params["w"], n_dense=1)}
    name = request.node.callspec.id
    with pytest.raises(OptimizerError, match=f"^{name} does not support sparse gradients, as w has one$"):
        tx.update(grads, tx.init(params), params)


def test_batch_axes_and_other_shapes_are_refused():
    params, tx = {"w": jnp.ones((3, 2))}, sparse_adam()
    batched = sparse.BCOO.fromdense(params["w"], n_batch=1)
    with pytest.raises(OptimizerError, match="1 batch axes.*n_batch=0"):
        tx.update({"w": batched}, tx.init(params), params)
    short = sparse.BCOO.fromdense(jnp.ones((2, 2)), n_dense=1)
    with pytest.raises(OptimizerError, match=r"gradient of w has shape \(2, 2\), the parameter \(3, 2\)"):
        tx.update({"w": short}, tx.init(params), params)


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}]
)
def test_options_that_torch_refuses(options):
    with pytest.raises(ValueError) as theirs:
        torch.optim.SparseAdam([torch.nn.Parameter(torch.ones(2))], **options)
    with pytest.raises(OptimizerError) as ours:
        sparse_adam(**options)
    assert str(ours.value) == str(theirs.value)


def test_no_gradient_is_no_step():
    params, tx = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}, sparse_adam()
    grads = {"a": None, "b": sparse.BCOO.fromdense(params["b"], n_dense=1)}
    _, opt = tx.update(grads, tx.init(params), params)
    assert opt.step.tolist() == [0, 1]


def test_optax_has_no_equal():
    params = {"w": jnp.ones((3, 2))}
    with pytest.raises(
        OptimizerError, match=r"optax has no Adam that leaves rows alone.*sparse_adam\(lr=0.2"
    ):
        state_dict(optax.adam(0.2).init(params), BINDING, optimizer=sparse_adam(lr=0.2))
