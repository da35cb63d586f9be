"""safetensors both ways, against the safetensors package."""

import json
import struct
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from jaxstate.errors import FileError
from jaxstate.io import Raw, load, save

NAMES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 uint16 uint32 uint64 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
).split()


@pytest.fixture(params=NAMES)
def tensor(request):
    dtype = getattr(torch, request.param)
    if dtype is torch.bool:
        return torch.tensor([[True, False], [False, True]])
    return torch.arange(4 * dtype.itemsize, dtype=torch.uint8).reshape(2, -1).view(dtype)


def test_read_every_dtype(tmp_path, same, tensor):
    obj = {"a": tensor, "empty": tensor[:0].clone(), "row": tensor[1].clone()}
    safetensors.torch.save_file(obj, tmp_path / "a")
    ours = load(tmp_path / "a")
    same(dict(ours), {name: obj[name] for name in ours})
    assert set(ours) == set(obj)


def test_write_every_dtype(tmp_path, same, tensor):
    obj = {"z": tensor, "a": tensor[0].clone(), "empty": tensor[:0].clone()}
    torch.save(obj, tmp_path / "a.pt")
    save(load(tmp_path / "a.pt"), tmp_path / "a.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "a.safetensors")
    same(dict(load(tmp_path / "a.safetensors")), obj)
    same({name: load(tmp_path / "a.safetensors")[name] for name in theirs}, theirs)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_zero_dimensions(tmp_path):
    save({"a": np.float64(2) * np.ones(()), "b": np.array(3, ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert theirs["a"].shape == () and theirs["a"].item() == 2 and theirs["b"].item() == 3


def test_an_array_that_is_not_contiguous(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    save(
        {"t": x.T, "s": x[:, ::2], "b": np.broadcast_to(x[0], (2, 3)), "e": x.astype(">f4")},
        tmp_path / "a.safetensors",
    )
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(theirs["t"], x.T) and np.array_equal(theirs["s"], x[:, ::2])
    assert np.array_equal(theirs["b"], [x[0], x[0]]) and np.array_equal(theirs["e"], x)


def test_tied_arrays_are_written_in_full(tmp_path):
    x = np.arange(6, dtype=np.float32)
    save({"a": x, "b": x}, tmp_path / "a.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(theirs["a"], x) and np.array_equal(theirs["b"], x)


def _header(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), 8 + length


def test_layout(tmp_path):
    """Data at a multiple of 64, wide elements first, keys in the order of the dict."""
    path = tmp_path / "a.safetensors"
    obj = {"a": np.ones(3, np.float16), "d": np.ones(2), "c": np.ones(2), "b": np.ones(1, np.float32)}
    save(obj, path)
    header, start = _header(path)
    assert start % 64 == 0 and list(load(path)) == list(obj)
    starts = {name: header[name]["data_offsets"][0] for name in obj}
    assert sorted(starts, key=starts.__getitem__) == ["c", "d", "b", "a"]
    first = path.read_bytes()
    save(obj, path)
    assert path.read_bytes() == first


def test_order_of_the_header_is_kept(tmp_path):
    safetensors.numpy.save_file(
        {"b": np.ones(1, np.float16), "a": np.ones(1, np.float16), "c": np.ones(1)}, tmp_path / "a"
    )
    header, _ = _header(tmp_path / "a")
    assert list(load(tmp_path / "a")) == [name for name in header if name != "__metadata__"]


def test_metadata_is_kept(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "a", metadata={"step": "3", "ü": "ß"})
    ours = load(tmp_path / "a")
    assert type(ours) is OrderedDict and ours.__metadata__ == {"step": "3", "ü": "ß"}
    save(ours, tmp_path / "b.safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.metadata() == {"step": "3", "ü": "ß"}
    save(ours, tmp_path / "b.pt")
    assert list(torch.load(tmp_path / "b.pt")) == ["a"]


def test_views_are_read_only_and_not_copied(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(4), "b": np.ones(4)}, tmp_path / "a")
    ours = load(tmp_path / "a")
    with pytest.raises(ValueError, match="read-only"):
        ours["a"][0] = 1
    assert ours["b"].ctypes.data - ours["a"].ctypes.data == 32


def test_six_bit_floats_are_raw(tmp_path):
    _write(tmp_path / "a", {"a": {"dtype": "F6_E2M3", "shape": [2, 2], "data_offsets": [0, 3]}}, b"abc")
    raw = load(tmp_path / "a")["a"]
    assert isinstance(raw, Raw) and (raw.dtype, raw.shape, raw.data.tobytes()) == ("F6_E2M3", (2, 2), b"abc")


@pytest.mark.parametrize(
    "obj, message",
    [
        ([np.ones(1)], "dict of arrays, not a list.*pt"),
        ({"a": {"b": np.ones(1)}}, r'obj\["a"\]: a dict, and safetensors holds arrays only.*pt'),
        ({"a": 3}, r'obj\["a"\]: a int'),
        ({1: np.ones(1)}, "key"),
        ({"__metadata__": np.ones(1)}, "key"),
        ({"\udc80": np.ones(1)}, "key"),
        ({"a": np.ones(1, np.complex128)}, r'obj\["a"\].*no dtype complex128'),
        ({"a": np.ones(1, "datetime64[s]")}, r'obj\["a"\].*datetime64'),
    ],
)
def test_what_the_format_lacks_is_refused(tmp_path, obj, message):
    with pytest.raises(FileError, match=message):
        save(obj, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def _write(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "hole": ({"a": {**F32, "data_offsets": [4, 12]}}, 12),
    "trailing bytes": ({"a": F32}, 9),
    "cut off": ({"a": F32}, 7),
    "overlap": ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, 12),
    "two over one": ({"a": F32, "b": F32}, 8),
    "backwards": ({"a": {**F32, "data_offsets": [8, 0]}}, 8),
    "negative": ({"a": {**F32, "shape": [-1, -2]}}, 8),
    "wrong shape": ({"a": {**F32, "shape": [3]}}, 8),
    "overflow": ({"a": {**F32, "shape": [2**62, 4, 2**62]}}, 8),
    "far overflow": ({"a": {**F32, "shape": [2**62] * 64}}, 8),
    "empty and huge": ({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, 0),
    "bool as size": ({"a": {**F32, "shape": [True, 2]}}, 8),
    "float as size": (b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', 8),
    "infinite size": (b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}', 8),
    "long number": (b'{"a":{"dtype":"F32","shape":[' + b"1" * 9000 + b'],"data_offsets":[0,8]}}', 8),
    "unknown dtype": ({"a": {**F32, "dtype": "F99"}}, 8),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "entry is a list": ({"a": [1]}, 8),
    "key twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        1,
    ),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0),
    "metadata a list": ({"__metadata__": []}, 0),
    "not utf-8": (b'{"\xff":1}', 0),
    "not json": (b"{oops}", 0),
    "odd nibbles": ({"a": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}, 3),
    "surplus": (b"{} x", 0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path, name):
    header, size = DAMAGED[name]
    _write(tmp_path / "a", header, bytes(size))
    with pytest.raises(FileError, match=r"/a: "):
        load(tmp_path / "a")


def test_a_header_longer_than_the_file(tmp_path):
    for length in (3, 100, 99_999_999, 2**63):
        (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(FileError):
            load(tmp_path / "a")
