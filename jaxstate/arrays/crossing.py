"""Over to an accelerator: bytes cross as they lie in the host's memory, and are transposed on the far side.

There memory is tens of times faster, and the host has but to read. What is put together of several arrays,
and what takes another dtype, becomes one array on the host first. No more than two tensors are on their way:
the one that crosses, and the next, which is read from its file meanwhile.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from jaxstate.arrays.lazy import LazyArray

PAGE = 4096  # bytes that the system reads from a file at least


class Turn(NamedTuple):
    """What makes an array of its elements in the order of memory: axes exchanged, then some reversed."""

    axes: tuple[int, ...]
    backwards: tuple[int, ...]


def crosses(sharding: Sharding | None) -> bool:
    """True if what is to lie so lies in an accelerator's own memory; without a sharding, JAX's default."""
    if sharding is None:
        return jax.default_backend() != "cpu"
    platforms = {device.platform for device in sharding.device_set}
    return "cpu" not in platforms and sharding.memory_kind in (None, "device")


def crossed(view: np.ndarray | LazyArray, sharding: Sharding | None, dtype: np.dtype) -> jax.Array:
    """The view's values as an array that lies so. Of each part, one device gets the bytes, others its copy.

    >>> view = np.arange(6.0, dtype="float32").reshape(2, 3).T[::-1]
    >>> bool((crossed(view, None, view.dtype) == view).all())
    True
    """
    if sharding is None:
        return _over(view[...], None, dtype)
    made: dict[Any, jax.Array] = {}
    parts = []
    for device, index in sharding.addressable_devices_indices_map(view.shape).items():
        region = tuple((span.start, span.stop) for span in index or ())
        if region not in made:
            made[region] = _over(view[index], device, dtype)
        parts.append(jax.device_put(made[region], device))
    return jax.make_array_from_single_device_arrays(view.shape, sharding, parts)


def read_ahead(found: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The same pairs; while one of them is used, a thread reads the next one's array from its file."""
    before: list[tuple[str, Any]] = []
    with ThreadPoolExecutor(1) as pool:
        for pair in found:
            reading = pool.submit(_read, pair[1])
            yield from before
            reading.result()
            before = [pair]
    yield from before


def in_order_of_memory(view: np.ndarray) -> tuple[np.ndarray, Turn]:
    """A view's elements in the order in which they lie, and the turn that makes the view of them.

    >>> lying, turn = in_order_of_memory(np.arange(6).reshape(2, 3).T[:, ::-1])
    >>> lying.tolist(), turn
    ([[0, 1, 2], [3, 4, 5]], Turn(axes=(1, 0), backwards=(1,)))
    """
    backwards = tuple(axis for axis, step in enumerate(view.strides) if step < 0)
    forward = np.flip(view, backwards)
    order = sorted(range(view.ndim), key=lambda axis: -forward.strides[axis])
    return forward.transpose(order), Turn(tuple(map(order.index, range(view.ndim))), backwards)


def _over(view: Any, device: Any, dtype: np.dtype) -> jax.Array:
    lying, turn = in_order_of_memory(np.asarray(view))
    there = jax.device_put(np.asarray(lying, dtype, order="C"), device)
    there.block_until_ready()  # from here on, whoever owns the view may change it
    # In the host's own memory, `there` may be the view itself; `_turned` makes a new array.
    on_host = any(found.platform == "cpu" for found in there.devices())
    return _turned(there, turn) if on_host or turn != Turn(tuple(range(lying.ndim)), ()) else there


@partial(jax.jit, static_argnums=1)  # compiled once for each turn, shape and dtype
def _turned(lying: jax.Array, turn: Turn) -> jax.Array:
    # Not donated: an array cannot be transposed in its own memory, and XLA would copy it first.
    if not lying.dtype.name.startswith("float8"):
        return jax.lax.rev(lying.transpose(turn.axes), turn.backwards)
    # As bytes: XLA on the CPU may move these as float16, which forgets the sign of what is no number.
    turned = _turned(jax.lax.bitcast_convert_type(lying, "uint8"), turn)
    return jax.lax.bitcast_convert_type(turned, lying.dtype)


def _read(view: Any) -> None:
    """Touch every page of a view that lies in one piece; numpy lets other threads run meanwhile."""
    lying = in_order_of_memory(view)[0] if isinstance(view, np.ndarray) else np.empty(0)
    if lying.size and lying.flags.c_contiguous:
        lying.reshape(-1).view(np.uint8)[::PAGE].max()
