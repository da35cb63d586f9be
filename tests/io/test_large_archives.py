"""Archives above 4 GiB, on files with holes: nothing of that size is written or read."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from jaxstate.io import load
from jaxstate.io._dtypes import BY_TORCH
from jaxstate.io._pickle_writer import StorageRef, TensorRef, dump
from jaxstate.io._records import Global
from jaxstate.io._zip_writer import ZipWriter, _central_header, _local_header, _Written

FAR = 5 << 30


@pytest.fixture
def far(tmp_path):
    """A torch file with one tensor that lies behind a hole of 5 GiB."""
    storage = StorageRef(Global("torch", "FloatStorage"), "0", 3)
    ref = TensorRef(storage, BY_TORCH["float32"], 0, (3,), (1,))
    with open(tmp_path / "far.pt", "wb") as file:
        archive = ZipWriter(file)
        archive.add("archive/data.pkl", memoryview(dump(ref, lambda value: value)))
        file.seek(FAR)
        archive.add("archive/data/0", np.arange(3, dtype=np.float32).data.cast("B"))
        archive.add("archive/version", memoryview(b"3\n"))
        archive.finish()
    if (tmp_path / "far.pt").stat().st_blocks > 1 << 12:
        pytest.skip("needs a file system with holes")
    return tmp_path / "far.pt"


def test_entries_behind_4_gib(far):
    assert load(far).tolist() == [0, 1, 2]
    assert torch.load(far, weights_only=True, mmap=True).tolist() == [0, 1, 2]
    with zipfile.ZipFile(far) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("archive/data/0").header_offset >= FAR


@pytest.mark.parametrize("size, offset", [(5 << 30, 0), (5 << 30, 6 << 30), (7, 6 << 30), (0xFFFFFFFF, 3)])
def test_directory_of_an_entry_above_4_gib(size, offset):
    """zipfile reads from our directory the numbers that were put in."""
    header = _central_header(_Written(b"a", 1, size, offset))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(header), 0, 0)
    (info,) = zipfile.ZipFile(io.BytesIO(header + end)).infolist()
    assert (info.file_size, info.compress_size, info.header_offset) == (size, size, offset)


@pytest.mark.parametrize("size", [0, 1, 0xFFFFFFFE, 0xFFFFFFFF, 5 << 30])
@pytest.mark.parametrize("offset", [0, 1, 63, 1000, FAR + 1])
def test_the_payload_is_aligned(size, offset):
    header = _local_header(b"archive/data/0", 0, size, offset)
    assert (offset + len(header)) % 64 == 0
    name, extra = struct.unpack_from("<2H", header, 26)
    assert len(header) == 30 + name + extra
    sizes = struct.unpack_from("<2L", header, 18)
    wide = struct.unpack_from("<2H2Q", header, 30 + name) if size >= 0xFFFFFFFF else (1, 16, size, size)
    assert wide == (1, 16, size, size) and sizes == (min(size, 0xFFFFFFFF),) * 2
