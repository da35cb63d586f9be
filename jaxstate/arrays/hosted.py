"""Leaves on their way to the host: what lies there is viewed, what lies elsewhere is fetched, and not kept.

A JAX array whose values were asked for keeps a copy of them in host memory for as long as it lives, so that a
model that is written leaf by leaf would come to lie there whole. Its buffers under another name keep nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from jaxstate.arrays.chunks import Chunk, joined
from jaxstate.arrays.lazy import LazyArray, from_parts
from jaxstate.errors import BindingError


def hosted(leaf: Any) -> Any:
    """A leaf in the host's memory as numpy's view of it; one that lies elsewhere, or in parts, as it is.

    >>> view = hosted(jax.numpy.arange(3))
    >>> type(view).__name__, view.tolist()
    ('ndarray', [0, 1, 2])
    """
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return leaf
    if not leaf.is_fully_addressable:
        raise BindingError(f"a leaf of shape {leaf.shape} has parts on other hosts; gather it first")
    there = leaf.devices()
    if len(there) == 1 and next(iter(there)).platform == "cpu":
        return np.asarray(leaf)
    return unkept(leaf)


def unkept(leaf: jax.Array) -> jax.Array:
    """The same buffers as another array, with which what is fetched of them is forgotten."""
    parts = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def readable(array: Any) -> np.ndarray | LazyArray:
    """What parts can be taken of: a view of host memory; of what lies elsewhere, the parts asked for.

    What lies in parts is not put together: what is asked for is taken of the parts that have it.
    """
    here = hosted(array)
    if isinstance(here, np.ndarray | LazyArray):
        return here
    if not isinstance(here, jax.Array) or isinstance(here, jax.core.Tracer):
        return _asked(here)
    parts = {_offset(shard.index): shard.data for shard in here.addressable_shards}  # replicas once
    chunks = [Chunk(offset, _of_one_device(data)) for offset, data in parts.items()]
    return joined(here.shape, here.dtype, chunks) if len(chunks) > 1 else chunks[0].values


def _offset(index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(span.start or 0 for span in index)


def _of_one_device(data: jax.Array) -> np.ndarray | LazyArray:
    here = hosted(data)
    return here if isinstance(here, np.ndarray) else _asked(here)


def _asked(array: Any) -> LazyArray:
    return from_parts(array.shape, array.dtype, lambda box: np.asarray(array[box]))


class Hosted(Mapping[str, Any]):
    """A mapping whose leaves are numpy arrays when they are looked up; none is kept."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves

    def __getitem__(self, path: str) -> np.ndarray:
        return np.asarray(hosted(self._leaves[path]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)
