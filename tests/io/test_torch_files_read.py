"""Files that torch.save wrote, read bit for bit as torch.load reads them."""

import argparse
import collections
import pathlib
import subprocess
import sys
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
import torch

from jaxstate.errors import FileError
from jaxstate.io import Global, Opaque, Raw, Storage, load, save

pytestmark = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support", "ignore:.*quantized tensor", "ignore:TypedStorage"
)


@pytest.fixture
def saved(tmp_path):
    """What jaxstate and torch read of an object that torch.save wrote."""

    def roundtrip(obj, weights_only=True, **options):
        torch.save(obj, tmp_path / "file.bin", **options)
        return load(tmp_path / "file.bin"), torch.load(tmp_path / "file.bin", weights_only=weights_only)

    return roundtrip


def test_every_dtype(saved, same, every_dtype):
    same(
        *saved({"a": every_dtype, "t": every_dtype.T, "row": every_dtype[1], "flat": every_dtype.reshape(-1)})
    )


def test_dtypes_without_numpy_are_raw(saved):
    ours, _ = saved({"a": torch.zeros(2, 3, dtype=torch.complex32)})
    assert isinstance(ours["a"], Raw) and ours["a"].dtype == "complex32"
    assert ours["a"].shape == (2, 3) and ours["a"].data.shape == (2, 3, 4)


def test_views_keep_strides_and_memory(saved, same):
    x = torch.arange(24.0).reshape(2, 3, 4)
    obj = {
        "x": x,
        "t": x.permute(2, 0, 1),
        "s": x[1:, ::2, 1:3],
        "e": x[:1, :1].expand(5, 7, 4),
        "x2": x,
        "v": x[:],
    }
    ours, theirs = saved(obj)
    same(ours, theirs)
    for key, tensor in theirs.items():
        assert ours[key].strides == tuple(4 * s for s in tensor.stride()), key
        assert ours[key].ctypes.data - ours["x"].ctypes.data == tensor.data_ptr() - theirs["x"].data_ptr(), (
            key
        )
    assert ours["x2"] is ours["x"] and ours["v"] is not ours["x"]


def test_shapes_at_the_edges(saved, same):
    empty = {"e": torch.empty(0, 3), "e2": torch.empty(2, 0), "cut": torch.arange(5)[5:]}
    ours, theirs = saved({"zero": torch.tensor(1.5), "one": torch.ones(1, 1, 1), **empty})
    same(ours, theirs)
    assert isinstance(ours["zero"], np.ndarray) and ours["zero"].shape == ()


def test_conjugated_and_negated(saved, same):
    c = torch.complex(torch.arange(3.0), torch.ones(3))
    ours, theirs = saved({"conj": c.conj(), "neg": c.clone().conj().imag, "plain": c})
    assert theirs["conj"].is_conj() and theirs["neg"].is_neg()
    same(ours, theirs)


def test_tensors_of_one_shape_stay_apart(saved, same):
    same(*saved({f"layer{i}.weight": torch.full((3, 3), float(i)) for i in (11, 2, 10, 1)}))


def test_parameters(saved, same):
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.note = "kept by torch"
    tagged = torch.ones(2)
    tagged.note = "kept by torch"
    same(*saved([torch.nn.Parameter(torch.ones(2, 2)), parameter, tagged, torch.nn.Buffer(torch.ones(1))]))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(saved, same, net, protocol):
    obj = {"net": net.state_dict(), "int": 2**70, "bytes": b"\0\xff", "text": "ü" * 300, "set": {1, "a"}}
    same(*saved(obj, weights_only=False, pickle_protocol=protocol))


def test_module_with_metadata(saved, same, net):
    ours, theirs = saved(net.state_dict())
    assert ours._metadata["1"] == {"version": 2}
    same(ours, theirs)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Rprop", "ASGD", "NAdam"])
def test_optimizers(saved, same, net, trained, kind):
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.1)
    trained(net, optimizer, 2)
    same(*saved({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}))


def test_leaves(saved, same):
    counter = collections.Counter({30: 1, 80: 2})
    floats = [0.1, float("inf"), float("nan"), -0.0, 5e-324]
    ints = [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**63, -(2**63), 2**70, -(2**2000)]
    other = [
        None,
        True,
        False,
        "",
        "ü\udc80",
        b"ab\xff",
        bytearray(b"xy"),
        1j - 2,
        {1},
        torch.Size([2, 3]),
        counter,
    ]
    same(
        *saved(
            {
                "floats": floats,
                "ints": ints,
                "other": other,
                "nested": ([{}, []], (), ((1,),)),
                3: {None: 1.5},
            }
        )
    )


def test_empty_bytes(saved):
    assert saved({"b": b"", "a": bytearray()}, weights_only=False)[0] == {"b": b"", "a": bytearray()}


def test_one_object_twice_is_one_object(saved):
    shared = [1, 2]
    ours, _ = saved({"a": shared, "b": (shared, shared)})
    assert ours["a"] is ours["b"][0] is ours["b"][1]


def test_device_and_dtype_are_records(saved):
    ours, _ = saved({"device": torch.device("cuda:1"), "dtype": torch.bfloat16})
    assert isinstance(ours["device"], Opaque) and (ours["device"].name, ours["device"].args) == (
        "torch.device",
        ("cuda", 1),
    )
    assert isinstance(ours["dtype"], Global) and ours["dtype"].name == "torch.bfloat16"


class Custom:
    def __init__(self):
        self.lr, self.weight = 0.5, torch.ones(2)


def test_classes_of_others_stay_opaque(saved):
    obj = {"args": argparse.Namespace(lr=0.1), "path": pathlib.PurePosixPath("a/b"), "own": Custom()}
    ours, _ = saved(
        {**obj, "default": collections.defaultdict(list, a=1), "w": torch.ones(3)}, weights_only=False
    )
    assert ours["args"].state == {"lr": 0.1}
    assert ours["path"].name == "pathlib.PurePosixPath" and ours["path"].args == ("a", "b")
    assert ours["own"].name.endswith("Custom") and ours["own"].state["weight"].tolist() == [1, 1]
    assert ours["default"].name == "collections.defaultdict" and ours["default"].items == [("a", 1)]
    assert ours["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_scalars_and_arrays(saved, protocol):
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3)[:, :2]), np.arange(3, dtype=">i4")]
    obj = {"s": np.float64(0.5), "i": np.int32(-3), "b": np.True_, "arrays": arrays, "again": arrays[0]}
    ours, theirs = saved(obj, weights_only=False, pickle_protocol=protocol)
    for key in ("s", "i", "b"):
        assert type(ours[key]) is type(theirs[key]) and ours[key] == theirs[key]
    for one, other in zip(ours["arrays"], theirs["arrays"], strict=True):
        assert one.dtype == other.dtype.newbyteorder("=") and np.array_equal(one, other)
    assert ours["again"] is ours["arrays"][0]


def test_numpy_objects_stay_opaque(saved):
    ours, _ = saved({"o": np.array([{}, []], dtype=object), "w": torch.ones(1)}, weights_only=False)
    assert isinstance(ours["o"], Opaque) and ours["w"].tolist() == [1]


def test_tensors_without_a_numpy_form_stay_opaque(saved):
    obj = {
        "q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(2, 3, device="meta"),
        "w": torch.ones(2),
    }
    ours, _ = saved(obj)
    names = {key: ours[key].name.rpartition(".")[2] for key in ("q", "sparse", "meta")}
    assert names == {
        "q": "_rebuild_qtensor",
        "sparse": "_rebuild_sparse_tensor",
        "meta": "_rebuild_meta_tensor_no_storage",
    }
    assert isinstance(ours["q"].args[0], Storage) and ours["q"].args[0].data.tolist() == [10, 10]
    assert ours["sparse"].args[1][1].tolist() == [1, 1, 1]


def test_other_byte_order(tmp_path, same):
    obj = {
        "a": torch.arange(6.0).reshape(2, 3),
        "c": torch.tensor([1 + 2j]),
        "b": torch.ones(2, dtype=torch.bfloat16),
    }
    obj["tied"] = obj["a"].T
    torch.save(obj, tmp_path / "little.pt")
    with ZipFile(tmp_path / "little.pt") as archive, ZipFile(tmp_path / "big.pt", "w") as out:
        for info in archive.infolist():
            out.writestr(info.filename, _swapped(info.filename, archive.read(info)))
    ours = load(tmp_path / "big.pt")
    same(ours, torch.load(tmp_path / "little.pt"))
    assert np.shares_memory(ours["a"], ours["tied"])


def _swapped(name, content):
    widths = {"data/0": 4, "data/1": 4, "data/2": 2}
    key = name.partition("/")[2]
    if key == "byteorder":
        return b"big"
    return np.frombuffer(content, f"u{widths[key]}").byteswap().tobytes() if key in widths else content


def test_zip_of_another_tool(tmp_path, same, net):
    """Unaligned payloads, an entry deflated that may be, none of torch's optional entries."""
    torch.save(net.state_dict(), tmp_path / "a.pt")
    with ZipFile(tmp_path / "a.pt") as archive, ZipFile(tmp_path / "b.pt", "w") as out:
        for info in archive.infolist():
            if info.filename.split("/")[1] in ("data.pkl", "data", "version"):
                method = ZIP_DEFLATED if info.filename.endswith("data.pkl") else ZIP_STORED
                out.writestr(info.filename, archive.read(info), method)
    same(load(tmp_path / "b.pt"), torch.load(tmp_path / "b.pt"))


def test_views_are_read_only_and_map_the_file(tmp_path):
    torch.save({"w": torch.ones(4), "n": torch.tensor([1j]).conj()}, tmp_path / "a.pt")
    for mmap in (True, False):
        for array in load(tmp_path / "a.pt", mmap=mmap).values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 2
            assert array.ctypes.data % 4 == 0
    assert load(tmp_path / "a.pt")["w"].ctypes.data % 64 == 0


def test_arrays_outlive_the_replaced_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(1000.0)}, path)
    ours = load(path)["w"]
    save({"w": np.zeros(1000, np.float32)}, path)
    assert np.array_equal(ours, np.arange(1000, dtype=np.float32))
    assert not load(path)["w"].any()


def test_without_mmap_the_memory_is_ours(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(10.0)}, path)
    ours = load(path, mmap=False)["w"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert np.array_equal(ours, np.arange(10, dtype=np.float32))


def test_torch_and_safetensors_are_not_imported(tmp_path):
    torch.save({"w": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "a.pt")
    code = (
        "import sys, jaxstate.io as io\n"
        f"obj = io.load({str(tmp_path / 'a.pt')!r}); io.save(obj, {str(tmp_path / 'b.pt')!r})\n"
        "print(sorted({'torch', 'safetensors'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_missing_storage_is_named(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    with ZipFile(tmp_path / "a.pt") as archive, ZipFile(tmp_path / "b.pt", "w") as out:
        for info in archive.infolist():
            if not info.filename.endswith("data/0"):
                out.writestr(info.filename, archive.read(info))
    with pytest.raises(FileError, match="b.pt.*no entry data/0"):
        load(tmp_path / "b.pt")
