"""Archives that someone made to do harm: each gives one FileError, or an inert value, and at once."""

import io
import struct
import zipfile
import zlib

import pytest
import torch
from hostile_files import archive, good, tensor

pytestmark = pytest.mark.usefixtures("at_once")


def test_prefix_suffix_and_truncation(refused):
    refused(b"MZ" + good())
    refused(b"PK\3\4" + good())
    refused(good() + b"\0", "ends at byte")
    for cut in range(0, len(good()), 7):
        refused(good()[:cut])


def test_a_comment_is_harmless(loaded):
    file = io.BytesIO(good())
    with zipfile.ZipFile(file, "a") as out:
        out.comment = b"made by hand"
    assert loaded(file.getvalue()).tolist() == [0, 1]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data.pkl", "DATA.pkl", "data/0"])
def test_duplicates(refused, name):
    refused(archive(tensor(), [bytes(8)], **{name: b"\x80\x02N."}), "several entries")


@pytest.mark.parametrize("name", ["data/../0", "data/a/b", "data/", "data/a b", "data/\u00e9"])
def test_names_of_storages(refused, name):
    refused(archive(tensor(), [bytes(8)], **{name: b"x"}), "not the name of a storage")


def test_two_roots(refused):
    refused(archive(tensor(), [bytes(8)], order=lambda e: [*e, ("other/data.pkl", b"")]), "outside")


@pytest.mark.parametrize("entry, message", [(0, "announces|has"), (1, "compressed")])
def test_deflate_bombs(refused, entry, message):
    pickles = tensor(numel=1 << 26) if entry else b"\x80\x02" + b"N0" * (1 << 20) + b"N."
    entries = [("a/data.pkl", pickles), ("a/data/0", bytes(1 << 28))][: entry + 1]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for name, raw in [*entries, ("a/version", b"3")]:
            out.writestr(name, raw)
    refused(file.getvalue(), message)


def test_an_inflated_entry_of_another_size(refused):
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packed.compress(bytes(1 << 24)) + packed.flush()
    file = bytearray(archive(raw))
    at = file.find(b"PK\1\2")
    for field in (8, at + 10):
        file[field : field + 2] = struct.pack("<H", 8)
    refused(bytes(file), "announces")
    file[at + 24 : at + 28] = struct.pack("<L", 1 << 30)
    refused(bytes(file), "no more than")


def _directory_field(offset, format, value, entry=1):
    """The good file with one field of one entry of its directory changed."""
    file = bytearray(good())
    at = -1
    for _ in range(entry + 1):
        at = file.find(b"PK\1\2", at + 1)
    file[at + offset : at + offset + struct.calcsize(format)] = struct.pack(format, value)
    return bytes(file)


def test_directory_fields(refused, loaded):
    assert loaded(_directory_field(16, "<L", 0)).tolist() == [0, 1]
    refused(_directory_field(42, "<L", 0), "differs")
    refused(_directory_field(42, "<L", 0xFFFFFFF0), "in the zip directory")
    refused(_directory_field(42, "<L", 0xFFFFFFFF), "zip64")
    refused(_directory_field(20, "<L", 4), "compressed")
    refused(_directory_field(20, "<L", 1 << 30), "reaches")
    refused(_directory_field(8, "<H", 1), "encrypted")
    refused(_directory_field(10, "<H", 8), "differs")
    refused(_directory_field(28, "<H", 60000), "cut off")
    refused(_directory_field(34, "<H", 3), "another file")


def test_overlapping_entries(refused):
    """The first entry's bytes reach over the second's header."""
    length = len(tensor())
    file = bytearray(good())
    at = file.find(b"PK\1\2")
    file[at + 20 : at + 28] = struct.pack("<2L", length + 20, length + 20)
    refused(bytes(file), "overlap")


def test_end_records(refused):
    file = bytearray(good())
    at = file.rfind(b"PK\5\6")
    for offset, format, value in [
        (8, "<H", 9),
        (10, "<H", 9),
        (12, "<L", 9),
        (16, "<L", 9),
        (4, "<H", 1),
        (20, "<H", 5),
    ]:
        changed = bytearray(file)
        changed[at + offset : at + offset + struct.calcsize(format)] = struct.pack(format, value)
        refused(bytes(changed))
    for value in (2, 5):
        changed = bytearray(file)
        changed[at + 8 : at + 12] = struct.pack("<2H", value, value)
        refused(bytes(changed), "announces")


def test_byteorder(refused):
    refused(archive(tensor(), [bytes(8)], byteorder=b"middle"), "byteorder")


def test_torch_accepts_what_the_tests_call_good(tmp_path):
    (tmp_path / "good.pt").write_bytes(good())
    assert torch.load(tmp_path / "good.pt").tolist() == [0, 1]
