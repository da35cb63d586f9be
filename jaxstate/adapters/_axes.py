"""Axes: what the dimensions of a traced program are made of, as equations between their factors.

A dimension is a product of atoms, slowest first; a dimension of length one has none. Two dimensions that
index the same positions are equated: an atom may turn out to be another atom, or a product of finer ones.
So a flatten need not come before the layer it feeds. The columns of a generator's first Linear are one
atom until a later reshape splits it and a convolution names its parts.
"""

from collections.abc import Iterator
from math import prod

Dim = tuple[int, ...]


class Axes:
    """The atoms of one trace and what is known to be equal among them.

    >>> axes = Axes()
    >>> vector, image = axes.fresh(6), axes.fresh(2) + axes.fresh(3)
    >>> axes.match(vector, image) is None and axes.resolve(vector) == axes.resolve(image)
    True
    """

    def __init__(self):
        self._lengths: list[int] = []
        self._parts: dict[int, Dim] = {}

    def fresh(self, length: int) -> Dim:
        """A dimension that nothing is known of yet."""
        if length == 1:
            return ()
        self._lengths.append(int(length))
        return (len(self._lengths) - 1,)

    def length(self, dim: Dim) -> int:
        """How many positions a dimension has."""
        return prod(self._lengths[atom] for atom in dim)

    def resolve(self, dim: Dim) -> Dim:
        """A dimension in the finest atoms known."""
        return tuple(part for atom in dim for part in self._terminal(atom))

    def match(self, left: Dim, right: Dim) -> tuple[Dim, Dim] | None:
        """Equate two dimensions of one length; what cannot be factored alike is handed back.

        Atoms are aligned from the fastest on, so that every equation made is one of mixed-radix digits
        and true whether or not the slower atoms fit.
        """
        left, right = self.resolve(left), self.resolve(right)
        while left and right:
            if left[-1] == right[-1]:
                left, right = left[:-1], right[:-1]
            elif self._equate(left[-1], right[-1]):
                left, right = self.resolve(left), self.resolve(right)
            else:
                return left, right
        return None

    def runs(self, left: Dim, right: Dim) -> Iterator[tuple[Dim, Dim]]:
        """Cut two dimensions of one length at every place where their products agree, slowest first."""
        left, right = self.resolve(left), self.resolve(right)
        while left or right:
            i = j = 1
            while (a := self.length(left[:i])) != (b := self.length(right[:j])):
                i, j = (i + 1, j) if a < b else (i, j + 1)
            yield left[:i], right[:j]
            left, right = left[i:], right[j:]

    def _terminal(self, atom: int) -> Dim:
        if atom not in self._parts:
            return (atom,)
        self._parts[atom] = self.resolve(self._parts[atom])
        return self._parts[atom]

    def _equate(self, a: int, b: int) -> bool:
        """Let the longer of two atoms that end together end with the shorter one."""
        if (self._lengths[a], a) < (self._lengths[b], b):  # of equals the younger one is explained
            a, b = b, a
        factor, rest = divmod(self._lengths[a], self._lengths[b] or 1)
        if rest == 0:
            self._parts[a] = (*self.fresh(factor), b)
        return rest == 0
