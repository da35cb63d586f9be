"""A copy has the view's values in memory of its own, whatever the view's strides and dtype."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxstate.placement import fresh, place

DTYPES = ["float32", "float64", "int8", "bool", "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@settings(deadline=None)
@given(st.data(), st.sampled_from(DTYPES))
def test_a_copy_of_any_view(data, dtype):
    array = data.draw(hnp.arrays(np.int8, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40)))
    view = array.astype(dtype).transpose(data.draw(st.permutations(range(array.ndim))))
    if view.ndim and data.draw(st.booleans()):
        view = view[::-1]
    copy = fresh(view)
    assert copy.shape == view.shape and copy.dtype == view.dtype
    assert copy.tobytes() == np.ascontiguousarray(view).tobytes()
    assert copy.flags.c_contiguous and copy.flags.writeable and copy.flags.owndata


@pytest.mark.parametrize("kind", ["numpy", "jax", "abstract", "sharded"])
def test_a_leaf_takes_its_templates_kind_dtype_and_place(kind):
    view = np.arange(48, dtype=ml_dtypes.bfloat16).reshape(4, 12).T
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {
        "numpy": np.zeros((12, 4), "float32"),
        "jax": jnp.zeros((12, 4), "float32"),
        "abstract": jax.ShapeDtypeStruct((12, 4), "float32"),
        "sharded": jax.ShapeDtypeStruct((12, 4), "float32", sharding=sharding),
    }[kind]
    leaf = place(view, template)
    assert isinstance(leaf, np.ndarray if kind == "numpy" else jax.Array) and leaf.dtype == "float32"
    if kind != "numpy":
        assert leaf.committed == (kind == "sharded")
    view[...] = 0
    np.testing.assert_array_equal(leaf, np.arange(48, dtype="float32").reshape(4, 12).T)


def test_a_leaf_may_be_donated():
    leaf = place(np.arange(12.0, dtype="float32").reshape(3, 4).T, jnp.zeros((4, 3)))
    moved = jax.jit(lambda x: x + 1, donate_argnums=0)(leaf)
    np.testing.assert_array_equal(moved, np.arange(12.0).reshape(3, 4).T + 1)
