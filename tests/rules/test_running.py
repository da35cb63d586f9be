"""The rules of running statistics and of blocks of cells: bijections where they say so, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.rules.blocks import Block, Blocks
from jaxstate.rules.running import MANY, Running

MEAN = js.Rule("running_mean", "mean", "c -> c", buffer=True)


def leaves(count, stack=()):
    mean = np.arange(3 * int(np.prod(stack, dtype=int)), dtype="float32").reshape(*stack, 3) + 1
    return {"mean": mean, "count": np.full(stack, count, "int32")}


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 0.9999), st.integers(1, 50))
def test_a_bias_is_removed_as_in_a_sum_over_batches(decay, count):
    """With hidden' = decay hidden + (1 - decay) 5, the average is 5 after any number of batches."""
    hidden = np.float32(0)
    for _ in range(count):
        hidden = np.float32(decay) * hidden + (1 - np.float32(decay)) * np.float32(5)
    rule = Running((MEAN,), marks={"count": MANY}, count="count", decay=decay)
    found = rule.state_dict({"mean": np.full(3, hidden), "count": np.int32(count)})
    np.testing.assert_allclose(found["running_mean"], 5, rtol=2e-2 if decay > 0.999 else 2e-3)


def test_what_is_loaded_has_no_bias_left():
    rule = Running((MEAN,), marks={"count": MANY}, count="count", decay=0.9999).of(leaves(7))
    loaded = rule.leaves({"running_mean": np.float32([3, 4, 5])})
    assert loaded["count"] == MANY and loaded["count"].dtype == np.int32
    assert rule.state_dict(loaded)["running_mean"].tobytes() == np.float32([3, 4, 5]).tobytes()


def test_before_the_first_batch_there_is_nothing_to_divide_by():
    rule = Running((MEAN,), marks={"count": MANY}, count="count", decay=0.9)
    np.testing.assert_array_equal(rule.state_dict(leaves(0))["running_mean"], [1, 2, 3])


def test_a_stack_has_a_count_for_each_layer():
    stacked = Running((MEAN,), marks={"count": MANY}, count="count", decay=0.5)
    stacked = stacked.stacked("h.{l}.", "h.", "l", range(2), 0)
    whole = {f"h.{path}": leaf for path, leaf in leaves(1, (2,)).items()}
    found = stacked.of(whole).state_dict(whole)
    np.testing.assert_array_equal(found["h.1.running_mean"], whole["h.mean"][1] * 2)
    back = stacked.of(whole).leaves(found)
    assert {path: leaf.shape for path, leaf in back.items()} == {"h.mean": (2, 3), "h.count": (2,)}


def test_a_binding_of_them_is_json_and_loads_a_part_whole():
    rule = Running((MEAN,), {"hidden": "mean"}, {"count": MANY}, {"count": 0})
    template = {"mean": np.zeros(3, "float32"), "hidden": np.zeros(3, "float32"), "count": np.int32(0)}
    tree = {path: np.asarray(leaf) for path, leaf in template.items()}
    binding = js.Binding((rule,)).of(tree)
    assert js.Binding.from_json(binding.to_json()) == binding and "many batches" in str(binding)
    loaded = js.load_state_dict(tree, {"running_mean": np.float32([1, 2, 3])}, binding, only="*mean")
    np.testing.assert_array_equal(loaded["hidden"], [1, 2, 3])
    assert loaded["count"] == MANY
    with pytest.raises(js.BindingError, match="count says that there was no batch yet"):
        js.state_dict(tree, binding)
    with pytest.raises(js.StateDictError, match="cannot hold every float64"):
        js.load_state_dict(tree, {"running_mean": np.ones(3)}, binding)


def blocks(offset=0.0):
    halves = ((0, 2),), ((2, 4),)
    swapped = [
        Block(key, there, "b", here)
        for key in ("x", "y")
        for there, here in zip(halves, halves[::-1], strict=True)
    ]
    return Blocks({"x": (4,), "y": (4,)}, tuple(swapped), (("b", 0, 2, offset),), {"b": (4,)})


def test_blocks_add_up_and_the_first_gets_all():
    x, y = np.float32([1, 2, 3, 4]), np.float32([10, 20, 30, 40])
    loaded = blocks(0.5).leaves({"x": x, "y": y})
    np.testing.assert_array_equal(loaded["b"], [32.5, 43.5, 11, 22])
    plain = blocks(0.5).state_dict(loaded)
    np.testing.assert_array_equal(plain["x"], x + y)
    assert not plain["y"].any()
    kept = blocks(0.5).like({"x": x, "y": y}).state_dict(loaded)
    assert kept["x"].tobytes() == x.tobytes() and kept["y"].tobytes() == y.tobytes()


def test_a_sum_is_as_wide_as_its_leaf():
    x = np.float16([1, 2, 3, 4])
    rule = blocks().of({"b": np.zeros(4, "float32")})
    assert rule.leaves({"x": x, "y": x * np.float16(2**-11)})["b"].tolist() == [
        3 + 3 * 2**-11,
        4 + 2**-9,
        1 + 2**-11,
        2 + 2**-10,
    ]
    assert js.Binding.from_json(js.Binding((rule,)).to_json()) == js.Binding((rule,))


def test_blocks_fit_their_leaves_and_nothing_else():
    with pytest.raises(js.BindingError, match=r"leaf b has shape \(3,\), and its cell \(4,\)"):
        blocks().of({"b": np.zeros(3)})
    with pytest.raises(js.BindingError, match="bind it unstacked"):
        blocks().stacked("h.{l}.", "h.", "l", range(2), 0)
