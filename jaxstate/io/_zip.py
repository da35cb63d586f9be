"""Reads the zip archive that a torch file is: where each entry's bytes lie, and nothing else.

Parsed by hand from the central directory, because Python's `zipfile` and torch's own reader disagree on
prefixes, duplicates and sizes, and a file that two readers see differently is refused here. The layout is
that of PKWARE's APPNOTE, sections 4.3.7 to 4.3.16.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxstate.arrays.checksum import crc32
from jaxstate.errors import FileError

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

STORED, DEFLATED = 0, 8
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_ENCRYPTED = 1
_PIECE = 1 << 20

MAX_INFLATED = 64 << 20
"""Bytes that compressed entries may unfold to, all together, beyond four times the size of the file."""


class Entry(NamedTuple):
    """One entry: its name, how it is stored, and where its payload lies in the file."""

    name: str
    method: int
    crc: int
    start: int
    stored: int
    size: int


def entries(data: np.ndarray) -> Mapping[str, Entry]:
    """The entries of an archive by their names, in the order of the central directory.

    Args:
        data: the whole file, as uint8.

    Raises:
        FileError: damaged; or entries that overlap, repeat a name, are encrypted or split over disks.
    """
    start, end, count = _directory(data)
    headers = list(_headers(bytes(data[start:end]), count))
    _check_names([name for name, *_ in headers])
    found = [_located(data, header, start) for header in headers]
    _check_disjoint([span for _, span in found])
    return MappingProxyType({entry.name: entry for entry, _ in found})


def content(data: np.ndarray, entry: Entry, limit: int) -> bytes:
    """The bytes of a small entry, inflated where they are deflated.

    Raises:
        FileError: more than `limit` bytes, or not as many as announced.
    """
    if entry.size > limit:
        raise FileError(f"entry {entry.name!r} has {entry.size} bytes; no more than {limit} are read")
    raw = bytes(data[entry.start : entry.start + entry.stored])
    if entry.method == DEFLATED:
        raw = _inflated(raw, entry)
    elif entry.method != STORED:
        raise FileError(
            f"entry {entry.name!r} is compressed by method {entry.method}, which torch cannot read"
        )
    if len(raw) != entry.size:
        raise FileError(f"entry {entry.name!r} announces {entry.size} bytes and holds {len(raw)}")
    return raw


def stored(data: np.ndarray, entry: Entry) -> np.ndarray:
    """The bytes of an entry as they lie in the file, without a copy.

    Raises:
        FileError: the entry is compressed.
    """
    if entry.method != STORED or entry.stored != entry.size:
        raise FileError(
            f"entry {entry.name!r} is compressed where torch never compresses; unpack the file with unzip "
            "and pack it with `zip -0`"
        )
    return data[entry.start : entry.start + entry.size]


def verify(data: np.ndarray) -> None:
    """Compare the CRC-32 of every entry with the one that the directory announces.

    Raises:
        FileError: the entries that differ, by name; or the archive was written without checksums.
    """
    found = [entry for entry in entries(data).values() if entry.size]
    if found and not any(entry.crc for entry in found):
        raise FileError(
            "the archive was written without checksums (torch.serialization.set_crc32_options(False)), so "
            "that nothing can be verified; load it with verify=False"
        )
    if sum(entry.size for entry in found if entry.method != STORED) > MAX_INFLATED + 4 * len(data):
        raise FileError(f"the entries are compressed and announce far more than the file's {len(data)} bytes")
    differing = [entry.name for entry in found if _crc(data, entry) != entry.crc]
    if differing:
        more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise FileError(
            f"the bytes of {', '.join(differing[:8])}{more} are not those that were written: their checksum "
            "(CRC-32) differs. Fetch the file again"
        )


def _crc(data: np.ndarray, entry: Entry) -> int | None:
    """The checksum of the bytes that the entry holds, piece by piece; None for a method that is not read."""
    raw = data.data[entry.start : entry.start + entry.stored]
    pieces = (raw[at : at + _PIECE] for at in range(0, len(raw), _PIECE))
    if entry.method == DEFLATED:
        pieces = _inflated_pieces(pieces, entry.size)
    elif entry.method != STORED:
        return None
    crc = 0
    for piece in pieces:
        crc = crc32(piece, crc)
    return crc


def _inflated_pieces(pieces: Iterable[memoryview], left: int) -> Iterable[bytes]:
    """What the pieces inflate to, until it is more than is left."""
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    for rest in pieces:
        while len(rest) and left >= 0:
            yield (piece := _decompressed(inflating, rest))
            left, rest = left - len(piece), inflating.unconsumed_tail


def _decompressed(inflating, raw: bytes | memoryview) -> bytes:
    try:
        return inflating.decompress(raw, _PIECE)
    except zlib.error as error:
        raise FileError(f"a compressed entry cannot be inflated: {error}") from error


def _inflated(raw: bytes, entry: Entry) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, entry.size + 1)
    except zlib.error as error:
        raise FileError(f"entry {entry.name!r} cannot be inflated: {error}") from error


def _directory(data: np.ndarray) -> tuple[int, int, int]:
    """Start and end of the central directory, and the number of its entries."""
    tail = bytes(data[-(_END.size + _MAX16) :])
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise FileError("the zip archive has no end record: the file is cut off. Fetch it again")
    at = len(data) - len(tail) + place
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, place)
    if at + _END.size + comment != len(data):
        raise FileError(f"the zip archive ends at byte {at + _END.size + comment}, the file at {len(data)}")
    end = at
    if at >= _LOCATOR64.size and bytes(data[at - _LOCATOR64.size : at][:4]) == b"PK\6\7":
        end, disk, first_disk, here, count, size, start = _directory64(data, at - _LOCATOR64.size)
    if disk or first_disk or here != count:
        raise FileError("the zip archive is split over several files")
    if start + size != end:
        raise FileError(
            f"the zip directory of {size} bytes at {start} does not end at its end record ({end})"
        )
    return start, end, count


def _directory64(data: np.ndarray, at: int) -> tuple[int, int, int, int, int, int, int]:
    _, locator_disk, place, _ = _LOCATOR64.unpack(bytes(data[at : at + _LOCATOR64.size]))
    if locator_disk or place + _END64.size > at:
        raise FileError("the zip64 end record is not where its locator says")
    record = _END64.unpack(bytes(data[place : place + _END64.size]))
    signature, length, _, _, disk, first_disk, here, count, size, start = record
    if signature != b"PK\6\6" or place + 12 + length != at:
        raise FileError("the zip64 end record is damaged")
    return place, disk, first_disk, here, count, size, start


_Header = tuple[str, int, int, int, int, int]


def _headers(directory: bytes, count: int) -> Iterable[_Header]:
    """(name, method, crc, stored, size, offset of the local header) of each entry."""
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory) or directory[at : at + 4] != b"PK\1\2":
            raise FileError(f"the zip directory announces {count} entries and holds fewer")
        fields = _CENTRAL.unpack_from(directory, at)
        _, _, _, flags, method, _, _, crc, stored, size, name, extra, comment, disk, _, _, offset = fields
        body = directory[at + _CENTRAL.size : at + _CENTRAL.size + name + extra + comment]
        at += _CENTRAL.size + name + extra + comment
        if len(body) != name + extra + comment or flags & _ENCRYPTED or disk not in (0, _MAX16):
            raise FileError("an entry of the zip directory is cut off, encrypted, or in another file")
        size, stored, offset = _wide(body[name : name + extra], size, stored, offset)
        yield _name(body[:name]), method, crc, stored, size, offset
    if at != len(directory):
        raise FileError(f"the zip directory announces {count} entries and holds more")


def _name(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"the name {raw[:80]!r} in the zip directory is not UTF-8") from error


def _wide(extra: bytes, *values: int) -> list[int]:
    """The values, with those that do not fit 32 bits taken from the zip64 field (id 1), in this order."""
    field = _extra_field(extra, 1)
    wide = []
    for value in values:
        if value == _MAX32:
            if len(field) < 8:
                raise FileError("an entry of the zip directory lacks its zip64 sizes")
            (value,), field = struct.unpack("<Q", field[:8]), field[8:]
        wide.append(value)
    return wide


def _extra_field(extra: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def _located(data: np.ndarray, header: _Header, directory: int) -> tuple[Entry, tuple[int, int]]:
    """The entry, and the span of the file that it takes with its local header."""
    name, method, crc, stored, size, offset = header
    if offset + _LOCAL.size > directory:
        raise FileError(f"entry {name!r} starts at byte {offset}, in the zip directory")
    local = _LOCAL.unpack(bytes(data[offset : offset + _LOCAL.size]))
    start = offset + _LOCAL.size + local[-2] + local[-1]
    raw_name = bytes(data[offset + _LOCAL.size : offset + _LOCAL.size + local[-2]])
    if local[0] != b"PK\3\4" or raw_name != name.encode() or local[3] != method:
        raise FileError(f"entry {name!r} differs between the zip directory and its own header")
    if start + stored > directory:
        raise FileError(f"entry {name!r} has {stored} bytes at {start}, which reaches into the zip directory")
    return Entry(name, method, crc, start, stored, size), (offset, start + stored)


def _check_names(names: list[str]) -> None:
    seen = set()
    for name in names:
        if name.casefold() in seen:
            raise FileError(
                f"the zip archive has several entries named {name!r}; readers disagree which counts"
            )
        seen.add(name.casefold())


def _check_disjoint(spans: list[tuple[int, int]]) -> None:
    end = 0
    for start, stop in sorted(spans):
        if start < end:
            raise FileError(f"two entries of the zip archive overlap at byte {start}")
        end = stop
    if spans and min(spans)[0] != 0:
        raise FileError("the zip archive is preceded by other bytes")
