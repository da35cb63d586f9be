"""A layout is a bijection: undone bit for bit, on numpy and on jax, and as einops has it where einops can."""

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import layouts, left_shape

from jaxstate.errors import LayoutError
from jaxstate.layout import Layout, insert_axis


def numbered(shape, dtype="int64"):
    return np.arange(int(np.prod(shape, dtype=int)), dtype=dtype).reshape(shape)


@given(layouts())
def test_inverse_after_forward_is_the_identity(case):
    layout, sizes = case
    array = numbered(left_shape(layout, sizes))
    there = layout(array)
    assert there.shape == layout.shape(array.shape)
    assert sorted(there.ravel()) == sorted(array.ravel())
    np.testing.assert_array_equal(layout.inverse(there), array)
    np.testing.assert_array_equal(layout(layout.inverse(there)), there)
    assert layout.inverse.inverse == layout


@settings(max_examples=25, deadline=None)
@given(layouts(), st.sampled_from(["float32", "bfloat16", "bool", "int8", "complex64"]))
def test_jax_arrays_move_as_numpy_arrays_do(case, dtype):
    layout, sizes = case
    array = numbered(left_shape(layout, sizes), "int32") % 100
    eager = layout(jnp.asarray(array).astype(dtype))
    traced = jax.jit(lambda x: layout(x))(jnp.asarray(array).astype(dtype))
    expected = layout(np.asarray(jnp.asarray(array).astype(dtype)))
    assert eager.dtype == expected.dtype
    assert (
        np.asarray(eager).tobytes()
        == np.asarray(traced).tobytes()
        == np.ascontiguousarray(expected).tobytes()
    )
    assert (
        np.asarray(jax.jit(lambda x: layout.inverse(x))(eager))
        == np.asarray(jnp.asarray(array).astype(dtype))
    ).all()


@given(layouts(flips=False))
def test_says_what_einops_says(case):
    layout, sizes = case
    array = numbered(left_shape(layout, sizes))
    np.testing.assert_array_equal(layout(array), einops.rearrange(array, layout.pattern, **sizes))


@given(layouts(minimum=1))
def test_sized_layouts_need_no_shape(case):
    layout, sizes = case
    shape = left_shape(layout, sizes)
    free = Layout(
        layout.pattern, **{a: n for a, n in sizes.items() if any(a in d and len(d) > 1 for d in layout.left)}
    )
    array = numbered(shape)
    np.testing.assert_array_equal(free.sized(shape).inverse(free(array)), array)


def test_a_flip_is_a_flip():
    kernel = numbered((2, 3, 4, 5))
    expected = np.flip(kernel, (0, 1)).transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(Layout("h w i o -> i o ~h ~w")(kernel), expected)
    np.testing.assert_array_equal(Layout("~h ~w i o -> i o h w")(kernel), expected)
    np.testing.assert_array_equal(Layout("~h ~w i o -> i o ~h ~w")(kernel), kernel.transpose(2, 3, 0, 1))


def test_flatten_after_conv_is_the_permutation_of_torch():
    weight = np.random.default_rng(0).normal(size=(120, 400))
    expected = weight.reshape(120, 16, 5, 5).transpose(2, 3, 1, 0).reshape(400, 120)
    layout = Layout("(h w c) o -> o (c h w)", h=5, w=5, c=16)
    np.testing.assert_array_equal(layout.inverse(weight), expected)


def test_layouts_are_values():
    assert Layout("i o -> o i") == Layout("i  o->o i") and hash(Layout("i o -> o i")) == hash(
        Layout("i o -> o i")
    )
    assert Layout("(a b) -> (b a)", a=2) != Layout("(a b) -> (b a)", a=3)
    assert repr(Layout("(a b) -> (b a)", a=2)) == 'Layout("(a b) -> (b a)", a=2)'
    assert insert_axis("~a 1 (b c) -> c b a", "l", 3) == "~a 1 (b c) l -> c b a"


@pytest.mark.parametrize(
    "pattern, sizes, words",
    [
        ("i o", {}, 'write "jax axes -> torch axes"'),
        ("i -> o -> i", {}, 'write "jax axes -> torch axes"'),
        ("i o -> o", {}, 'axis "i" stands 1 time(s) on the JAX side and 0 on torch\'s'),
        ("i i -> i", {}, 'axis "i" stands 2 time(s) on the JAX side and 1 on torch\'s'),
        ("i -> i", {"o": 3}, 'axis "o" stands 0 time(s) on the JAX side and 0 on torch\'s'),
        ("i -> i", {"i": -1}, 'the length of axis "i" is a non-negative integer, not -1'),
        ("i -> i", {"i": 1.5}, "not 1.5"),
        ("i -> i", {"i": True}, "not True"),
        ("(i o -> o i", {}, '"(" is never closed'),
        ("(i (o)) -> o i", {}, '"(" cannot stand there'),
        ("i o) -> o i", {}, '")" cannot stand there'),
        ("() i -> i", {}, '")" cannot stand there'),
        ("i ... -> ... i", {}, '"." cannot stand there'),
        ("i 2 -> i", {}, '"2" cannot stand there'),
        ("i ~ -> i", {}, '"~" cannot stand there'),
        ("(1 i) -> i", {}, '"1" cannot stand there'),
    ],
)
def test_what_is_no_layout_is_refused(pattern, sizes, words):
    with pytest.raises(LayoutError) as caught:
        Layout(pattern, **sizes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "layout, shape, words",
    [
        (Layout("i o -> o i"), (2, 3, 4), "takes 2 dimensions, got shape (2, 3, 4)"),
        (Layout("(a b) -> a b"), (6,), 'give sizes: Layout("(a b) -> a b", a=..., b=...)'),
        (Layout("(a b) -> a b", a=4), (6,), "a * b is not 6"),
        (Layout("a -> a", a=4), (6,), "a is not 6"),
        (Layout("1 a -> a"), (2, 6), "1 is not 2"),
        (Layout("(a b) -> a b", a=0), (0,), "cannot tell"),
    ],
)
def test_what_does_not_fit_is_refused(layout, shape, words):
    with pytest.raises(LayoutError) as caught:
        layout(np.zeros(shape))
    assert words in str(caught.value)
