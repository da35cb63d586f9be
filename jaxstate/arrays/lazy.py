"""Arrays that are made when they are asked for: a shape, a dtype, and how to come by the values.

A state_dict of them describes a model of any size in no memory. What writes or places it makes one array
after the other and keeps none; nothing here keeps one either. Writers take any object with `shape`, `dtype`
and `__array__` so; LazyArray is the one that this library makes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from jaxstate.arrays.tiles import fill
from jaxstate.errors import LayoutError

Box = tuple[slice, ...]
"""One slice with start, stop and step 1 for each axis."""

_ALL = slice(0, None, 1)


@dataclass(frozen=True, eq=False, slots=True)
class LazyArray:
    """An array that is made anew, by `make`, each time that its values are asked for.

    `numpy.asarray(x)` gives all of them, `x[1:3]` a part; with `part`, no more than the part is made. With
    `write`, `into` makes them where they are to stay.

    Args:
        shape: of the array.
        dtype: numpy's dtype of its elements, or what `numpy.dtype` takes.
        make: gives the values: an array of this shape and dtype, of numpy or JAX.
        part: gives the values inside of a Box; by default they are taken from the whole.
        write: writes the values inside of a Box into an array of their shape, which may have another dtype.
        tied: True if this object under several keys is one tensor, whose storage a torch file has once.

    Raises:
        LayoutError: when it is made, and has another shape or dtype than it was to have.

    >>> x = np.arange(6.0).reshape(2, 3)
    >>> lazy = LazyArray((3, 2), "float64", lambda: x.T)
    >>> bool((np.asarray(lazy) == x.T).all()), lazy[1].tolist(), lazy[::-1, 0].tolist()
    (True, [1.0, 4.0], [2.0, 1.0, 0.0])
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], Any] = field(repr=False)
    part: Callable[[Box], Any] | None = field(default=None, repr=False)
    tied: bool = field(default=False, repr=False)
    write: Callable[[np.ndarray, Box], None] | None = field(default=None, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.asarray(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._checked(self.make(), self.shape), dtype, copy=copy)

    def __getitem__(self, index: Any) -> np.ndarray:
        steps = None if self.part is None else _steps(index, self.shape)
        if steps is None or self.part is None:
            return np.asarray(self)[index]
        box, inside = zip(*steps, strict=True) if steps else ((), ())
        shape = tuple(span.stop - span.start for span in box)
        return self._checked(self.part(box), shape)[inside]

    def into(self, out: np.ndarray, index: Any = ...) -> np.ndarray:
        """`out` with the values of an index written into it, whose shape it has.

        >>> x = from_parts((2, 3), "int64", np.arange(6).reshape(2, 3).__getitem__)
        >>> x.into(np.empty((2, 1)), (slice(None), slice(1, 2))).tolist()
        [[1.0], [4.0]]
        """
        steps = None if self.write is None else _steps(index, self.shape)
        if self.write is None or steps is None or any(inside != _ALL for _, inside in steps):
            return fill(out, self[index])
        self.write(out, tuple(span for span, _ in steps))
        return out

    def _checked(self, made: Any, shape: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(made)
        if array.shape != shape or array.dtype != self.dtype:
            raise LayoutError(
                f"an array of shape {shape} and dtype {self.dtype} was announced, and one of shape "
                f"{array.shape} and dtype {array.dtype} was made"
            )
        return array


def from_parts(
    shape: tuple[int, ...],
    dtype: Any,
    part: Callable[[Box], Any],
    tied: bool = False,
    write: Callable[[np.ndarray, Box], None] | None = None,
) -> LazyArray:
    """The lazy array whose every part, and so the whole, is made by one function.

    >>> x = np.arange(6).reshape(2, 3)
    >>> lazy = from_parts((2, 3), x.dtype, lambda box: x[box])
    >>> bool((np.asarray(lazy) == x).all()), lazy[1:].tolist()
    (True, [[3, 4, 5]])
    """
    return LazyArray(shape, dtype, lambda: part(tuple(slice(0, n, 1) for n in shape)), part, tied, write)


def _steps(index: Any, shape: tuple[int, ...]) -> list[tuple[slice, Any]] | None:
    """For each axis the span that ints and slices touch and the index inside it; None for other indices.

    >>> _steps((slice(None, None, -2), 1), (5, 3))
    [(slice(0, 5, 1), slice(4, None, -2)), (slice(1, 2, 1), 0)]
    """
    steps = list(index) if isinstance(index, tuple) else [index]
    if not all(type(step) in (int, slice, type(...)) for step in steps) or steps.count(...) > 1:
        return None
    if ... not in steps:
        steps.append(...)
    at, missing = steps.index(...), len(shape) + 1 - len(steps)
    steps[at : at + 1] = [slice(None)] * missing
    if missing < 0:
        raise IndexError(f"{len(steps)} indices for an array of {len(shape)} axes")
    return [_span(step, n) for step, n in zip(steps, shape, strict=True)]


def _span(step: int | slice, length: int) -> tuple[slice, Any]:
    if isinstance(step, slice):
        taken = range(length)[step]
        low, high = (min(taken[0], taken[-1]), max(taken[0], taken[-1]) + 1) if taken else (0, 0)
        return slice(low, high, 1), slice(taken[0] - low if taken else 0, None, taken.step)
    place = range(length)[step]
    return slice(place, place + 1, 1), 0


class Made(Mapping[str, Any]):
    """A mapping whose lazy arrays are made when they are looked up, and not kept.

    >>> made = Made({"a": LazyArray((2,), "int8", lambda: np.int8([1, 2])), "step": 3})
    >>> made["a"], made["step"]
    (array([1, 2], dtype=int8), 3)
    """

    def __init__(self, entries: Mapping[str, Any]):
        self._entries = entries

    def __getitem__(self, key: str) -> Any:
        value = self._entries[key]
        return np.asarray(value) if isinstance(value, LazyArray) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries
