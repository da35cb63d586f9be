"""Parts: the elements of torch's arrays that a part of a leaf is made of, and no others.

A layout permutes atomic axes. A part of a leaf is a run along each of its dimensions; where a dimension
merges several atomic axes, a run is a few boxes of these. A box keeps being one under every layout: its spans
go where the axes go, into the names of arrays or into their dimensions, and say what is to be read. So a
device's shard of transposed, split, stacked or flipped weights is read without the rest of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from jaxstate.arrays.lazy import Box, LazyArray
from jaxstate.arrays.tiles import fill
from jaxstate.layout import Layout

Index = tuple[int, ...]
Spans = tuple[slice, ...]

MAX_RUNS = 256  # of one array; beyond, what lies between them is read too


class Run(NamedTuple):
    """A box of atomic axes that is a run of the axis merged of them: where it starts, and how long it is."""

    start: int
    length: int
    spans: Spans


def part(layout: Layout, sizes: Mapping[str, int], arrays: Mapping[Index, Any], box: Box) -> np.ndarray:
    """The values inside a box of the JAX side, read from the arrays that the torch side is a stack of.

    Args:
        layout: of leaves and arrays together, the axes that live in names in front.
        sizes: the length of every axis.
        arrays: torch's arrays by their place in the stack, `()` for one alone: numpy's, or lazy ones.
        box: the part, of all dimensions of the JAX side.

    Returns:
        a view of the array where it can be one.

    >>> w = np.arange(24).reshape(6, 4)
    >>> layout = Layout("d n k -> (n k) d", n=2, k=3)
    >>> found = part(layout, dict(d=4, n=2, k=3), {(): w}, (slice(1, 3), slice(1, 2), slice(0, 3)))
    >>> bool((found == layout.inverse(w)[1:3, 1:2]).all())
    True
    """
    for cell in (cells := list(_cells(layout, sizes, box))):
        spans = _there(layout, sizes, cell)
        indices = _indices(layout, sizes, arrays, spans)
        if len(cells) * len(indices) == 1:
            read = _reader(layout, sizes, len(indices[0]), spans)
            return _merged(layout.left, _turned_back(layout, len(indices[0]), read(arrays[indices[0]])))
    whole = np.empty([span.stop - span.start for span in box], dtype_of_stack(arrays))
    return into(whole, layout, sizes, arrays, box)


def into(
    whole: np.ndarray, layout: Layout, sizes: Mapping[str, int], arrays: Mapping[Index, Any], box: Box
) -> np.ndarray:
    """The array of a box's shape with the values of `part` in it: those of each array go straight there."""
    for cell in _cells(layout, sizes, box):
        spans = _there(layout, sizes, cell)
        room, indices = _room(whole, layout, box, cell), _indices(layout, sizes, arrays, spans)
        write = _writer(layout, sizes, len(indices[0]), spans)
        for index in indices:
            place = tuple(i - first for i, first in zip(index, indices[0], strict=True))
            write(room[(*place, ...)], arrays[index])
    return whole


def dtype_of_stack(arrays: Mapping[Index, Any]) -> np.dtype:
    """The dtype that holds the elements of all these arrays."""
    return np.result_type(*{array.dtype for array in arrays.values()})


def places(layout: Layout, sizes: Mapping[str, int], outer: int, box: Box) -> list[tuple[Index, Box]]:
    """Where torch has the values of a box of the JAX side: places in the stack, and boxes of arrays.

    Args:
        layout, sizes, box: as for `part`.
        outer: how many dimensions of torch's side are the stack's.

    >>> places(Layout("d n k -> (n k) d"), dict(d=4, n=2, k=3), 0, (slice(1, 3), slice(1, 2), slice(0, 3)))
    [((), (slice(3, 6, None), slice(1, 3, None)))]
    """
    found = []
    for cell in _cells(layout, sizes, box):
        spans = _there(layout, sizes, cell)
        names, dims = layout.right[:outer], layout.right[outer:]
        indices = product(*(range(sizes[axis])[spans[axis]] for dim in names for axis in dim))
        steps = [_steps([sizes[axis] for axis in dim], [spans[axis] for axis in dim]) for dim in dims]
        boxes = list(product(*([slice(start, start + n) for start in starts] for starts, n in steps)))
        found += product(indices, boxes)
    return found


def runs_of(start: int, stop: int, lengths: Sequence[int]) -> Iterator[Run]:
    """A run of a merged axis as boxes of its parts, in order: at most one less than two for each part.

    >>> [run.spans for run in runs_of(3, 11, (3, 4))]
    [(slice(0, 1, None), slice(3, 4, None)), (slice(1, 2, None), slice(0, 4, None)),
     (slice(2, 3, None), slice(0, 3, None))]
    """
    if start >= stop:
        return
    if len(lengths) < 2:
        yield Run(start, stop - start, (slice(start, stop),) * len(lengths))
        return
    row = prod(lengths[1:])
    low, high = -(-start // row), stop // row
    head = min(stop, low * row)
    tail = max(head, high * row)
    yield from _inside(start, head, lengths)
    if low < high:
        yield Run(low * row, (high - low) * row, (slice(low, high), *(slice(0, n) for n in lengths[1:])))
    yield from _inside(tail, stop, lengths)


def _inside(start: int, stop: int, lengths: Sequence[int]) -> Iterator[Run]:
    """A run that lies inside of one row of the first part."""
    row = prod(lengths[1:])
    at = start // row
    for run in runs_of(start - at * row, stop - at * row, lengths[1:]):
        yield Run(run.start + at * row, run.length, (slice(at, at + 1), *run.spans))


def _cells(layout: Layout, sizes: Mapping[str, int], box: Box) -> Iterator[tuple[Run, ...]]:
    """A box of the JAX side as boxes of atomic axes."""
    rows = (
        list(runs_of(span.start, span.stop, [sizes[axis] for axis in dim]))
        for span, dim in zip(box, layout.left, strict=True)
    )
    return product(*rows)


def _there(layout: Layout, sizes: Mapping[str, int], cell: tuple[Run, ...]) -> dict[str, slice]:
    """The span of each axis on torch's side, where some run backwards."""
    axes = [axis for dim in layout.left for axis in dim]
    spans = zip(axes, [span for run in cell for span in run.spans], strict=True)
    return {axis: _turned(s, sizes[axis]) if axis in layout.flipped else s for axis, s in spans}


def _room(whole: np.ndarray, layout: Layout, box: Box, cell: tuple[Run, ...]) -> np.ndarray:
    """Where a cell stands in the array of a box, one dimension for each atomic axis, as torch has them."""
    starts = [run.start - span.start for run, span in zip(cell, box, strict=True)]
    room = whole[(*(slice(a, a + run.length) for a, run in zip(starts, cell, strict=True)), ...)]
    room = room.reshape([span.stop - span.start for run in cell for span in run.spans])  # splits: a view
    left, right = _axes(layout.left), _axes(layout.right)
    return _flipped(layout, room.transpose([left.index(axis) for axis in right]))


def _turned_back(layout: Layout, outer: int, values: np.ndarray) -> np.ndarray:
    """A view of the values of one array of the stack with the atomic axes as the JAX side has them."""
    left, right = _axes(layout.left), _axes(layout.right)
    values = _flipped(layout, values[(*(None for _ in range(outer)), ...)])
    return values.transpose([right.index(axis) for axis in left])


def _merged(side: Sequence[tuple[str, ...]], values: np.ndarray) -> np.ndarray:
    """The values with the axes of each dimension merged: a view if it can be one, or a copy by tiles."""
    ends = [sum(map(len, side[: n + 1])) for n in range(len(side))]
    groups = [slice(end - len(dim), end) for end, dim in zip(ends, side, strict=True)]
    shape = [prod(values.shape[group]) for group in groups]
    if all(_merges(values.shape[group], values.strides[group]) for group in groups):
        return values.reshape(shape)
    whole = np.empty(shape, values.dtype)
    fill(whole.reshape(values.shape), values)
    return whole


def _merges(lengths: Index, strides: Index) -> bool:
    """True if these axes are one with a single stride, so that merging them copies nothing."""
    long = [pair for pair in zip(lengths, strides, strict=True) if pair[0] > 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(long))


def _flipped(layout: Layout, values: np.ndarray) -> np.ndarray:
    if not layout.flipped:
        return values
    return values[tuple(slice(None, None, -1 if a in layout.flipped else None) for a in _axes(layout.right))]


def _axes(side: Sequence[tuple[str, ...]]) -> list[str]:
    return [axis for dim in side for axis in dim]


def _turned(span: slice, length: int) -> slice:
    return slice(length - span.stop, length - span.start)


def _indices(
    layout: Layout, sizes: Mapping[str, int], arrays: Mapping[Index, Any], spans: Mapping[str, slice]
) -> list[Index]:
    """The places in the stack of torch's arrays that these spans touch."""
    outer = len(next(iter(arrays)))
    return list(product(*(range(sizes[axis])[spans[axis]] for axis in _axes(layout.right[:outer]))))


def _reader(
    layout: Layout, sizes: Mapping[str, int], outer: int, spans: Mapping[str, slice]
) -> Callable[[Any], np.ndarray]:
    """Takes these spans of an array of the stack, one dimension for each atomic axis."""
    dims = layout.right[outer:]
    shape = [sizes[axis] for axis in _axes(dims)]
    inner = tuple(spans[axis] for axis in _axes(dims))
    steps = [_steps([sizes[axis] for axis in dim], [spans[axis] for axis in dim]) for dim in dims]

    def read(array: Any) -> np.ndarray:
        if not isinstance(array, LazyArray):
            return array.reshape(shape)[inner]  # a split of dimensions is a view, whatever its strides
        if prod(len(starts) for starts, _ in steps) > MAX_RUNS:
            return _from_a_wider_box(array, dims, sizes, spans)
        return _read(array, steps).reshape([span.stop - span.start for span in inner])

    return read


def _writer(
    layout: Layout, sizes: Mapping[str, int], outer: int, spans: Mapping[str, slice]
) -> Callable[[np.ndarray, Any], Any]:
    """Writes what `_reader` reads: straight from where it lies, if no dimension is split on the way."""
    dims, read = layout.right[outer:], _reader(layout, sizes, outer, spans)

    def write(room: np.ndarray, array: Any) -> None:
        if isinstance(array, LazyArray) and all(len(dim) == 1 for dim in dims):
            array.into(room, tuple(spans[axis] for (axis,) in dims))
        else:
            fill(room, read(array))

    return write


def _read(array: LazyArray, steps: Sequence[tuple[list[int], int]]) -> np.ndarray:
    """The runs of each dimension, one after the other."""
    cells = [[slice(start, start + length) for start in starts] for starts, length in steps]
    if all(len(row) == 1 for row in cells):
        return array[tuple(row[0] for row in cells)]
    found = np.empty([len(starts) * length for starts, length in steps], array.dtype)
    places = [[slice(i * n, (i + 1) * n) for i in range(len(starts))] for starts, n in steps]
    for there, here in zip(product(*places), product(*cells), strict=True):
        found[there] = array[here]
    return found


def _steps(lengths: Sequence[int], spans: Sequence[slice]) -> tuple[list[int], int]:
    """Where the runs of a box start in the axis that is merged of its axes, and how long each of them is.

    >>> _steps((3, 4, 2), (slice(0, 3), slice(1, 3), slice(0, 2)))
    ([2, 10, 18], 4)
    """
    if not lengths:
        return [0], 1
    strides = [prod(lengths[i + 1 :]) for i in range(len(lengths))]
    cut = max([i for i, n in enumerate(lengths) if spans[i] != slice(0, n)], default=0)
    rows = [range(n)[span] for n, span in zip(lengths[:cut], spans, strict=False)]
    first = spans[cut].start * strides[cut]
    starts = [first + sum(i * s for i, s in zip(row, strides, strict=False)) for row in product(*rows)]
    return starts, (spans[cut].stop - spans[cut].start) * strides[cut]


def _from_a_wider_box(
    array: LazyArray, dims: Sequence[tuple[str, ...]], sizes: Mapping[str, int], spans: Mapping[str, slice]
) -> np.ndarray:
    """The same box, read with all between its runs: of each dimension the first axis alone is cut."""
    cuts = {dim[0]: spans[dim[0]] for dim in dims if dim}
    strides = {dim[0]: prod(sizes[axis] for axis in dim[1:]) for dim in dims if dim}
    read = array[
        tuple(
            slice(cuts[dim[0]].start * strides[dim[0]], cuts[dim[0]].stop * strides[dim[0]])
            if dim
            else slice(0, 1)
            for dim in dims
        )
    ]
    axes = [axis for dim in dims for axis in dim]
    lengths = [cuts[a].stop - cuts[a].start if a in cuts else sizes[a] for a in axes]
    return read.reshape(lengths)[tuple(slice(None) if axis in cuts else spans[axis] for axis in axes)]
