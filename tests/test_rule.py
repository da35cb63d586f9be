"""Rules over names and axes: the same law as layouts, whatever part of an array lives in a name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import AXES, sides

from jaxstate.errors import BindingError, LayoutError
from jaxstate.rule import Rule


@st.composite
def rules(draw):
    """A rule over up to five axes; some live in the key, some in the path, some in both."""
    axes = AXES[: draw(st.integers(1, 5))]
    home = {axis: draw(st.sampled_from(["array", "array", "key", "path", "both"])) for axis in axes}
    left = [axis for axis in axes if home[axis] in ("array", "key")]
    right = [axis for axis in axes if home[axis] in ("array", "path")]
    key = "k" + "".join(f".{{{axis}}}" for axis in axes if home[axis] in ("key", "both"))
    path = "p" + "".join(f".{{{axis}}}" for axis in axes if home[axis] in ("path", "both"))
    sizes = {axis: draw(st.integers(1, 3)) for axis in axes}
    values = {
        axis: sizes[axis] if home[axis] == "array" else tuple(f"{axis}{n}" for n in range(sizes[axis]))
        for axis in axes
    }
    pattern = f"{draw(sides(left))} -> {draw(sides(right))}"
    rule = Rule(key, path, pattern, **values)
    lengths = {axis: sizes[axis] for axis in left}
    inner = rule.layout.left[len(rule._lengths(path)) :]
    shape = tuple(int(np.prod([lengths[axis] for axis in dim], dtype=int)) for dim in inner)
    return rule, shape


@given(rules())
def test_leaves_after_state_dict_is_the_identity(case):
    rule, shape = case
    size = int(np.prod(shape, dtype=int))
    leaves = {path: (np.arange(size) + n * size).reshape(shape) for n, path in enumerate(rule.paths)}
    rule = rule.of(leaves)
    arrays = rule.state_dict(leaves)
    assert tuple(arrays) == rule.keys
    assert {key: array.shape for key, array in arrays.items()} == rule.shapes
    elements = sorted(np.concatenate([array.ravel() for array in arrays.values()]))
    assert elements == list(range(size * len(leaves)))
    back = rule.leaves(arrays)
    assert tuple(back) == rule.paths
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back[path], leaf)


def test_fused_projections_are_concatenated_as_torch_does():
    leaves = {name: np.random.default_rng(n).normal(size=(8, 2, 4)) for n, name in enumerate("qkv")}
    rule = Rule("in_proj_weight", "{p}", "d n k -> (p n k) d", p="qkv")
    expected = np.concatenate([leaf.reshape(8, 8).T for leaf in leaves.values()])
    np.testing.assert_array_equal(rule.state_dict(leaves)["in_proj_weight"], expected)


def test_stacked_layers_come_apart():
    stack = np.random.default_rng(0).normal(size=(12, 3, 5))
    rule = Rule("weight", "kernel", "i o -> o i").stacked("h.{l}.", "h.", "l", range(12), 0)
    arrays = rule.state_dict({"h.kernel": stack})
    assert list(arrays) == [f"h.{n}.weight" for n in range(12)]
    np.testing.assert_array_equal(arrays["h.10.weight"], stack[10].T)


@pytest.mark.parametrize("position, shape", [(0, (4, 3, 5)), (1, (3, 4, 5)), (2, (3, 5, 4))])
def test_a_stack_may_lie_along_any_axis(position, shape):
    stack = np.random.default_rng(0).normal(size=shape)
    rule = Rule("weight", "kernel", "i o -> o i").stacked("h.{l}.", "h.", "l", range(4), position)
    np.testing.assert_array_equal(
        rule.state_dict({"h.kernel": stack})["h.2.weight"], stack.take(2, position).T
    )


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Rule("a.{l}", "b", "l i -> i"), BindingError, "{l} has no values; say l=range(...)"),
        (
            lambda: Rule("a", "b", "i -> i", l=range(3)),
            BindingError,
            "l=range(0, 3) is no hole of either name",
        ),
        (lambda: Rule("a.{l}", "b", "l i -> i", l=(0, "0")), BindingError, "has a value twice"),
        (lambda: Rule("a.{l}", "b", "i -> i", l=range(3)), LayoutError, 'axis "l" stands 0 time(s)'),
        (lambda: Rule("a.{l}", "b", "l i -> l i", l=range(3)), LayoutError, 'axis "l" stands 1 time(s)'),
        (lambda: Rule("a.{l.x}", "b", "i -> i"), BindingError, "is no template"),
        (lambda: Rule("a.{", "b", "i -> i"), BindingError, "is no template"),
        (lambda: Rule("a", "b", "i -> i").shapes, BindingError, "does not know its shape"),
        (lambda: Rule("a", "b", "i -> i").of({"b": np.zeros((2, 2))}), BindingError, "does not fit its leaf"),
        (
            lambda: Rule("a", "{p}", "i -> (p i)", p="xy").of({"x": np.zeros(2), "y": np.zeros(3)}),
            BindingError,
            "have several shapes: [(2,), (3,)]",
        ),
    ],
)
def test_what_is_no_rule_is_refused(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_a_rule_prints_as_it_is_written():
    rule = Rule("h.{l}.w", "h.w", "l (a b) -> a b", l=range(12), a=2)
    assert repr(rule) == 'Rule("h.{l}.w", "h.w", "l (a b) -> a b", l=range(0, 12), a=2)'
    assert eval(repr(rule)) == rule
