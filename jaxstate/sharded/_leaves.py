"""The leaves of a model that lies on several processes, as lazy arrays: gathered, or this process's own part.

A gathered leaf is a collective: all processes ask for the same parts in the same order, or none goes on.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.errors import BindingError

Region = tuple[tuple[int, int], ...]
"""Where a part starts and stops, along each axis."""


def gathered(leaf: Any) -> LazyArray:
    """A leaf of which every process gets the part that all of them ask for."""
    return from_parts(tuple(leaf.shape), np.dtype(leaf.dtype), partial(_gather, leaf))


def own(leaf: Any) -> LazyArray:
    """A leaf of which a part can be had if a device of this process holds it.

    Raises:
        BindingError: when a part is asked for that no device here holds as a whole.
    """
    return from_parts(tuple(leaf.shape), np.dtype(leaf.dtype), partial(_own_part, leaf))


def shards(leaf: Any) -> dict[Region, tuple[int, ...]]:
    """The parts that a leaf lies in on all processes, and the processes that hold each, in order."""
    if not isinstance(leaf, jax.Array):
        return {tuple((0, n) for n in leaf.shape): tuple(range(jax.process_count()))}
    found: dict[Region, set[int]] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        found.setdefault(_region(index, leaf.shape), set()).add(int(device.process_index or 0))
    return {region: tuple(sorted(processes)) for region, processes in found.items()}


def _region(index: Box, shape: tuple[int, ...]) -> Region:
    return tuple((span.indices(n)[0], span.indices(n)[1]) for span, n in zip(index, shape, strict=True))


def _gather(leaf: Any, box: Box) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)[box]
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(_cut(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf, box))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(_cut(leaf, box), tiled=True))


def _own_part(leaf: Any, box: Box) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)[box]
    for shard in leaf.addressable_shards:
        ends = _region(shard.index, leaf.shape)
        if all(a <= span.start and span.stop <= b for span, (a, b) in zip(box, ends, strict=True)):
            inside = [slice(s.start - a, s.stop - a) for s, (a, _) in zip(box, ends, strict=True)]
            return np.asarray(_cut(shard.data, tuple(inside)))
    raise BindingError(f"no device of this process holds the part {box} of a leaf of shape {leaf.shape}")


def _cut(array: jax.Array, box: Box) -> jax.Array:
    """A part of an array, cut out where it lies."""
    shape = tuple(span.stop - span.start for span in box)
    if shape == array.shape:
        return array
    return _slice(array, tuple(np.int32(span.start) for span in box), shape)


@partial(jax.jit, static_argnums=2)
def _slice(array: jax.Array, starts: tuple[Any, ...], shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(array, starts, shape)
