"""A copy by tiles is numpy's own copy, whatever the strides, and the pieces of an array are its bytes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.arrays import tiles
from jaxstate.arrays.tiles import fill, pieces

DTYPES = ["int8", "float32", "complex64", "complex128", "bool", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles that small arrays have several of, whole and torn."""
    for name, value in {"ACROSS": 5, "ALONG": 24, "SMALL": 8, "PIECE": 64, "ROOM": 100}.items():
        monkeypatch.setattr(tiles, name, value)


@st.composite
def views(draw):
    """An array of random bytes, its axes exchanged, some of them backwards, stepped or repeated."""
    shape = draw(st.lists(st.integers(1, 13), min_size=0, max_size=4))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    array = rng.integers(0, 2, shape).astype(dtype) if dtype.kind == "b" else _random(rng, shape, dtype)
    view = array.transpose(draw(st.permutations(range(array.ndim))))
    steps = [draw(st.sampled_from([1, 1, -1, 2, -3])) for _ in shape]
    view = view[tuple(slice(None, None, step) for step in steps)]
    return np.broadcast_to(view, (3, *view.shape)) if draw(st.integers(0, 4)) == 0 else view


def _random(rng, shape, dtype):
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


@settings(max_examples=300, deadline=None, database=None)
@given(views())
def test_a_copy_is_numpys_copy(view):
    copy = np.zeros(view.shape, view.dtype)
    assert fill(copy, view).dtype == view.dtype
    assert copy.tobytes() == view.tobytes()


@settings(max_examples=200, deadline=None, database=None)
@given(views(), st.data())
def test_a_copy_may_itself_lie_across(view, data):
    axes = data.draw(st.permutations(range(view.ndim)))
    copy = np.zeros([view.shape[axis] for axis in axes], view.dtype).transpose(np.argsort(axes))
    assert fill(copy, view).tobytes() == view.tobytes()


@settings(max_examples=200, deadline=None, database=None)
@given(views())
def test_the_pieces_are_the_bytes(view):
    found = [bytes(piece) for piece in pieces(view)]
    assert b"".join(found) == view.tobytes()
    assert all(0 < len(piece) <= (64 if view.flags.c_contiguous else 100) for piece in found)


def test_another_dtype_is_converted():
    view = np.arange(600, dtype="float32").reshape(20, 30).T + np.float32(0.5)
    copy = fill(np.empty(view.shape, ml_dtypes.bfloat16), view)
    np.testing.assert_array_equal(copy, view.astype(ml_dtypes.bfloat16))


def test_what_lies_between_the_elements_of_the_copy_stays():
    whole = np.full((40, 60), -1, "int16")
    view = np.arange(600, dtype="int16").reshape(30, 20).T
    fill(whole[::2, ::2], view)
    np.testing.assert_array_equal(whole[::2, ::2], view)
    assert (whole[1::2] == -1).all() and (whole[:, 1::2] == -1).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
def test_the_pieces_of_nothing_and_of_one_number(shape):
    view = np.zeros(shape, "float32").T
    assert b"".join(pieces(view)) == view.tobytes()
    assert fill(np.empty(view.shape, "float32"), view).shape == view.shape
