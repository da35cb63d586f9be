"""A copy has the view's values in memory of its own, whatever the view's strides and dtype."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxstate.arrays import placement
from jaxstate.arrays.placement import fresh, place, placed

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


def test_small_leaves_go_to_jax_together_and_arrive_as_if_alone(monkeypatch):
    calls = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda *args: calls.append(args) or put(*args))
    monkeypatch.setattr(placement, "MANY", 4)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    views = {str(n): np.arange(6.0, dtype="float32").reshape(2, 3).T + n for n in range(11)}
    views["large"] = np.arange(5000.0, dtype="float32")[::-1]
    templates = {path: jax.ShapeDtypeStruct(view.shape, "float32") for path, view in views.items()}
    templates |= {"3": np.zeros((3, 2), "float64"), "5": jnp.zeros((3, 2), "bfloat16")}
    templates["7"] = jax.ShapeDtypeStruct((3, 2), "float32", sharding=device)
    new = placed(views.items(), templates)
    assert new.keys() == views.keys() and all(np.array_equal(new[p], view) for p, view in views.items())
    assert isinstance(new["3"], np.ndarray) and new["3"].dtype == "float64" and new["5"].dtype == "bfloat16"
    assert {path for path, leaf in new.items() if getattr(leaf, "committed", False)} == {"7"}
    assert len(calls) == 1 + 3  # the large one; nine small ones by four


def test_small_leaves_share_no_memory_with_what_they_are_made_of():
    view = np.arange(16, dtype="float32")
    new = placed([("a", view)], {"a": jnp.zeros(16)})["a"]
    view[:] = -1
    assert new.tolist() == list(range(16))
