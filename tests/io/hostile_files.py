"""Torch files put together by hand, so that any number in them can be wrong; and what is asked of such."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jaxstate.errors import FileError
from jaxstate.io import load


def archive(pkl, storages=(), root="archive", order=None, **more):
    """A torch file with this pickle, as Python's zipfile writes it."""
    entries = [(f"{root}/data.pkl", pkl), *((f"{root}/data/{i}", raw) for i, raw in enumerate(storages))]
    entries += [(f"{root}/version", b"3\n"), *((f"{root}/{name}", raw) for name, raw in more.items())]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, raw in order(entries) if order else entries:
            out.writestr(name, raw)
    return file.getvalue()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def ints(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    offset=0,
    size=(2,),
    stride=(1,),
    numel=2,
    kind=b"torch\nFloatStorage",
    key="0",
    hooks=b"N",
    tail=b"",
    view=b"",
):
    """The pickle of one tensor, with any numbers."""
    pid = (
        b"(" + text("storage") + b"c" + kind + b"\n" + text(key) + text("cpu") + number(numel) + view + b"tQ"
    )
    args = pid + number(offset) + ints(size) + ints(stride) + b"\x89" + hooks + tail
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + args + b"tR."


MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def stream(pkl, storages=(("0", 2, bytes(8)),), keys=None, version=1001, facts=b"}", tail=b""):
    """A file as of before torch 1.6 with this pickle; of each storage its key, its count and its bytes."""
    named = [key for key, _, _ in storages] if keys is None else keys
    head = MAGIC + pickle.dumps(version, 2) + b"\x80\x02" + facts + b"."
    raw = b"".join(struct.pack("<q", count) + content for _, count, content in storages)
    return head + pkl + pickle.dumps(named, 2) + raw + tail


def repacked(path, change, method=None):
    """The archive with each entry's bytes as `change(name, bytes)` gives them; None leaves the entry out."""
    file = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(file, "w") as out:
        for info in archive.infolist():
            content = change(info.filename.partition("/")[2], archive.read(info))
            if content is not None:
                out.writestr(info, content, info.compress_type if method is None else method)
    return file.getvalue()


def good():
    """A file that is right, for the attacks to change."""
    return archive(tensor(), [np.arange(2, dtype="f4").tobytes()])


def refused(folder, message):
    """Loading the folder gives one error, which names it and says this."""
    with pytest.raises(FileError, match=message) as error:
        load(folder)
    assert str(error.value).startswith(str(folder)) and len(str(error.value)) < 2000


def read_or_refused(path):
    try:
        load(path)
    except FileError as error:
        assert str(error)
