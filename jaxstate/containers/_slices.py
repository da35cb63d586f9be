"""Slices: ZeRO lays the parameters of a group end to end and gives a slice to each rank; joined again here.

The slices of the ranks, one behind the other, are the group's parameters in the order of `param_shapes`, and
behind them padding up to a multiple of twice the ranks.

https://arxiv.org/abs/1910.02054; https://github.com/deepspeedai/DeepSpeed (zero/stage_1_and_2.py)
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from jaxstate.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def merged(slices: Sequence[np.ndarray], shapes: Shapes, what: str) -> dict[str, np.ndarray]:
    """The arrays of a group. One that lies within a rank is a view, one across ranks is put together.

    Args:
        slices: of each rank, 1-d, of one dtype.
        shapes: of each parameter, in the group's order.
        what: the name of the group, for an error.

    Raises:
        CheckpointError: slices that are no 1-d arrays, or do not hold what the shapes ask for.

    >>> arrays = merged([np.arange(4.0), np.arange(4.0, 8)], {"w": (2, 3), "b": ()}, "group 0")
    >>> arrays["w"].tolist(), float(arrays["b"])
    ([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], 6.0)
    """
    sizes = [prod(shape) for shape in shapes.values()]
    _check(slices, sum(sizes), what)
    ends = list(accumulate(sizes))
    return {
        name: _between(slices, end - size, end).reshape(shape)
        for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True)
    }


def _between(slices: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
    ends = list(accumulate(len(part) for part in slices))
    starts = [end - len(part) for end, part in zip(ends, slices, strict=True)]
    met = [
        part[max(first - start, 0) : last - start]
        for part, start, end in zip(slices, starts, ends, strict=True)
        if start < last and first < end
    ]
    return met[0] if len(met) == 1 else np.concatenate([slices[0][:0], *met])


def _check(slices: Sequence[Any], wanted: int, what: str) -> None:
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in slices):
        raise CheckpointError(f"{what}: the ranks do not all hold one flat array")
    if len({part.dtype for part in slices}) > 1:
        raise CheckpointError(f"{what}: the ranks hold {', '.join(str(part.dtype) for part in slices)}")
    found, unit = sum(map(len, slices)), 2 * len(slices)
    if found < wanted or -(-found // unit) != -(-wanted // unit):
        raise CheckpointError(f"{what}: the ranks hold {found} numbers, and its parameters have {wanted}")
