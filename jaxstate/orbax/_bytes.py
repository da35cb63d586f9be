"""Bytes: a stored array read as one of bytes, so that a part of it costs no more than the part.

An array may begin anywhere in its file. Where its elements are not aligned there, TensorStore copies all of a
chunk to read any of it, and a chunk may be all of a model's layers. Bytes are always aligned.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PLAIN = [{"name": "bytes", "configuration": {"endian": "little"}}]


def of_bytes(metadata: Mapping[str, Any], size: int) -> dict[str, Any] | None:
    """Zarr's metadata of the same array with its last axis so many times as long, and a byte for an element.

    Args:
        metadata: of an array as Orbax writes it: shards, and in them chunks.
        size: the bytes of an element.

    Returns:
        None where the bytes of a chunk are not its elements as they are.
    """
    (codec, *more), inner = metadata["codecs"], metadata["codecs"][0].get("configuration", {})
    is_plain = sys.byteorder == "little" and inner.get("codecs") == PLAIN and not more
    if not is_plain or size == 1 or not metadata["shape"] or np.any(metadata["fill_value"]):
        return None
    chunks = {**inner, "chunk_shape": _long(inner["chunk_shape"], size), "codecs": [{"name": "bytes"}]}
    grid = _long(metadata["chunk_grid"]["configuration"]["chunk_shape"], size)
    return {
        "shape": _long(metadata["shape"], size),
        "data_type": "uint8",
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
        "chunk_key_encoding": metadata["chunk_key_encoding"],
        "codecs": [{**codec, "configuration": chunks}],
    }


def box_of_bytes(region: Sequence[tuple[int, int]], size: int) -> tuple[slice, ...]:
    """A part of an array as one of its bytes.

    >>> box_of_bytes(((0, 3), (5, 7)), 4)
    (slice(0, 3, None), slice(20, 28, None))
    """
    *rows, (start, stop) = region
    return (*(slice(*ends) for ends in rows), slice(start * size, stop * size))


def _long(shape: Sequence[int], size: int) -> list[int]:
    return [*shape[:-1], shape[-1] * size]
