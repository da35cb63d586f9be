"""Writes what `torch.load(weights_only=True)` reads, and refuses the rest before a byte is written."""

import sys
from typing import BinaryIO, NamedTuple

from ._torch_pickle import Pickled, content, pickled
from ._zip_writer import ZipWriter

ROOT = "archive"
"""torch uses the stem of the file's name; the same name for all files makes equal content equal bytes."""


def prepare(obj: object, name: str = "obj") -> "Archive":
    """The archive that holds the object, checked as a whole; `name` is what errors call it.

    Raises:
        FileError: something in the object that weights_only would refuse to read, with the path to it.
    """
    return Archive(pickled(obj, lambda value, found: None, name))


class Archive(NamedTuple):
    """A pickle and its storages, as the entries of a zip archive."""

    pickled: Pickled

    def write(self, file: BinaryIO) -> None:
        """Write all entries; one tensor at a time is in memory."""
        archive = ZipWriter(file)
        archive.add(f"{ROOT}/data.pkl", memoryview(self.pickled.pickle))
        archive.add(f"{ROOT}/byteorder", memoryview(sys.byteorder.encode()))
        for key, payload in enumerate(self.pickled.payloads):
            archive.add(f"{ROOT}/data/{key}", content(payload))
        archive.add(f"{ROOT}/version", memoryview(b"3\n"))
        archive.finish()
