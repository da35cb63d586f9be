"""The checksum is zlib's, whichever library takes it."""

import sys
import zlib
from importlib import import_module, reload

import numpy as np
import pytest


@pytest.mark.parametrize("library", ["isal", "zlib"])
def test_it_is_zlibs(library, monkeypatch):
    checksum = import_module("jaxstate.arrays.checksum")
    if library == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    found = reload(checksum).crc32
    monkeypatch.undo()
    reload(checksum)
    assert (found is zlib.crc32) == (library == "zlib")
    for size in (0, 1, 7, 5000, 1 << 20):
        data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        for start in (0, 1, 0xFFFFFFFF):
            assert found(data.data, start) == found(data, start) == zlib.crc32(data, start)
