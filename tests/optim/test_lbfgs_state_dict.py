"""The entry of L-BFGS is torch's: keys, order, types, and, moved without a step, bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lbfgs_pair import LBFGSPair, as_tensors  # noqa: E402

import jaxstate as js  # noqa: E402
from jaxstate.optim import load_state_dict, set_hyperparameters, state_dict  # noqa: E402

WOLFE = "strong_wolfe"

# Options, and steps: whatever torch's entry can look like.
CASES = {
    "one iteration": ({"lr": 0.3, "max_iter": 1}, 1),
    "one iteration, whole length": ({"lr": 0.3, "max_iter": 1, "tolerance_change": 0.0}, 1),
    "al comes last": ({"lr": 0.3, "max_iter": 1, "history_size": 2}, 5),
    "al comes first": ({"lr": 0.3, "max_iter": 4, "history_size": 3}, 3),
    "a history that is not full": ({"max_iter": 5, "history_size": 11, "line_search_fn": WOLFE}, 1),
    "a length from the search": ({"lr": 5.0, "max_iter": 2, "line_search_fn": WOLFE}, 1),
    "an int for a length": ({"max_iter": 1, "history_size": 4, "line_search_fn": WOLFE}, 3),
    "no length at all": ({"lr": 50.0, "max_iter": 5, "max_eval": 2, "line_search_fn": WOLFE}, 2),
    "few evaluations": ({"lr": 0.3, "max_iter": 20, "max_eval": 3}, 2),
    "no pair is taken": ({"lr": 0.0, "max_iter": 4}, 3),
    "converged at once": ({"tolerance_grad": 1e9}, 2),
    "converged later": ({"lr": 0.3, "max_iter": 20, "tolerance_grad": 0.5}, 6),
    "no iterations": ({"max_iter": 0}, 1),
    "no step": ({"lr": 0.3}, 0),
}


def stepped(name, dtype, problem="layers"):
    options, n = CASES[name]
    pair = LBFGSPair(problem, options, dtype=dtype)
    opt, params, closure = pair.torch()
    pair.torch_steps(opt, params, closure, n)
    return pair, opt.state_dict(), n


def assert_same(found, expected, rtol):
    """The same keys in the same order, the same types, and the same values or nearly."""
    assert type(found) is type(expected), (found, expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value, rtol)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair, rtol)
    elif isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rtol, abs=0)
    else:
        assert found == expected


@pytest.mark.parametrize("problem", ["layers", "rosenbrock"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_steps_write_the_same_dict(name, problem):
    with jax.enable_x64(True):
        pair, expected, n = stepped(name, "float64", problem)
        _, state = pair.jax_steps(pair.params(), pair.init(), n)
        found = as_tensors(state_dict(state, pair.binding))
    assert_same(found, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_dict_comes_back_bit_for_bit(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        pair, expected, _ = stepped(name, dtype)
        state = load_state_dict(pair.init(), expected, pair.binding)
        assert_same(as_tensors(state_dict(state, pair.binding)), expected, rtol=0)


def test_the_cases_differ_as_their_names_say():
    entries = {name: stepped(name, "float64")[1]["state"].get(0, {}) for name in CASES}
    keys = {name: list(entry) for name, entry in entries.items()}
    assert "al" not in entries["one iteration"] and entries["one iteration"]["H_diag"] == 1
    assert keys["al comes last"][-1] == "al" and keys["al comes first"][2] == "al"
    assert len(entries["al comes last"]["ro"]) == 2 and None not in entries["al comes last"]["al"]
    partly = entries["a history that is not full"]
    assert 0 < len(partly["ro"]) == 11 - partly["al"].count(None)
    assert type(entries["an int for a length"]["t"]) is int
    assert isinstance(entries["a length from the search"]["t"], torch.Tensor)
    assert entries["no length at all"]["t"] == 0 and type(entries["no length at all"]["t"]) is int
    assert entries["no pair is taken"]["al"] == [None] * 100 and entries["no pair is taken"]["H_diag"] == 1
    assert entries["converged at once"] == {"func_evals": 2, "n_iter": 0}
    assert entries["no iterations"]["d"] is None and entries["no step"] == {}


def test_vectors_are_in_torchs_order_and_layout_whatever_ours_is():
    with jax.enable_x64(True):
        pair, expected, n = stepped("al comes first", "float64")
        other = LBFGSPair("layers", pair.options, bound=False)
        _, state = other.jax_steps(other.params(), other.init(), n)
        assert_same(as_tensors(state_dict(state, pair.binding)), expected, rtol=1e-9)
        moved = load_state_dict(other.init(), expected, pair.binding)
        assert_same(as_tensors(state_dict(moved, pair.binding)), expected, rtol=0)
    # Made by hand: the gradient where the last direction was taken, leaf by leaf.
    flat = expected["state"][0]["prev_flat_grad"].numpy()
    rows = {name: np.prod(pair.binding.shapes[name]) for name in pair.binding.parameters}
    parts = dict(zip(rows, np.split(flat, np.cumsum([*rows.values()])[:-1]), strict=True))
    assert list(rows) == ["b.weight", "b.bias", "h.0.weight", "h.1.weight", "fc.weight"]
    leaves = {
        "a.bias": parts["b.bias"],
        "blocks.kernel": np.stack([parts[f"h.{i}.weight"].reshape(6, 6).T for i in range(2)]),
        "fc.kernel": parts["fc.weight"].reshape(2, 3, 1, 2).transpose(2, 3, 1, 0).reshape(6, 2),
        "z.kernel": parts["b.weight"].reshape(6, 4).T,
    }
    ours = np.concatenate([leaves[path].reshape(-1) for path in sorted(leaves)])
    assert np.array_equal(np.asarray(moved.memory.prev_flat_grad), ours)


def test_a_ring_is_written_from_its_oldest_pair():
    with jax.enable_x64(True):
        pair, expected, n = stepped("al comes first", "float64")
        _, state = pair.jax_steps(pair.params(), pair.init(), n)
        assert int(state.memory.oldest) != 0
        found = state_dict(state, pair.binding)["state"][0]
    for i, row in enumerate(expected["state"][0]["old_dirs"]):
        np.testing.assert_allclose(found["old_dirs"][i], row.numpy(), rtol=1e-7, atol=1e-10)


def test_nothing_shares_memory():
    pair, _, n = stepped("al comes first", "float32")
    _, state = pair.jax_steps(pair.params(), pair.init(), n)
    entry = state_dict(state, pair.binding)["state"][0]
    arrays = [x for x in jax.tree.leaves(entry) if isinstance(x, np.ndarray)]
    assert len(arrays) == 3 * 4 + 3
    for array in arrays:
        array[...] = 7
        assert array.flags.owndata
    assert not np.any(np.asarray(state.memory.old_dirs) == 7)
    assert sum(int(np.all(x == 7)) for x in arrays) == len(arrays)


@pytest.mark.parametrize("name", ["al comes last", "converged at once", "no iterations", "one iteration"])
def test_torch_reads_the_file(name, tmp_path):
    pair, expected, _ = stepped(name, "float32")
    state = load_state_dict(pair.init(), expected, pair.binding)
    js.save(state_dict(state, pair.binding), tmp_path / "optimizer.pt")
    assert_same(torch.load(tmp_path / "optimizer.pt", weights_only=True), expected, rtol=0)
    torch.save(expected, tmp_path / "theirs.pt")
    again = load_state_dict(pair.init(), js.load(tmp_path / "theirs.pt"), pair.binding)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), again, state))


def test_an_older_histories_al_is_made_anew():
    # torch makes `al` where it is lacking, and then writes it last.
    with jax.enable_x64(True):
        pair, osd, _ = stepped("al comes first", "float64")
        del osd["state"][0]["al"]
        opt, params, closure = pair.torch(osd=osd)
        pair.torch_steps(opt, params, closure, 1)
        state = load_state_dict(pair.init(), osd, pair.binding)
        assert "al" not in state_dict(state, pair.binding)["state"][0]
        _, state = pair.jax_steps(pair.params(), state, 1)
        assert_same(as_tensors(state_dict(state, pair.binding)), opt.state_dict(), rtol=1e-9)


def test_a_wider_file_is_rounded_if_asked():
    with jax.enable_x64(True):
        pair, osd, _ = stepped("al comes first", "float64")
    narrow = LBFGSPair("layers", pair.options, dtype="float32")
    state = load_state_dict(narrow.init(), osd, pair.binding, cast=True)
    found, wide = state_dict(state, pair.binding)["state"][0], osd["state"][0]
    assert np.array_equal(found["d"], wide["d"].numpy().astype(np.float32))
    assert found["prev_loss"] == wide["prev_loss"]


def test_numbers_keep_their_types_when_they_change():
    pair, _, _ = stepped("no step", "float32")
    changed = set_hyperparameters(pair.init(), lr=0.7, max_iter=3, max_eval=9)
    group = state_dict(changed, pair.binding)["param_groups"][0]
    assert (group["lr"], group["max_iter"], group["max_eval"]) == (0.7, 3, 9)
    assert type(group["max_iter"]) is int and group["history_size"] == 100
    assert jnp.asarray(changed.memory.count) == 0
