"""Rules over names and axes: the same law as layouts, whatever part of an array lives in a name."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import AXES, sides

from jaxstate.errors import BindingError, LayoutError
from jaxstate.rules.rule import Rule


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


def test_a_rule_with_a_shape_knows_every_length_and_is_checked_when_it_is_made():
    rule = Rule("w", "w", "(h c) o -> o (c h)", h=2, shape=(6, 4), dtype="float32")
    assert dict(rule.sizes) == {"c": 3, "h": 2}
    x = np.arange(24, dtype="float32").reshape(6, 4)
    expected = x.reshape(2, 3, 4).transpose(2, 1, 0).reshape(4, 6)
    assert np.array_equal(rule.state_dict({"w": x})["w"], expected)
    assert np.array_equal(rule.leaves({"w": expected})["w"], x)
    with pytest.raises(LayoutError, match="does not fit shape"):
        Rule("w", "w", "(h c) o -> o (c h)", h=4, shape=(6, 4))


def test_a_rule_that_knows_its_leaf_stays_itself():
    leaf = jax.ShapeDtypeStruct((6, 4), "bfloat16")
    rule = Rule("w", "w", "i o -> o i").of({"w": leaf})
    assert rule.of({"w": leaf}) is rule
    other = rule.of({"w": jax.ShapeDtypeStruct((4, 6), "float16")})
    assert (other.shape, other.dtype) == ((4, 6), "float16")


@pytest.mark.parametrize("length", [2.0, True, -2])
def test_what_only_equals_a_length_is_none_though_the_length_was_seen_before(length):
    Rule("w", "w", "(h o) -> o h", h=2)
    Rule("w", "w", "(h o) -> o h", h=1)
    with pytest.raises(LayoutError, match="non-negative integer"):
        Rule("w", "w", "(h o) -> o h", h=length)


def test_rules_with_the_same_axes_share_one_layout():
    one, other = (Rule(f"{n}.w", f"{n}.k", "i  o->o i") for n in range(2))
    assert one.layout is other.layout and one.at("a.", "b.").layout is one.layout
    ab, ba = (Rule(f"{key}.w", "k", "a b i -> i", a=range(2), b=range(3)) for key in ("{a}.{b}", "{b}.{a}"))
    assert ab.layout != ba.layout
