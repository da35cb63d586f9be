"""Flat: all parameters as one vector, in torch's order and layout, and back.

L-BFGS works on one vector, and torch's file holds such vectors. So it must be known which element stands
where: parameters in the order of their ids, each in torch's layout, its last axis fastest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._parameters import Parameters
from jaxstate.rules.apart import Bijection


@dataclass(frozen=True)
class Flat:
    """A bijection between the leaves of a tree and one vector.

    Args:
        paths, shapes: of the leaves, in leaf order.
        binding: tells torch's names and layouts; without one each leaf is its own piece as it is.
        names: the pieces of the vector, in order: torch's names, or paths where there is no binding.

    >>> from jaxstate.rules.rule import Rule
    >>> flat = Flat.of(("w",), ((2, 3),), Binding((Rule("fc.weight", "w", "i o -> o i"),)))
    >>> flat.vector([np.arange(6).reshape(2, 3)])
    array([0, 3, 1, 4, 2, 5])
    >>> flat.leaves(flat.vector([np.arange(6).reshape(2, 3)]))[0].tolist()
    [[0, 1, 2], [3, 4, 5]]
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    binding: Binding | None
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        paths: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        binding: Binding | None,
        names: Sequence[str] | None = None,
    ) -> "Flat":
        """The vector of these leaves, its pieces in the Binding's order or in that of the names.

        Raises:
            OptimizerError: leaves that the Binding does not pair with torch's element by element.
        """
        if binding is None:
            return cls(paths, shapes, None, paths)
        parameters = Parameters.of(binding, paths)
        if strange := [str(family) for family in parameters.families if not isinstance(family, Bijection)]:
            raise OptimizerError(
                f"LBFGS keeps one vector of all of torch's parameters, and {', '.join(strange)} does not say "
                "which of its elements these leaves are; leave them out of the tree that is optimized"
            )
        return cls(paths, shapes, binding, tuple(parameters.names if names is None else names))

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(map(prod, self.shapes))

    def vector(self, leaves: Sequence[Any]) -> Any:
        """The vector of these leaves: numpy's if they are, else jax's."""
        numpy = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
        pieces = self._pieces(dict(zip(self.paths, leaves, strict=True)))
        return numpy.concatenate([pieces[name].reshape(-1) for name in self.names] or [np.zeros(0, "f")])

    def leaves(self, vector: Any) -> list[Any]:
        """The leaves of a vector: the inverse of `vector`."""
        arrays, start = {}, 0
        for name in self.names:
            stop = start + prod(self._piece_shapes[name])
            arrays[name] = vector[start:stop].reshape(self._piece_shapes[name])
            start = stop
        leaves = arrays if self._parameters is None else self._parameters.to_jax(arrays, self._likes)
        return [leaves[path] for path in self.paths]

    def index_in(self, other: "Flat") -> np.ndarray:
        """Where each element of this vector stands in another vector of the same leaves.

        >>> paths, shapes = ("a", "b"), ((1,), (2,))
        >>> here, there = (Flat(paths, shapes, None, names) for names in (("a", "b"), ("b", "a")))
        >>> np.array([5, 6, 7])[there.index_in(here)]
        array([6, 7, 5])
        """
        return self.vector(other.leaves(np.arange(self.size)))

    @cached_property
    def _parameters(self) -> Parameters | None:
        return None if self.binding is None else Parameters.of(self.binding, self.paths)

    @cached_property
    def _likes(self) -> dict[str, Any]:
        shapes = zip(self.paths, self.shapes, strict=True)
        return {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes}

    @cached_property
    def _piece_shapes(self) -> dict[str, tuple[int, ...]]:
        if self._parameters is None:
            return dict(zip(self.paths, self.shapes, strict=True))
        return self._parameters.shapes(self._likes)

    def _pieces(self, leaves: Mapping[str, Any]) -> Mapping[str, Any]:
        return leaves if self._parameters is None else self._parameters.to_torch(leaves)
