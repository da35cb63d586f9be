"""Joint: arrays that lie one behind the other along one axis of a larger array, whole or in parts.

The axis may be merged with others in a dimension. Rows that go `(group, head, feature)` have for each group
its heads for queries, then its heads for keys: joined along the heads, such arrays alternate. Seen with the
dimension split into its axes, they lie one behind the other all the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.layout import Layout, Side
from jaxstate.rules.parts import dtype_of_stack, part, places

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Joint:
    """The place along which pieces are joined; what is split was joined, and the other way round.

    Args:
        shape: of the joined array.
        dim: its dimension that holds the axis.
        before, after: how many positions have the axes merged there in front of it, and behind it.
        lengths: of the pieces along the axis.

    >>> joint = Joint((6,), 0, 2, 1, (2, 1))
    >>> joint.join([np.array([1, 2, 4, 5]), np.array([3, 6])])
    array([1, 2, 3, 4, 5, 6])
    >>> [piece.tolist() for piece in joint.split(joint.join([np.array([1, 2, 4, 5]), np.array([3, 6])]))]
    [[1, 2, 4, 5], [3, 6]]
    """

    shape: Shape
    dim: int
    before: int
    after: int
    lengths: tuple[int, ...]

    @classmethod
    def along(cls, axis: str, dims: Side, sizes: Mapping[str, int], lengths: Sequence[int]) -> "Joint":
        """The joint along an axis of an array with these dimensions, one of which holds it."""
        dim = next(n for n, merged in enumerate(dims) if axis in merged)
        at, total = dims[dim].index(axis), {**sizes, axis: sum(lengths)}
        shape = tuple(prod(total[each] for each in merged) for merged in dims)
        before, after = (prod(sizes[each] for each in side) for side in (dims[dim][:at], dims[dim][at + 1 :]))
        return cls(shape, dim, before, after, tuple(lengths))

    def piece(self, n: int) -> Shape:
        """The shape of the n-th piece."""
        return self._closed(self.lengths[n])

    def join(self, pieces: Sequence[Any]) -> Any:
        """The joined array: numpy's if all pieces are, else jax's; they may be traced."""
        opened = [x.reshape(self._opened(n)) for x, n in zip(pieces, self.lengths, strict=True)]
        numpy = jnp if any(isinstance(x, jax.Array) for x in pieces) else np
        return numpy.concatenate(opened, axis=self.dim + 1).reshape(self.shape)

    def split(self, array: Any) -> list[Any]:
        """The pieces; they share memory with the array where they can."""
        opened = array.reshape(self._opened(sum(self.lengths)))
        cuts = [self._at(slice(start, stop)) for start, stop in self._ends]
        return [opened[cut].reshape(self.piece(n)) for n, cut in enumerate(cuts)]

    def lazy_join(self, pieces: Sequence[np.ndarray | LazyArray]) -> LazyArray:
        """The joined array, a part of which is read from the parts of the pieces that it is made of.

        >>> first = LazyArray((2,), "int64", lambda: None)  # it cannot be made
        >>> Joint((5,), 0, 1, 1, (2, 3)).lazy_join([first, np.array([3, 4, 5])])[2:4].tolist()
        [3, 4]
        """
        dtype = dtype_of_stack(dict(enumerate(pieces)))  # type: ignore[arg-type]

        def opened(box: Box) -> np.ndarray:
            found = [
                part(self._opening, self._sizes(self.lengths[n]), {(): pieces[n]}, inner)
                for n, inner in self._cut(box)
            ]
            return np.concatenate(found, axis=self.dim + 1).astype(dtype, copy=False)

        return self._lazy_closed(sum(self.lengths), dtype, opened, tied=True)

    def lazy_split(self, array: np.ndarray | LazyArray) -> list[LazyArray]:
        """The pieces, a part of which is read from the parts of the array that it is made of."""
        sizes = self._sizes(sum(self.lengths))

        def opened(start: int) -> Any:
            return lambda box: part(self._opening, sizes, {(): array}, self._moved(box, start))

        starts = [start for start, _ in self._ends]
        pairs = zip(self.lengths, starts, strict=True)
        return [self._lazy_closed(n, array.dtype, opened(start)) for n, start in pairs]

    def outward(self, n: int, box: Box) -> Iterator[Box]:
        """Where the joined array has a box of the n-th piece."""
        for inner in self._open(box, self.lengths[n]):
            yield from self._close(self._moved(inner, self._ends[n][0]), sum(self.lengths))

    def inward(self, box: Box) -> Iterator[tuple[int, Box]]:
        """The pieces that have values of a box of the joined array, and a box of each.

        >>> list(Joint((5,), 0, 1, 1, (2, 3)).inward((slice(1, 4),)))
        [(0, (slice(1, 2, None),)), (1, (slice(0, 2, None),))]
        """
        for opened in self._open(box, sum(self.lengths)):
            for n, inner in self._cut(opened):
                yield from ((n, there) for there in self._close(inner, self.lengths[n]))

    @cached_property
    def _ends(self) -> list[tuple[int, int]]:
        """Where each piece starts and stops."""
        stops = np.cumsum(self.lengths).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    @cached_property
    def _opening(self) -> Layout:
        """From the dimension split at the axis to the dimension as it is."""
        others = [f"x{n}" for n in range(len(self.shape))]
        sides = [
            " ".join([*others[: self.dim], three, *others[self.dim + 1 :]]) for three in ("b a c", "(b a c)")
        ]
        return Layout(" -> ".join(sides))

    def _sizes(self, length: int) -> dict[str, int]:
        others = {f"x{n}": size for n, size in enumerate(self.shape)}
        return {**others, "b": self.before, "a": length, "c": self.after}

    def _opened(self, length: int) -> Shape:
        return (*self.shape[: self.dim], self.before, length, self.after, *self.shape[self.dim + 1 :])

    def _closed(self, length: int) -> Shape:
        row = self.before * length * self.after
        return (*self.shape[: self.dim], row, *self.shape[self.dim + 1 :])

    def _at(self, span: slice) -> Box:
        """The span of the axis, and all of the opened dimensions before it."""
        return (*(slice(None) for _ in range(self.dim + 1)), span)

    def _moved(self, box: Box, by: int) -> Box:
        span = box[self.dim + 1]
        moved = slice(span.start + by, span.stop + by, 1)
        return (*box[: self.dim + 1], moved, *box[self.dim + 2 :])

    def _cut(self, box: Box) -> Iterator[tuple[int, Box]]:
        """An opened box as boxes of the opened pieces."""
        span = box[self.dim + 1]
        for n, (start, stop) in enumerate(self._ends):
            low, high = max(span.start, start), min(span.stop, stop)
            if low < high:
                cut = (*box[: self.dim + 1], slice(low, high, 1), *box[self.dim + 2 :])
                yield n, self._moved(cut, -start)

    def _open(self, box: Box, length: int) -> list[Box]:
        return [there for _, there in places(self._opening.inverse, self._sizes(length), 0, box)]

    def _close(self, box: Box, length: int) -> list[Box]:
        return [there for _, there in places(self._opening, self._sizes(length), 0, box)]

    def _lazy_closed(self, length: int, dtype: Any, opened: Any, tied: bool = False) -> LazyArray:
        """The array of a length along the axis whose opened parts a function reads."""
        layout, sizes = self._opening.inverse, self._sizes(length)
        whole = from_parts(self._opened(length), dtype, opened)
        read = lambda box: part(layout, sizes, {(): whole}, box)  # noqa: E731
        return from_parts(self._closed(length), dtype, read, tied)
