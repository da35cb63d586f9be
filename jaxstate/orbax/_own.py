"""Own: what of a checkpoint lies in a folder that one host alone sees, and what its devices need of it.

Orbax reads zeros where a shard is not there. So the record of such a folder says which regions it holds, and
nothing else of it is ever read.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from jaxstate.orbax._digests import Digests, Region, checksum, part_of
from jaxstate.orbax._leaves import Kind


class Held(NamedTuple):
    """What one host's folder holds.

    Attributes:
        process, processes: whose it is, of how many.
        regions: of each array, by `item/path`.
        plain: the arrays that were numpy's: every host has them, as bytes, since Orbax lets one host alone
            write numpy's arrays.
    """

    process: int
    processes: int
    regions: Mapping[str, tuple[Region, ...]]
    plain: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON value."""
        return {**self._asdict(), "plain": sorted(self.plain)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Held":
        """Of a JSON value."""
        regions = {name: tuple(map(_region, row)) for name, row in value["regions"].items()}
        return cls(value["process"], value["processes"], regions, frozenset(value["plain"]))


def held_of(arrays: Mapping[str, Any]) -> Held:
    """What this process holds of these arrays, replicas too."""
    plain = frozenset(name for name, array in arrays.items() if not isinstance(array, jax.Array))
    regions = {name: tuple(held_regions(array)) for name, array in arrays.items()}
    return Held(jax.process_index(), jax.process_count(), regions, plain)


def held_regions(array: Any) -> list[Region]:
    """The regions of an array that this process holds."""
    if not isinstance(array, jax.Array):
        return [tuple((0, n) for n in array.shape)]
    return list(dict.fromkeys(_bounds(shard.index, array.shape) for shard in array.addressable_shards))


def differing(arrays: Mapping[str, Any], sums: Mapping[str, Digests]) -> list[str]:
    """The arrays of which this process has other values than the one that has summed them up.

    What is replicated is written by every host, and all must have the same.
    """
    found = {name: {region: part_of(x, region) for region in held_regions(x)} for name, x in arrays.items()}
    known = {name: dict(row) for name, row in sums.items()}
    return [
        name
        for name, row in found.items()
        if any(part is not None and checksum(part) != known[name][region] for region, part in row.items())
    ]


def as_bytes(array: np.ndarray) -> jax.Array:
    """The bytes of an array, on a device of each process: Orbax takes none of one process alone."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return jax.make_array_from_callback(flat.shape, _everywhere(), lambda index: flat[index])


def bytes_target(kind: Kind) -> jax.ShapeDtypeStruct:
    """What tells Orbax to read the bytes of such an array."""
    size = prod(kind.shape) * np.dtype(kind.dtype).itemsize
    return jax.ShapeDtypeStruct((size,), np.uint8, sharding=_everywhere())


def from_bytes(array: jax.Array, kind: Kind) -> np.ndarray:
    """The array of its bytes: the inverse of `as_bytes`."""
    return np.asarray(array.addressable_data(0)).view(kind.dtype).reshape(kind.shape)


def _everywhere() -> Sharding:
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = jax.sharding.Mesh(np.array([first[n] for n in sorted(first)]), ("hosts",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def lacking(shape: tuple[int, ...], place: Sharding | None, held: tuple[Region, ...]) -> Iterator[Region]:
    """The regions that this process needs of an array in this place, numpy's if None, and does not hold."""
    whole = (slice(None),) * len(shape)
    boxes = [whole] if place is None else place.addressable_devices_indices_map(shape).values()
    for need in dict.fromkeys(_bounds(box, shape) for box in boxes if box is not None):
        shared = (
            prod(max(0, min(b, d) - max(a, c)) for (a, b), (c, d) in zip(need, part, strict=True))
            for part in held
        )
        if sum(shared) < prod(b - a for a, b in need):
            yield need


def _bounds(box: tuple[slice, ...], shape: tuple[int, ...]) -> Region:
    return tuple(part.indices(n)[:2] for part, n in zip(box, shape, strict=True))


def _region(value: Any) -> Region:
    return tuple((start, stop) for start, stop in value)
