"""Writes what `torch.save` wrote before 1.6, for readers that know nothing newer.

The layout is that of `_legacy_reader.py`. The dtypes that torch has since 2.1 are refused: torch writes them
into such a file, and cannot read them back.
"""

import struct
import sys
from typing import BinaryIO, NamedTuple

from jaxstate.arrays.tiles import pieces
from jaxstate.errors import FileError

from ._arrays import Leaf
from ._dtypes import storage_itemsize
from ._legacy_reader import MAGIC, VERSION
from ._pickle_writer import dump
from ._records import Storage
from ._storages import Payload
from ._torch_pickle import Pickled, content, pickled

_FACTS = {
    "protocol_version": VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
_NO_VIEW = (None,)


def prepare(obj: object) -> "Stream":
    """The stream that holds the object, checked as a whole.

    Raises:
        FileError: something in the object that weights_only would refuse to read, with the path to it.
    """
    if sys.byteorder != "little":
        raise FileError('this format is written on little-endian machines only; use format="pt"')
    return Stream(pickled(obj, _check_class, rest=_NO_VIEW))


def _check_class(value: object, found: Leaf | None) -> None:
    untyped = isinstance(value, Storage) and value.kind.attribute == "UntypedStorage"
    if untyped or (found is not None and found.dtype.storage is None):
        name = "a storage without a dtype" if found is None else f"a tensor of torch.{found.dtype.torch}"
        raise FileError(f'{name}, which torch cannot read from a file of before 1.6; use format="pt"')


class Stream(NamedTuple):
    """A pickle and its storages, one behind the other."""

    pickled: Pickled

    def write(self, file: BinaryIO) -> None:
        """Write all pickles and storages; one tensor at a time is in memory."""
        keys = [str(key) for key in range(len(self.pickled.payloads))]
        for obj in (MAGIC, VERSION, _FACTS):
            file.write(_plain(obj))
        file.write(self.pickled.pickle)
        file.write(_plain(keys))
        for payload in self.pickled.payloads:
            file.write(struct.pack("<q", _numel(payload)))
            for piece in pieces(content(payload)):
                file.write(piece)


def _plain(obj: object) -> bytes:
    return dump(obj, lambda value: value)


def _numel(payload: Payload | Storage) -> int:
    if isinstance(payload, Storage):
        return payload.numel
    return payload.nbytes // (storage_itemsize(payload.leaf.dtype.storage or "UntypedStorage") or 1)
