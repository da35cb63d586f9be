"""A file is told by its content; what cannot be read is named, and the error says what to do."""

import io
import os
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
import torch
from flax.serialization import to_bytes

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


def _tar(name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def _npz():
    file = io.BytesIO()
    np.savez(file, weight=np.ones(3), bias=np.zeros(2))
    return file.getvalue()


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "3")
    return file.getvalue()


OTHERS = {
    "tar archive, as torch before 0.1.10.*weights_only=False": lambda: _tar("storages"),
    "tar archive; unpack it": lambda: _tar("model_config.yaml"),
    "TorchScript archive from before torch 1.4": lambda: _zip("m/model.json", "m/version", "m/tensors/0"),
    "TorchScript archive for mobile": lambda: _zip("m/bytecode.pkl", "m/version", "m/data.pkl"),
    "exported program is due.*holds none": lambda: _zip("m/archive_format", "m/data/weights/w"),
    "exported program is due.*holds a, b": lambda: _zip(
        "m/archive_format", "m/models/b.json", "m/models/a.json"
    ),
    "torch.package": lambda: _zip("m/.data/extern_modules", "m/.data/version"),
    "'word/a.xml' stands outside": lambda: _zip("docs/a.xml", "word/a.xml"),
    "no entry 'version'": lambda: _zip("m/data.pkl"),
    "no entry 'data.pkl'": lambda: _zip("a/b/data.pkl", "a/b/version"),
    "empty zip": lambda: _zip(),
    "numpy.savez": _npz,
    "Keras model": lambda: _zip("metadata.json", "config.json", "model.weights.h5"),
    "TorchServe": lambda: _zip("MAR-INF/MANIFEST.json", "model.pt"),
    "bare pickle": lambda: pickle.dumps({"a": 1}),
    "joblib.load": lambda: b"\x80\x04\x95\x99\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94\x8c",
    "joblib.dump may": lambda: zlib.compress(pickle.dumps({"a": 1})),
    "flax.serialization.msgpack_restore": lambda: to_bytes({"params": {"w": np.ones(3)}, "step": 3}),
    "ONNX model.*onnx.numpy_helper": lambda: b"\x08\x08\x12\x07pytorch\x1a\x062.13.0:\x0f",
    "SavedModel of TensorFlow": lambda: b"\x08\x01\x12\xf6\x92\x01\n\x84\x01",
    "index of a TensorFlow checkpoint": lambda: bytes(40) + bytes.fromhex("57fb808b247547db"),
    "TensorFlow Lite": lambda: b"\x1c\0\0\0TFL3" + bytes(30),
    "flatbuffer": lambda: b"\x1c\0\0\0PTMF" + bytes(30),
    "GGML": lambda: b"tjgg" + bytes(30),
    "lz4": lambda: b"\x04\x22\x4d\x18" + bytes(30),
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
