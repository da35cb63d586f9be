"""Layout: a bijection of the axes of one array, in einops notation. JAX stands left, torch stands right.

`"h w i o -> o i h w"` says how a Flax convolution kernel becomes a torch convolution weight. Each side is
a list of axes in memory order, slowest first. `(a b)` merges axes into one, `1` is an axis of length one
that exists on this side only, and `~a` is an axis that runs backwards here. Nothing else is a layout: no
axis is ever dropped, repeated or reduced, so every layout can be undone and its inverse is never written.

The name is that of "NCHW layout"; it is neither `torch.layout` nor the tiling of `jax.experimental.layout`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any

from jaxstate.errors import LayoutError

_TOKEN = re.compile(r"[()]|~?[A-Za-z_]\w*|1(?!\w)|\S")
_AXIS = re.compile(r"~?[A-Za-z_]\w*")

Side = tuple[tuple[str, ...], ...]  # one tuple for each dimension: the axes merged in it, () for `1`


@dataclass(frozen=True, init=False, repr=False)
class Layout:
    """Map an array from its JAX axes to its torch axes, as one `reshape, transpose, flip, reshape`.

    Args:
        pattern: `"jax axes -> torch axes"`.
        **sizes: lengths of axes that the array's own shape does not tell (parts of a merged axis).

    Raises:
        LayoutError: an axis that does not stand exactly once on each side, or a size that is no length.

    The notation is that of einops (Rogozhnikov, ICLR 2022), without `...` and with `~`.

    >>> import numpy as np
    >>> layout = Layout("(h w c) o -> o (c h w)", h=5, w=5, c=16)
    >>> kernel = np.arange(400 * 3).reshape(400, 3)
    >>> bool((layout.inverse(layout(kernel)) == kernel).all())
    True
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...]
    left: Side
    right: Side
    flipped: frozenset[str]

    def __init__(self, pattern: str, /, **sizes: int):
        known = tuple(sorted((axis, length_of(pattern, axis, size)) for axis, size in sizes.items()))
        text, left, right, flipped = _parsed(pattern, *sizes)
        vars(self).update(pattern=text, sizes=known, left=left, right=right, flipped=flipped)

    def __repr__(self) -> str:
        sizes = "".join(f", {axis}={size}" for axis, size in self.sizes)
        return f'Layout("{self.pattern}"{sizes})'

    def __call__(self, array: Any) -> Any:
        """The torch-side array of a JAX-side one; numpy, jax and traced arrays alike.

        The result may share memory with `array`. Raises LayoutError if its shape does not fit.
        """
        sizes = self.axes(array.shape)
        axes = [axis for dim in self.left for axis in dim]
        target = [axis for dim in self.right for axis in dim]
        array = array.reshape([sizes[axis] for axis in axes])
        array = array.transpose([axes.index(axis) for axis in target])
        if self.flipped:
            array = array[tuple(slice(None, None, -1 if axis in self.flipped else None) for axis in target)]
        return array.reshape(_shape(self.right, sizes))

    @cached_property
    def inverse(self) -> "Layout":
        """The layout from torch's side to JAX's: the same text, the sides exchanged.

        >>> Layout("h w i o -> i o ~h ~w").inverse
        Layout("i o ~h ~w -> h w i o")
        """
        left, _, right = self.pattern.partition("->")
        return Layout(f"{right} -> {left}", **dict(self.sizes))

    def axes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The length of every axis of a JAX-side array of this shape.

        Raises:
            LayoutError: another number of dimensions, lengths that contradict the sizes given, or a
                merged axis with more than one unknown part.
        """
        if len(shape) != len(self.left):
            raise LayoutError(f"{self!r} takes {len(self.left)} dimensions, got shape {tuple(shape)}")
        sizes = dict(self.sizes)
        for dim, length in zip(self.left, shape, strict=True):
            sizes.update(self._split(dim, int(length), sizes, shape))
        return sizes

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The torch-side shape of a JAX-side shape.

        >>> Layout("d n k -> (n k) d").shape((8, 2, 4))
        (8, 8)
        """
        return _shape(self.right, self.axes(shape))

    def sized(self, shape: tuple[int, ...]) -> "Layout":
        """This layout with every part of a merged axis given, so that its inverse needs no shape."""
        sizes = self.axes(shape)
        merged = {axis for side in (self.left, self.right) for dim in side if len(dim) > 1 for axis in dim}
        known = {axis: size for axis, size in sizes.items() if axis in merged}
        return self if known == dict(self.sizes) else Layout(self.pattern, **known)

    def _split(self, dim: tuple[str, ...], length: int, sizes: Mapping[str, int], shape: tuple[int, ...]):
        unknown = [axis for axis in dim if axis not in sizes]
        known = prod(sizes[axis] for axis in dim if axis in sizes)
        if len(unknown) > 1 or (unknown and known == 0):
            call = ", ".join([f'Layout("{self.pattern}"', *(f"{axis}=..." for axis in unknown)])
            raise LayoutError(f"{self!r} cannot tell the axes of {tuple(shape)} apart; give sizes: {call})")
        if length % known if unknown else length - known:
            merged = " * ".join(dim) or "1"
            raise LayoutError(f"{self!r} does not fit shape {tuple(shape)}: {merged} is not {length}")
        return {axis: length // known for axis in unknown}


@cache
def tidy(pattern: str) -> str:
    """A pattern with one space between its parts.

    >>> tidy("i  o->o i")
    'i o -> o i'
    """
    return " ".join(pattern.replace("->", " -> ").split())


def tokens(side: str) -> list[str]:
    """The axes and brackets of one side of a pattern, one by one.

    >>> tokens("(h w ~c) o")
    ['(', 'h', 'w', '~c', ')', 'o']
    """
    return _TOKEN.findall(side)


def insert_axis(pattern: str, axis: str, position: int) -> str:
    """A pattern whose JAX side has one more axis, before its `position`-th dimension.

    >>> insert_axis("(h w) i -> i h w", "l", 1)
    '(h w) l i -> i h w'
    """
    left, arrow, right = pattern.partition("->")
    dims = [
        f"({' '.join(dim)})" if len(dim) > 1 else "".join(dim) or "1" for dim in _parse_side(pattern, left)
    ]
    return " ".join([*dims[:position], axis, *dims[position:], arrow, *right.split()])


@cache
def _parsed(pattern: str, *sized: str) -> tuple[str, Side, Side, frozenset[str]]:
    """A pattern, tidy, as its two sides and the axes that are flipped; parsed and checked once.

    Args:
        sized: the axes that are given a length.
    """
    sides = pattern.split("->")
    if len(sides) != 2:
        raise LayoutError(f'"{pattern}" is no layout: write "jax axes -> torch axes", as in "i o -> o i"')
    parsed = [_parse_side(pattern, side) for side in sides]
    flips = [{axis[1:] for dim in side for axis in dim if axis[0] == "~"} for side in parsed]
    left, right = (tuple(tuple(axis.lstrip("~") for axis in dim) for dim in side) for side in parsed)
    _check_bijection(pattern, left, right, sized)
    return tidy(pattern), left, right, frozenset(flips[0] ^ flips[1])


def _parse_side(pattern: str, text: str) -> Side:
    dims: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for token in tokens(text):
        if token == "(" and group is None:
            group = []
        elif token == ")" and group:
            dims.append(tuple(group))
            group = None
        elif token == "1" and group is None:
            dims.append(())
        elif _AXIS.fullmatch(token):
            dims.append((token,)) if group is None else group.append(token)
        else:
            raise LayoutError(f'"{pattern}" is no layout: "{token}" cannot stand there')
    if group is not None:
        raise LayoutError(f'"{pattern}" is no layout: "(" is never closed')
    return tuple(dims)


def _check_bijection(pattern: str, left: Side, right: Side, sized: Sequence[str]) -> None:
    counts = [[axis for dim in side for axis in dim] for side in (left, right)]
    for axis in sorted({*counts[0], *counts[1], *sized}):
        if (found := tuple(side.count(axis) for side in counts)) != (1, 1):
            raise LayoutError(
                f'"{pattern}" is no bijection: axis "{axis}" stands {found[0]} time(s) on the JAX side '
                f"and {found[1]} on torch's; each axis stands exactly once on each side"
            )


def length_of(pattern: str, axis: str, size: Any) -> int:
    """The length given for an axis. Raises LayoutError for what is no length.

    >>> length_of("i o -> o i", "i", 3)
    3
    """
    if isinstance(size, bool) or not hasattr(size, "__index__") or size < 0:
        raise LayoutError(f'"{pattern}": the length of axis "{axis}" is a non-negative integer, not {size!r}')
    return int(size)


def _shape(side: Side, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(prod(sizes[axis] for axis in dim) for dim in side)
