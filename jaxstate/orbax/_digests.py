"""Digests: a checksum of every region of an array, so that a bit that flips on a disk is noticed.

Orbax itself checks nothing. A region is what one device held; each process sums up its own, so that no
array is gathered. CRC-32 finds every flipped bit and runs as fast as memory is read; it keeps out decay, not
malice.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxstate.arrays.checksum import crc32
from jaxstate.errors import CheckpointError

Region = tuple[tuple[int, int], ...]
Digests = tuple[tuple[Region, int], ...]

_WORKERS = 4


def digests(arrays: Mapping[str, Any]) -> dict[str, Digests]:
    r"""The digests of every array; in several processes all of them must call it, and all get all.

    >>> import zlib
    >>> digests({"w": np.arange(3, dtype="int8")}) == {"w": ((((0, 3),), zlib.crc32(b"\0\1\2")),)}
    True
    """
    regions = {path: regions_of(array) for path, array in arrays.items()}
    own = {path: _own(array) for path, array in arrays.items()}
    jobs = [(path, region, part) for path, row in own.items() for region, part in row.items()]
    with ThreadPoolExecutor(_WORKERS) as pool:
        sums = list(pool.map(lambda job: checksum(job[2]()), jobs))
    found = {(path, region): crc for (path, region, _), crc in zip(jobs, sums, strict=True)}
    every = [(path, region) for path, row in regions.items() for region in row]
    known = dict(zip(every, _gathered([found.get(name, 0) for name in every]), strict=True))
    return {path: tuple((region, known[path, region]) for region in row) for path, row in regions.items()}


def damaged(
    arrays: Mapping[str, Any],
    expected: Mapping[str, Digests],
    missing: Callable[..., Any],
    here: Mapping[str, Collection[Region]] | None = None,
) -> list[str]:
    """The paths of the arrays that are not what they were; every process gets all of them.

    Args:
        arrays: by path, as they were read.
        expected: their digests.
        missing: `(path, region) -> numpy array`, reads a region that no device here holds as a whole.
        here: by path the regions that this process can read at all, if it is not all of them.
    """
    jobs = [(path, *row) for path, rows in expected.items() for row in rows]
    shared = set(jobs[jax.process_index() :: jax.process_count()])

    def is_mine(job: tuple[str, Region, int]) -> bool:
        return job in shared if here is None else job[1] in here.get(job[0], ())

    def is_whole(job: tuple[str, Region, int]) -> bool:
        path, region, crc = job
        part = part_of(arrays[path], region)
        try:
            part = missing(path, region) if part is None and is_mine(job) else part
        except CheckpointError:
            return False  # an error of one process alone would leave the others waiting
        return part is None or checksum(part) == crc

    with ThreadPoolExecutor(_WORKERS) as pool:
        verdicts = _gathered([int(not whole) for whole in pool.map(is_whole, jobs)])
    return list(dict.fromkeys(path for (path, *_), bad in zip(jobs, verdicts, strict=True) if bad))


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's elements in C order."""
    return crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def regions_of(array: Any) -> list[Region]:
    """The parts that an array is stored in, wherever they are: one for each different shard."""
    if not isinstance(array, jax.Array):
        return [tuple((0, n) for n in array.shape)]
    indices = array.sharding.devices_indices_map(array.shape).values()
    return list(dict.fromkeys(_region(index, array.shape) for index in indices))


def part_of(array: Any, region: Region) -> np.ndarray | None:
    """The elements of a region, if devices of this process hold all of them."""
    if not isinstance(array, jax.Array):
        return array[tuple(slice(*ends) for ends in region)]
    shards = {_region(s.index, array.shape): s for s in array.addressable_shards}
    if region in shards:
        return np.asarray(shards[region].data)
    part, filled = np.empty([stop - start for start, stop in region], array.dtype), 0
    for there, shard in shards.items():
        shared = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(region, there, strict=True)]
        if all(start < stop for start, stop in shared):
            part[_within(shared, region)] = np.asarray(shard.data)[_within(shared, there)]
            filled += int(np.prod([stop - start for start, stop in shared], dtype=int))
    return part if filled == part.size else None


def _own(array: Any) -> dict[Region, Callable[[], np.ndarray]]:
    """The regions that are this process's to sum up."""
    if not isinstance(array, jax.Array):
        return {regions_of(array)[0]: lambda: array} if jax.process_index() == 0 else {}
    shards = [s for s in array.addressable_shards if s.replica_id == 0]
    return {_region(s.index, array.shape): lambda s=s: np.asarray(s.data) for s in shards}


def _gathered(values: list[int]) -> list[int]:
    """The numbers of all processes, of each the largest; what is another process's is 0 here."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    rows: Any = multihost_utils.process_allgather(np.array(values, np.uint32))
    return np.asarray(rows).reshape(-1, len(values)).max(axis=0).tolist()


def _region(index: tuple[slice, ...], shape: tuple[int, ...]) -> Region:
    pairs = zip(index, shape, strict=True)
    return tuple(part.indices(n)[:2] for part, n in pairs)


def _within(part: Iterable[tuple[int, int]], whole: Region) -> tuple[slice, ...]:
    return tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(part, whole, strict=True))
