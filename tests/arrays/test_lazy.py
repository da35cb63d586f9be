"""Lazy arrays: what numpy gives for an index, nothing kept, and a model's weights from them."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.arrays.foreign import as_array
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import LayoutError


def counting(array):
    """A lazy array and the list of the boxes that were read."""
    read = []

    def part(box):
        read.append(box)
        return array[box].copy()

    return LazyArray(array.shape, array.dtype, lambda: part((...,)), part), read


STEPS = st.one_of(
    st.integers(-3, 2),
    st.slices(5),
    st.builds(slice, st.none(), st.none(), st.sampled_from([-3, -1, 2])),
)


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data(), shape=st.lists(st.integers(3, 5), max_size=3))
def test_an_index_gives_what_numpy_gives_and_reads_no_more(data, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    lazy, read = counting(array)
    index = data.draw(st.lists(STEPS, max_size=len(shape)))
    if data.draw(st.booleans()):
        index.insert(data.draw(st.integers(0, len(index))), ...)
    found, expected = lazy[tuple(index)], array[tuple(index)]
    assert np.array_equal(found, expected) and np.shape(found) == np.shape(expected)
    (box,) = read
    for span, used in zip(box, np.argwhere(np.isin(array, expected)).T, strict=True):
        assert span.stop - span.start == (np.ptp(used) + 1 if used.size else 0) or not expected.size


def test_other_indices_are_taken_from_the_whole():
    array = np.arange(12).reshape(4, 3)
    lazy, read = counting(array)
    for index in ([2, 0], array > 5, (None, 1), np.int64(2), True):
        assert np.array_equal(lazy[index], array[index])
    assert read == [(...,)] * 5
    for index in (4, (0, 3), (0, 0, 0)):
        with pytest.raises(IndexError):
            lazy[index]


def test_it_is_made_anew_each_time():
    lazy, read = counting(np.float32([[3, 5, 7]]))
    assert (lazy.shape, lazy.ndim, lazy.size, lazy.nbytes, len(lazy)) == ((1, 3), 2, 3, 12, 1) and not read
    first, second = np.asarray(lazy), np.asarray(lazy)
    first[...] = 0
    assert second.tolist() == [[3, 5, 7]] and len(read) == 2
    assert np.asarray(lazy, np.float64).dtype == np.float64
    assert [row.tolist() for row in lazy] == [[3, 5, 7]] and len(read) == 4
    assert jax.numpy.asarray(lazy).tolist() == [[3, 5, 7]]
    with pytest.raises(TypeError):
        len(LazyArray((), "int8", lambda: np.int8(3)))


@pytest.mark.parametrize("made", [np.zeros((3, 2), "f4"), np.zeros((2, 3)), np.zeros((2, 3, 1), "f4")])
def test_what_was_announced_is_what_is_made(made):
    lazy = LazyArray((2, 3), "float32", lambda: made, lambda box: made)
    with pytest.raises(LayoutError, match=r"shape \(2, 3\) and dtype float32 was announced.*was made"):
        np.asarray(lazy)
    with pytest.raises(LayoutError, match=r"shape \(1, 3\)"):
        lazy[1]


def test_a_model_is_loaded_from_lazy_arrays():
    net = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), nnx.BatchNorm(5, rngs=nnx.Rngs(0)))
    sd = {key: np.asarray(v) * 2 + 1 for key, v in js.state_dict(net).items()}
    sd["1.num_batches_tracked"] = np.zeros((), np.int64)  # counted beside the model
    lazy = {key: LazyArray(v.shape, v.dtype, lambda v=v: v) for key, v in sd.items()}
    found = js.state_dict(js.load_state_dict(net, lazy))
    assert list(found) == list(sd)
    for key, value in sd.items():
        assert found[key].dtype == value.dtype and np.array_equal(found[key], value)
    assert js.bind(net).compare(lazy)
    sd["0.weight"] = sd["0.weight"].T
    with pytest.raises(js.StateDictError, match="size mismatch for 0.weight"):
        js.load_state_dict(net, {key: LazyArray(v.shape, v.dtype, lambda v=v: v) for key, v in sd.items()})


def test_an_optimizer_takes_lazy_moments():
    assert as_array(LazyArray((2,), "int8", lambda: np.int8([3, 4]))).tolist() == [3, 4]
