"""Blocks: the rule of a recurrent cell whose gates lie elsewhere in memory than torch's.

A Layout moves whole axes. Where one matrix holds the weights of inputs and of state side by side, where gates
come in another order, or where one gate has a bias of its own, a leaf is made of blocks, each of them a
block of one of torch's arrays; and a block that several arrays have is their sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from jaxstate.arrays.foreign import as_numpy
from jaxstate.errors import BindingError
from jaxstate.rules.declared import kept_arrays, same_bits
from jaxstate.rules.rule import Arrays, Entry, Rename

Slices = tuple[tuple[int, int], ...]  # start and stop for each axis


class Block(NamedTuple):
    """One block: where it lies in torch's array and in the leaf, whose axes run in opposite order."""

    key: str
    there: Slices
    path: str
    here: Slices


@dataclass(frozen=True, eq=False)
class Blocks(Entry):
    """Bind torch's arrays of a cell to leaves that are made of the same blocks.

    Exact for the function. Written back, the first array that has a block gets all of it and later ones
    zeros, unless a file's terms still add up to it (`Binding.like`). As with Sum, no optimizer state crosses.

    Args:
        arrays: torch's shapes by key, in torch's order; the blocks cover each array once.
        blocks: they cover each leaf, a block of it once or more.
        offsets: `(path, start, stop, value)`: what JAX adds to these elements of a vector when it computes.
        leaf_paths: the leaves' shapes by path.
        dtype: of the leaves, where known.
        kept: what a file held, by key.

    >>> gates = [Block("b", ((0, 2),), "bias", ((2, 4),)), Block("b", ((2, 4),), "bias", ((0, 2),))]
    >>> rule = Blocks({"b": (4,)}, tuple(gates), leaf_paths={"bias": (4,)})
    >>> rule.leaves(rule.state_dict({"bias": np.float32([1, 2, 3, 4])}))
    {'bias': array([1., 2., 3., 4.], dtype=float32)}
    """

    arrays: Mapping[str, tuple[int, ...]]
    blocks: tuple[Block, ...]
    offsets: tuple[tuple[str, int, int, float], ...] = ()
    leaf_paths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: str | None = None
    kept: Arrays = field(default_factory=dict, repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self.leaf_paths)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.arrays

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.keys

    @property
    def families(self) -> list[tuple[str, Mapping[str, Sequence[str | int]]]]:
        return [(key, {}) for key in self.keys]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        places = {key: dict.fromkeys(b.path for b in self.blocks if b.key == key) for key in self.keys}
        return [
            (key, ", ".join(places[key]), "blocks (biases lossy)", str(shape), "")
            for key, shape in self.arrays.items()
        ]

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        found = {path: np.asarray(leaves[path]) for path in self.paths}
        if self.kept and all(same_bits(leaf, found[path]) for path, leaf in self.leaves(self.kept).items()):
            return {key: np.array(array) for key, array in self.kept.items()}
        whole = self._shifted(found, 1)
        dtype = found[self.paths[0]].dtype
        arrays, given = {key: np.zeros(shape, dtype) for key, shape in self.arrays.items()}, set()
        for block in self.blocks:
            if (block.path, block.here) not in given:
                arrays[block.key][_index(block.there)] = whole[block.path][_index(block.here)].T
            given.add((block.path, block.here))
        return arrays

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        found = {key: as_numpy(state_dict[key]) for key in self.keys}
        dtype = np.result_type(*found.values())
        if self.dtype and np.can_cast(dtype, self.dtype, "safe"):
            dtype = np.dtype(self.dtype)  # a sum for a float32 leaf is no sum of bfloat16
        sums = {path: np.zeros(shape, dtype) for path, shape in self.leaf_paths.items()}
        for block in self.blocks:
            sums[block.path][_index(block.here)] += found[block.key][_index(block.there)].T
        return self._shifted(sums, -1)

    def of(self, leaves: Arrays) -> "Blocks":
        for path, shape in self.leaf_paths.items():
            if (found := tuple(leaves[path].shape)) != shape:
                raise BindingError(f"leaf {path} has shape {found}, and its cell {shape}")
        return replace(self, dtype=str(leaves[self.paths[0]].dtype))

    def like(self, state_dict: Arrays) -> "Blocks":
        return replace(self, kept=kept_arrays(state_dict, self.keys))

    def at(self, key: str, path: str) -> "Blocks":
        return replace(
            self,
            arrays={key + name: shape for name, shape in self.arrays.items()},
            blocks=tuple(b._replace(key=key + b.key, path=path + b.path) for b in self.blocks),
            offsets=tuple((path + name, *rest) for name, *rest in self.offsets),
            leaf_paths={path + name: shape for name, shape in self.leaf_paths.items()},
        )

    def rekeyed(self, rename: Rename) -> "Blocks":
        to = {key: rename(key, {}) for key in self.keys}
        return replace(
            self,
            arrays={to[key]: shape for key, shape in self.arrays.items()},
            blocks=tuple(b._replace(key=to[b.key]) for b in self.blocks),
            kept={to[key]: array for key, array in self.kept.items()},
        )

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> Any:
        raise BindingError(f"a stack of recurrent cells ({path}) has no rule: bind it unstacked")

    def _shifted(self, arrays: Mapping[str, np.ndarray], sign: int) -> dict[str, np.ndarray]:
        """What the leaves say, with or without what JAX adds to them."""
        shifted = {path: np.array(array) for path, array in arrays.items()}
        for path, start, stop, value in self.offsets:
            shifted[path][start:stop] += np.asarray(sign * value, shifted[path].dtype)
        return shifted


def _index(slices: Slices) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in slices)
