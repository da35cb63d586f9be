"""Writes the zip archive that a torch file is: stored entries, each payload at a multiple of 64 bytes.

The padding stands in an extra field with id `FB`, as torch writes it
(`caffe2/serialize/inline_container.cc`). Sizes and CRCs are true in both headers, so that `zipfile` and
`unzip -t` agree with torch. Times are the earliest that the format has: the same input, the same bytes.
"""

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxstate.arrays.checksum import crc32
from jaxstate.arrays.tiles import PIECE, pieces

ALIGNMENT = 64
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_VERSION, _UNIX, _UTF8, _EARLIEST = 45, 3 << 8, 0x800, 0x21
_MODE = 0o644 << 16

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CRC_AT = 14


class _Written(NamedTuple):
    name: bytes
    crc: int
    size: int
    offset: int


class ZipWriter:
    """An archive in the making, on a file that can seek; it starts where the file stands."""

    def __init__(self, file: BinaryIO):
        self._file, self._start = file, file.tell()
        self._written: list[_Written] = []

    def add(self, name: str, content: memoryview | np.ndarray) -> None:
        """Write the bytes of one array, read from memory once, and from the cache the second time."""
        array, place, raw = np.asarray(content), self._file.tell(), name.encode()
        offset = place - self._start
        small = [bytes(piece) for piece in pieces(array)] if array.nbytes <= PIECE else None
        crc = crc32(b"".join(small or ()))
        self._file.write(_local_header(raw, crc, array.nbytes, offset))
        if small is None:
            crc = self._stream(array)
            self._patch(place + _CRC_AT, struct.pack("<L", crc))
        self._file.writelines(small or ())
        self._written.append(_Written(raw, crc, array.nbytes, offset))

    def _stream(self, array: np.ndarray) -> int:
        """Write the pieces, each while a second thread takes it into the checksum."""
        crc = 0
        with ThreadPoolExecutor(1) as pool:
            for piece in pieces(array):
                summed = pool.submit(crc32, piece, crc)
                self._file.write(piece)
                crc = summed.result()
        return crc

    def finish(self) -> None:
        """Write the directory; without it, there is no archive."""
        start = self._file.tell() - self._start
        for entry in self._written:
            self._file.write(_central_header(entry))
        self._file.write(_end(len(self._written), start, self._file.tell() - self._start))

    def _patch(self, position: int, content: bytes) -> None:
        end = self._file.tell()
        self._file.seek(position)
        self._file.write(content)
        self._file.seek(end)


def _local_header(name: bytes, crc: int, size: int, offset: int) -> bytes:
    wide = _wide(size, size) if size >= _MAX32 else b""
    narrow = _MAX32 if wide else size
    # The field of the padding has 4 bytes of its own.
    padding = -(offset + _LOCAL.size + len(name) + len(wide) + 4) % ALIGNMENT
    extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fields = (_VERSION, _UTF8, 0, 0, _EARLIEST, crc, narrow, narrow, len(name), len(extra))
    return _LOCAL.pack(b"PK\3\4", *fields) + name + extra


def _wide(*values: int) -> bytes:
    """The zip64 field: the values that do not fit 32 bits."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _central_header(entry: _Written) -> bytes:
    size, offset = min(entry.size, _MAX32), min(entry.offset, _MAX32)
    extra = _wide(*[entry.size] * 2 * (size == _MAX32), *[entry.offset] * (offset == _MAX32))
    how = (_UNIX | _VERSION, _VERSION, _UTF8, 0, 0, _EARLIEST)
    where = (len(entry.name), len(extra), 0, 0, 0, _MODE, offset)
    return _CENTRAL.pack(b"PK\1\2", *how, entry.crc, size, size, *where) + entry.name + extra


def _end(count: int, start: int, end: int) -> bytes:
    """The end records: the 64-bit one always, as torch does, and the old one."""
    size = end - start
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    few, small, low = min(count, _MAX16), min(size, _MAX32), min(start, _MAX32)
    return wide + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, few, few, small, low, 0)
