"""Writes safetensors, such that every tensor that can be is taken over by JAX without a copy.

The data start at a multiple of 64, and wider elements come first, as in the reference implementation, so
that all are aligned. The header names the tensors in the order of the dict: the order of the bytes is not
bound to it, and torch's order of registration survives.
"""

import json
import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from jaxstate.arrays.tiles import pieces
from jaxstate.errors import FileError

from ._arrays import Leaf, at, leaf
from ._recognise import MAX_HEADER
from ._safetensors_reader import METADATA
from ._storages import alone
from ._zip_writer import ALIGNMENT

_DEFAULT_METADATA = {"format": "pt"}
"""What transformers asks of a file before it reads it."""


def prepare(obj: object) -> "Archive":
    """The file that holds the arrays of a flat dict, checked as a whole.

    Raises:
        FileError: not a flat dict of arrays, or a dtype that the format lacks.
    """
    return Archive(*checked(obj))


def checked(obj: object) -> tuple[dict[str, Leaf], dict[str, str]]:
    """The arrays of a flat dict and its `__metadata__`; raises as `prepare` does."""
    if not isinstance(obj, dict):
        raise FileError(f"safetensors holds a dict of arrays, not a {type(obj).__name__}; {_HINT}")
    leaves = {key: _leaf(key, value) for key, value in obj.items()}
    metadata = getattr(obj, METADATA, _DEFAULT_METADATA)
    if type(metadata) is not dict or not all(type(t) is str for item in metadata.items() for t in item):
        raise FileError(f"obj.{METADATA} is not a map from text to text")
    return leaves, metadata


_HINT = 'save it as torch does, with a name in .pt or with format="pt"'


def _leaf(key: object, value: object) -> Leaf:
    if type(key) is not str or key == METADATA or not _encodes(key):
        raise FileError(f"obj[{str(key)[:200]!r}]: a key that safetensors cannot hold; {_HINT}")
    try:
        # Arithmetic of numpy gives scalars in the place of arrays without axes.
        found = leaf(np.asarray(value) if isinstance(value, np.generic) else value)
    except FileError as error:
        raise FileError(f'obj["{key}"]: {error}') from error
    if found is None:
        raise FileError(f'obj["{key}"]: a {type(value).__name__}, and safetensors holds arrays only; {_HINT}')
    if found.dtype.safetensors is None:
        raise FileError(f'obj["{key}"]: safetensors has no dtype {found.dtype.torch}; {_HINT}')
    return at(found, f'obj["{key}"]')


def _encodes(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


class Archive:
    """A header, and the arrays in the order in which their bytes follow it."""

    def __init__(self, leaves: Mapping[str, Leaf], metadata: Mapping[str, str]):
        self._ordered = sorted(leaves.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        self._header = _header(_entries(leaves, _offsets(self._ordered)), metadata)

    def write(self, file: BinaryIO) -> None:
        """Write the header and the arrays; one tensor at a time is in memory."""
        file.write(self._header)
        for _, found in self._ordered:
            _write(file, found)


def _write(file: BinaryIO, found: Leaf) -> None:
    # A function of its own, so that nothing holds this tensor while the next is made.
    for piece in pieces(found.fetch()):
        file.write(piece)


def _offsets(ordered: list[tuple[str, Leaf]]) -> dict[str, tuple[int, int]]:
    offsets, start = {}, 0
    for name, found in ordered:
        stop = start + alone(found).payload.nbytes
        offsets[name] = start, stop
        start = stop
    return offsets


def _entries(leaves: Mapping[str, Leaf], offsets: Mapping[str, tuple[int, int]]) -> dict[str, object]:
    return {
        name: {"dtype": found.dtype.safetensors, "shape": _shape(found), "data_offsets": offsets[name]}
        for name, found in leaves.items()
    }


def _shape(found: Leaf) -> tuple[int, ...]:
    """The shape that the header states: of 4-bit floats it counts the numbers, where torch counts pairs."""
    if found.dtype.safetensors != "F4":
        return found.shape
    if not found.shape:
        raise FileError("a pair of 4-bit floats without an axis has no shape in safetensors")
    return (*found.shape[:-1], 2 * found.shape[-1])


def _header(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    content = {METADATA: metadata, **entries} if metadata else entries
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise FileError(
            f"{len(entries)} tensors need a header of {len(text)} bytes, above safetensors' limit"
        )
    return struct.pack("<Q", len(text)) + text
