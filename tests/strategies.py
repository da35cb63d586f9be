"""Random layouts for property tests: two sides over the same axes, sizes, and einops' word for the same."""

from hypothesis import strategies as st

from jaxstate.layout import Layout

AXES = "abcdef"


@st.composite
def sides(draw, axes, flips=True):
    """One side: the axes in some order, some of them merged, some flipped, with singletons between."""
    order = draw(st.permutations(axes))
    marks = [("~" if flips and draw(st.booleans()) else "") + axis for axis in order]
    dims, rest = [], list(marks)
    while rest:
        count = draw(st.integers(1, min(3, len(rest))))
        dims.append(rest[0] if count == 1 else f"({' '.join(rest[:count])})")
        rest = rest[count:]
    for _ in range(draw(st.integers(0, 2))):
        dims.insert(draw(st.integers(0, len(dims))), "1")
    return " ".join(dims)


@st.composite
def layouts(draw, flips=True, minimum=0):
    """A layout with all sizes given, and those sizes."""
    axes = list(AXES[: draw(st.integers(minimum, len(AXES)))])
    sizes = {axis: draw(st.integers(1, 4)) for axis in axes}
    return Layout(f"{draw(sides(axes, flips))} -> {draw(sides(axes, flips))}", **sizes), sizes


def left_shape(layout, sizes):
    """The JAX-side shape of a layout."""
    return tuple(_product(sizes[axis] for axis in dim) for dim in layout.left)


def _product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result
