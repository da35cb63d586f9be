"""Decides which arrays share a storage in a torch file, and at which offset and strides each lies there.

Arrays that overlap in memory were tied in torch, or are views of one tensor, and must stay so: torch.save
writes their storage once. An array that is alone is written contiguous, whatever its strides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.lib.stride_tricks import as_strided

from ._arrays import Leaf


@dataclass(frozen=True, eq=False, slots=True)
class Payload:
    """The bytes of one storage: those of one array, or all memory that several span."""

    leaf: Leaf
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        return self.stop - self.start or self.leaf.dtype.itemsize * _count(self.leaf.shape)

    def fetch(self) -> np.ndarray:
        """The values, as they lie in memory: their bytes are those of the array in C order."""
        memory = self.leaf.memory
        if memory is None or not self.stop:
            return self.leaf.fetch()
        return _memory(memory, self.stop - self.start)


class Place(NamedTuple):
    """Where in which storage an array lies, in elements."""

    payload: Payload
    offset: int
    strides: tuple[int, ...]


def places(leaves: Sequence[Leaf]) -> list[Place]:
    """The place of each array; those that overlap have one payload.

    >>> from jaxstate.io._arrays import leaf
    >>> x = np.zeros((4, 3), np.float32)
    >>> whole, part, copy = places([leaf(x), leaf(x[1:].T), leaf(x.copy())])
    >>> whole.payload is part.payload, part.offset, part.strides, copy.payload is whole.payload
    (True, 3, (1, 3), False)
    """
    found = {id(leaf): alone(leaf) for leaf in leaves}
    for group in _overlapping([leaf for leaf in leaves if _can_share(leaf)]):
        found.update(_shared(group))
    return [found[id(leaf)] for leaf in leaves]


def alone(leaf: Leaf) -> Place:
    """The place of an array that has a storage to itself."""
    return Place(Payload(leaf), 0, _contiguous(leaf.shape))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object)) if shape else 1


def _can_share(leaf: Leaf) -> bool:
    """torch has no negative strides; an axis that repeats one element is written out."""
    if leaf.memory is None or leaf.memory.size == 0:
        return False
    taken = [step for n, step in zip(leaf.memory.shape, leaf.memory.strides, strict=True) if n > 1]
    return all(step > 0 and step % leaf.dtype.itemsize == 0 for step in taken)


class _Span(NamedTuple):
    start: int
    stop: int
    leaf: Leaf
    memory: np.ndarray


def _overlapping(leaves: Iterable[Leaf]) -> list[list[_Span]]:
    """The groups of two and more arrays of one dtype whose spans of memory overlap."""
    found = ((leaf, leaf.memory) for leaf in leaves if leaf.memory is not None)
    spans = [_Span(*byte_bounds(memory), leaf, memory) for leaf, memory in found]
    groups: list[list[_Span]] = []
    reach = 0
    for span in sorted(spans, key=lambda span: (span.leaf.dtype.torch, span.start)):
        if groups and span.leaf.dtype is groups[-1][0].leaf.dtype and span.start < reach:
            groups[-1].append(span)
            reach = max(reach, span.stop)
        else:
            groups.append([span])
            reach = span.stop
    return [group for group in groups if len(group) > 1 and _aligned(group)]


def _aligned(group: list[_Span]) -> bool:
    """Whether all start at a whole number of elements from the first."""
    return all((span.start - group[0].start) % span.leaf.dtype.itemsize == 0 for span in group)


def _shared(group: list[_Span]) -> dict[int, Place]:
    first = group[0]
    payload = Payload(first.leaf, first.start, max(span.stop for span in group))
    return {id(span.leaf): _inside(payload, span) for span in group}


def _inside(payload: Payload, span: _Span) -> Place:
    itemsize, memory = span.leaf.dtype.itemsize, span.memory
    steps = [
        step // itemsize if n > 1 else natural
        for n, step, natural in zip(memory.shape, memory.strides, _contiguous(memory.shape), strict=True)
    ]
    return Place(payload, (span.start - payload.start) // itemsize, tuple(steps))


def _memory(first: np.ndarray, size: int) -> np.ndarray:
    """`size` bytes from the first element of the array on: what the arrays of one group span together."""
    corner = first[(slice(0, 1),) * first.ndim].reshape(1).view(np.uint8)
    return as_strided(corner, (size,), (1,), writeable=False)
