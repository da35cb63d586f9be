"""Pads: what a convolution adds at both ends of each axis, however a library spells it."""

from collections.abc import Sequence
from typing import Any

Pads = tuple[tuple[int, int], ...]

SAME = "SAME, which depends on the image's size"


def same_pads(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pads:
    """What "SAME" pads an image of this shape with.

    >>> same_pads((8, 9), (3, 3), (2, 2), (1, 1))
    ((0, 1), (1, 1))
    """
    rows = zip(shape, kernel, stride, dilation, strict=True)
    totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in rows]
    return tuple((total // 2, total - total // 2) for total in totals)


def pads_of(padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """The pads of a convolution of JAX's; SAME is known where nothing is strided over.

    >>> [pads_of(padding, (4,), (1,), (1,)) for padding in ("VALID", "SAME", 2, [(0, 3)])]
    [((0, 0),), ((1, 2),), ((2, 2),), ((0, 3),)]
    """
    if not isinstance(padding, str):
        return pairs(padding, len(kernel))
    if padding.upper() == "VALID":
        return ((0, 0),) * len(kernel)
    if padding.upper() == "CAUSAL":
        return ((dilation[0] * (kernel[0] - 1), 0),)
    if set(stride) != {1}:
        return SAME
    same = same_pads(kernel, kernel, stride, dilation)
    return tuple((b, a) for a, b in same) if padding.upper() == "SAME_LOWER" else same


def transposed_pads(
    padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Pads:
    """The same of `jax.lax.conv_transpose`: what its input is padded with, once it is dilated."""
    if not isinstance(padding, str):
        return pairs(padding, len(kernel))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    rows = list(zip(reach, stride, strict=True))
    if padding.upper() == "VALID":
        return tuple((k - 1, s - 1 + max(k - s, 0)) for k, s in rows)
    lefts = [k - 1 if s > k - 1 else -(-(k + s - 2) // 2) for k, s in rows]
    return tuple((left, k + s - 2 - left) for left, (k, s) in zip(lefts, rows, strict=True))


def torch_transposed_pads(padding: Pads, extra: Sequence[int], kernel: Any, dilation: Any) -> Pads:
    """The same of a transposed convolution as torch describes it, by what is cut from its output.

    >>> torch_transposed_pads(((1, 1),), (1,), (3,), (1,))
    ((1, 2),)
    """
    rows = zip(kernel, dilation, padding, extra, strict=True)
    return tuple((d * (k - 1) - a, d * (k - 1) - b + more) for k, d, (a, b), more in rows)


def each(value: Any, rank: int) -> tuple[int, ...]:
    """A number for each axis, of one number for all, or of none."""
    return (value or 1,) * rank if value is None or isinstance(value, int) else tuple(value)


def pairs(padding: Any, rank: int) -> Pads:
    """Both ends of each axis, of numbers for all, or for each axis, or for each end."""
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
