"""Chunks fill an array exactly or are refused, and a part is put together from those that it meets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.arrays.chunks import Chunk, assembled
from jaxstate.errors import FileError
from jaxstate.io._tiling import check_tiling

MANY = settings(max_examples=150, deadline=None, database=None)


@st.composite
def tilings(draw):
    """A shape and boxes that fill it: each is cut again and again, along any axis."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5)) if shape else 0):
        offset, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, sizes[axis]))
        ends = (at, sizes[axis] - at)
        for start, n in zip((0, at), ends, strict=True):
            boxes.append((_with(offset, axis, offset[axis] + start), _with(sizes, axis, n)))
    return shape, draw(st.permutations(boxes))


def _with(values, axis, value):
    return (*values[:axis], value, *values[axis + 1 :])


def is_tiled(shape, boxes):
    """By counting every point."""
    count = np.zeros(shape, int)
    for offset, sizes in boxes:
        if any(o + n > m for o, n, m in zip(offset, sizes, shape, strict=True)) and 0 not in sizes:
            return False
        count[tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))] += 1
    return bool((count == 1).all())


def accepted(shape, boxes):
    try:
        check_tiling(shape, boxes)
    except FileError as error:
        assert "do not fill shape" in str(error)
        return False
    return True


@MANY
@given(tiling=tilings(), data=st.data())
def test_what_fills_is_accepted_and_all_else_refused(tiling, data):
    shape, boxes = tiling
    assert accepted(shape, boxes)
    if shape:
        at, part = data.draw(st.integers(0, len(boxes) - 1)), data.draw(st.integers(0, 1))
        axis, change = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.sampled_from([-1, 1, 3]))
        changed = list(boxes[at])
        changed[part] = _with(changed[part], axis, max(0, changed[part][axis] + change))
        boxes = [*boxes[:at], tuple(changed), *boxes[at + 1 :]]
        assert accepted(shape, boxes) == is_tiled(shape, boxes)


def test_boxes_of_the_right_volume_that_overlap():
    for boxes in ([((0,), (2,)), ((1,), (2,))], [((0,), (4,)), ((0,), (0,)), ((2,), (0,))]):
        assert accepted((4,), boxes) == is_tiled((4,), boxes) == (len(boxes) == 3)
    assert accepted((), [((), ())]) and not accepted((), []) and not accepted((), [((), ())] * 2)
    assert accepted((0, 3), []) and accepted((0, 3), [((0, 0), (0, 3))] * 2)
    assert not accepted((0, 3), [((0, 0), (1, 3))]) and not accepted((2, 3), [])


def test_many_boxes_are_told_at_once(at_once):
    rows = [((n, 0), (1, 7)) for n in range(30_000)]
    assert accepted((30_000, 7), rows) and not accepted((30_000, 7), [*rows[:-1], rows[0]])
    with pytest.raises(FileError, match="cut along 30 axes; that is more than is read"):
        check_tiling((2,) * 30, [((0,) * 30, (1,) * 30)] * 3)


@MANY
@given(tiling=tilings(), data=st.data())
def test_a_part_is_the_part_of_the_whole(tiling, data):
    shape, boxes = tiling
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    read = []
    chunks = []
    for offset, sizes in boxes:
        box = tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
        chunks.append(Chunk(offset, Watched(whole[box], read, box)))
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    part = tuple(slice(low, high, 1) for low, high in ends)
    assert np.array_equal(assembled(chunks, part, whole.dtype), whole[part])
    assert all(np.isin(whole[box], whole[part]).any() for box in read)


class Watched:
    """The values of a chunk, which note that they are read."""

    def __init__(self, values, read, box):
        self.values, self.read, self.box, self.shape = values, read, box, values.shape

    def __getitem__(self, index):
        self.read.append(self.box)
        return self.values[index]
