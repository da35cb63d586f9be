"""A file is told by its content; what cannot be read is named, and the error says what to do."""

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxstate.errors import FileError
from jaxstate.io import load, save


def test_content_decides_and_not_the_name(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "torch.safetensors")
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "safe.pt")
    assert load(tmp_path / "torch.safetensors")["a"].dtype == np.float32
    assert load(str(tmp_path / "safe.pt"))["a"].dtype == np.float64


def test_the_name_or_format_decides_what_is_written(tmp_path):
    save({"a": np.ones(1)}, tmp_path / "a.ckpt")
    save({"a": np.ones(1)}, tmp_path / "b.pt", format="safetensors")
    save({"a": np.ones(1)}, tmp_path / "c.safetensors", format="pt")
    heads = [(tmp_path / name).read_bytes()[:2] for name in ("a.ckpt", "b.pt", "c.safetensors")]
    assert heads[0] == heads[2] == b"PK" != heads[1]


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "3")
    return file.getvalue()


def _legacy():
    file = io.BytesIO()
    torch.save({"a": torch.ones(1)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


OTHERS = {
    "before 1.6.*torch.save": _legacy,
    "tar archive": _tar,
    "TorchScript": lambda: _zip("m/data.pkl", "m/constants.pkl", "m/version"),
    "exported program": lambda: _zip("m/archive_format", "m/data/weights/w"),
    "torch.package": lambda: _zip("m/.data/extern_modules", "m/.data/version"),
    "'word/a.xml' stands outside": lambda: _zip("docs/a.xml", "word/a.xml"),
    "no entry 'version'": lambda: _zip("m/data.pkl"),
    "no entry 'data.pkl'": lambda: _zip("a/b/data.pkl", "a/b/version"),
    "empty zip": lambda: _zip(),
    "bare pickle": lambda: pickle.dumps({"a": 1}),
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "GGUF": lambda: b"GGUF" + bytes(100),
    "numpy.load": lambda: b"\x93NUMPY" + bytes(100),
    "gzip": lambda: b"\x1f\x8b" + bytes(100),
    "git lfs pull": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "JSON": lambda: b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
    "HTML": lambda: b"<!DOCTYPE html>",
    "empty file": lambda: b"",
    "begins with b'hello'": lambda: b"hello",
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_formats_are_named(tmp_path, message):
    (tmp_path / "file.pt").write_bytes(OTHERS[message]())
    for mmap in (True, False):
        with pytest.raises(FileError, match=f"file.pt: .*{message}"):
            load(tmp_path / "file.pt", mmap=mmap)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_as_torch_writes_it(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(FileError, match="TorchScript.*state_dict"):
        load(tmp_path / "a.pt")


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(FileError, match="folder.*weights.pt"):
        load(tmp_path)
    with pytest.raises(FileError, match="No such file"):
        load(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="regular"):
        load(tmp_path / "pipe")
    for path in (None, 3, b"x", "a\0b"):
        with pytest.raises(FileError, match="path"):
            load(path)
        with pytest.raises(FileError, match="path"):
            save({}, path)


def test_arguments_of_save(tmp_path):
    with pytest.raises(FileError, match="format must be"):
        save({}, tmp_path / "a", format="gguf")
    with pytest.raises(FileError, match="cannot be written"):
        save({}, tmp_path / "none" / "a.pt")
    with pytest.raises(FileError, match="cannot be written"):
        save({}, tmp_path)
