"""The zip archive that torch.save, torch.jit.save and torch.export.save have in common.

All entries stand under one root, `R/data.pkl`, `R/data/0`, `R/byteorder`, `R/version`, where R is what the
first entry's name has before its first slash (torch's `caffe2/serialize/inline_container.cc` reads it so).
What the entries mean is in `_torch_reader.py`, `_torchscript.py` and `_exported.py`.
"""

import sys
from collections.abc import Mapping

import numpy as np

from jaxstate.errors import FileError

from . import _zip
from ._recognise import other_archive

_MAX_SMALL = 4096


class Archive:
    """The entries of one archive by their names below the root.

    Attributes:
        data: the whole file.
        entries: where each entry lies.
        swapped: whether the file's byte order is not this machine's.
    """

    def __init__(self, data: np.ndarray, entries: Mapping[str, _zip.Entry]):
        self.data, self.entries = data, entries
        self._left = 4 * len(data) + _zip.MAX_INFLATED
        self._inflated: dict[str, np.ndarray] = {}
        self.swapped = self._byteorder() != sys.byteorder

    def content(self, name: str, limit: int = _MAX_SMALL) -> bytes:
        """The bytes of an entry of no more than `limit` bytes."""
        entry = self.entries[name]
        if entry.size <= limit:
            self._spend(entry)
        return _zip.content(self.data, entry, limit)

    def record(self, name: str) -> np.ndarray:
        """The bytes of an entry as they lie in the file; a compressed one is inflated, and once only."""
        entry = self.entries[name]
        if entry.method == _zip.STORED:
            return _zip.stored(self.data, entry)
        if name not in self._inflated:
            self._inflated[name] = np.frombuffer(self.content(name, entry.size), np.uint8)
        return self._inflated[name]

    def _spend(self, entry: _zip.Entry) -> None:
        if entry.method == _zip.STORED:
            return
        self._left -= entry.size
        if self._left < 0:
            raise FileError(
                f"entry {entry.name!r} is compressed and announces {entry.size} bytes, in a file of "
                f"{len(self.data)}; where you trust it, unpack it with unzip and pack it with `zip -0`"
            )

    def _byteorder(self) -> str:
        """torch writes this entry since 2.1; older files come from little-endian machines."""
        order = self.content("byteorder") if "byteorder" in self.entries else b"little"
        if order not in (b"little", b"big"):
            raise FileError(f"entry 'byteorder' holds {order[:40]!r}, neither 'little' nor 'big'")
        return order.decode()


def opened(data: np.ndarray, entries: Mapping[str, _zip.Entry] | None = None) -> Archive:
    """The archive in these bytes.

    Raises:
        FileError: damaged, hostile, or not of torch's layout.
    """
    return Archive(data, _rooted(_zip.entries(data) if entries is None else entries))


def _rooted(entries: Mapping[str, _zip.Entry]) -> Mapping[str, _zip.Entry]:
    """The entries by their names below the root."""
    if not entries:
        raise FileError("an empty zip archive")
    root = next(iter(entries)).partition("/")[0] + "/"
    outside = [name for name in entries if not name.startswith(root)]
    if outside:
        strange = f"a zip archive that is not torch's: {outside[0][:200]!r} stands outside of {root!r}"
        raise FileError(other_archive(entries) or strange)
    # Tools that pack a folder add entries for the folders themselves.
    return {n.removeprefix(root): e for n, e in entries.items() if e.size or not n.endswith("/")}
