"""Files from before torch 1.6, bit for bit as torch reads and writes them."""

import io
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hostile_files import stream, tensor, text

from jaxstate.errors import FileError
from jaxstate.io import Global, Opaque, Storage, load, save

pytestmark = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support", "ignore:.*quantized tensor", "ignore:TypedStorage", "ignore:Sparse"
)
WITHOUT_A_STORAGE_CLASS = {"complex32", "uint16", "uint32", "uint64"}


def legacy(obj, **options):
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=False, **options)
    return file.getvalue()


@pytest.fixture
def written(tmp_path):
    """What torch reads of an object that jaxstate wrote; twice, so that equal bytes are seen."""

    def roundtrip(obj):
        save(obj, tmp_path / "one.pt", format="legacy")
        save(obj, tmp_path / "two.pt", format="legacy")
        assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
        assert not zipfile.is_zipfile(tmp_path / "one.pt")
        return torch.load(tmp_path / "one.pt", weights_only=True)

    return roundtrip


def has_class(dtype):
    name = str(dtype).removeprefix("torch.")
    return not name.startswith(("float8", "float4", "bits")) and name not in WITHOUT_A_STORAGE_CLASS


def test_every_dtype(loaded, same, every_dtype):
    """torch writes the dtypes that have no storage class, and reads only the others back."""
    obj = {"a": every_dtype, "t": every_dtype.T, "row": every_dtype[1], "empty": every_dtype[:0]}
    ours = loaded(legacy(obj))
    same(ours, obj)
    if has_class(every_dtype.dtype):
        same(ours, torch.load(io.BytesIO(legacy(obj)), weights_only=True))


def test_views_keep_strides_and_memory(loaded, same):
    x = torch.arange(24.0).reshape(2, 3, 4)
    views = {"x": x, "t": x.permute(2, 0, 1), "s": x[1:, ::2, 1:3], "e": x[:1, :1].expand(5, 7, 4)}
    raw = legacy({**views, "again": x})
    ours, theirs = loaded(raw), torch.load(io.BytesIO(raw), weights_only=True)
    same(ours, theirs)
    for key, value in theirs.items():
        assert ours[key].strides == tuple(4 * s for s in value.stride())
        assert ours[key].ctypes.data - ours["x"].ctypes.data == value.data_ptr() - theirs["x"].data_ptr()
    assert ours["again"] is ours["x"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(loaded, same, net, protocol):
    obj = {"net": net.state_dict(), "int": 2**70, "bytes": b"\0\xff", "set": {1, "a"}, "n": np.arange(3)}
    raw = legacy(obj, pickle_protocol=protocol)
    ours, theirs = loaded(raw), torch.load(io.BytesIO(raw), weights_only=False)
    assert np.array_equal(ours.pop("n"), theirs.pop("n"))
    same(ours, theirs)


def test_checkpoints(loaded, same, net, trained):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    trained(net, optimizer, 2)
    raw = legacy({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    same(loaded(raw), torch.load(io.BytesIO(raw), weights_only=True))


def test_tensors_without_a_numpy_form(loaded):
    obj = {
        "q": torch.quantize_per_tensor(torch.arange(3.0), 0.5, 1, torch.qint8),
        "coo": torch.eye(3).to_sparse(),
        "meta": torch.empty(2, 3, device="meta"),
        "conj": torch.tensor([1 + 2j]).conj(),
    }
    ours = loaded(legacy(obj))
    assert ours["q"].args[0].data.tolist() == obj["q"].int_repr().tolist()
    assert ours["coo"].args[1][1].tolist() == [1, 1, 1] and ours["meta"].args[1] == (2, 3)
    assert ours["conj"].tolist() == [1 - 2j]
    storage = loaded(legacy(torch.arange(3, dtype=torch.int16).untyped_storage()))
    assert isinstance(storage, Storage) and storage.data.tolist() == [0, 0, 1, 0, 2, 0]


def test_numbers_are_little_endian_whatever_the_file_says(loaded):
    raw = legacy({"a": torch.arange(3.0), "i": torch.arange(2)})
    at = raw.index(b"\x88", raw.index(b"little_endian"))
    other = raw[:at] + b"\x89" + raw[at + 1 :]
    theirs = torch.load(io.BytesIO(other), weights_only=True)
    assert loaded(other)["a"].tolist() == theirs["a"].tolist() == [0, 1, 2]
    assert loaded(other)["i"].tolist() == theirs["i"].tolist() == [0, 1]


def test_a_storage_that_is_a_view_of_another(loaded):
    """As torch before 0.4 wrote them."""
    view = b"(" + text("9") + b"K\x02K\x03t"
    content = np.arange(6, dtype="f4").tobytes()
    raw = stream(tensor(offset=1, numel=6, view=view), [("0", 6, content)])
    theirs = torch.load(io.BytesIO(raw), weights_only=True)
    assert loaded(raw).tolist() == theirs.tolist() == [3, 4]


def test_from_a_gpu_and_from_the_first_torches(loaded):
    """Storages of other devices are bytes like all others; `_rebuild_tensor` has four arguments."""
    content = np.arange(2, dtype="f4").tobytes()
    pkl = tensor(kind=b"torch.cuda\nFloatStorage", view=b"N").replace(text("cpu"), text("cuda:0"))
    raw = stream(pkl, [("0", 2, content)])
    theirs = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
    assert loaded(raw).tolist() == theirs.tolist() == [0, 1]
    raw = stream(tensor(view=b"N").replace(b"_v2", b"").replace(b"\x89N", b""), [("0", 2, content)])
    theirs = torch.load(io.BytesIO(raw), weights_only=True)
    assert loaded(raw).tolist() == theirs.tolist() == [0, 1]


def test_text_of_python_2(loaded):
    raw = stream(b"\x80\x02}U\x06weightU\x03abcs.", [])
    assert loaded(raw) == torch.load(io.BytesIO(raw), weights_only=True) == {"weight": "abc"}


def test_a_module_names_its_class_and_shows_its_source(loaded, net):
    ours = loaded(legacy(net))
    assert isinstance(ours, Opaque) and ours.name == "torch.nn.modules.container.Sequential"
    cls = b"(" + text("module") + b"cos\nsystem\n" + text("file") + text("1/0") + b"tQ)\x81."
    assert loaded(stream(b"\x80\x02" + cls, [])).name == "os.system"


def test_unaligned_values_are_usable(loaded):
    """Nothing in this format aligns a storage."""
    x = torch.arange(7, dtype=torch.bfloat16)
    for pad in range(3):
        ours = loaded(legacy({"a" * (pad + 1): x}))["a" * (pad + 1)]
        assert np.array_equal(ours.astype(np.float32), x.float().numpy())
        assert (jnp.asarray(ours) + 1).tolist() == (x + 1).tolist()


def test_a_legacy_file_is_read_in_either_way(tmp_path):
    (tmp_path / "a.pt").write_bytes(legacy({"w": torch.arange(4.0)}))
    for options in ({"mmap": True}, {"mmap": False}, {"verify": True}):
        ours = load(tmp_path / "a.pt", **options)["w"]
        assert ours.tolist() == [0, 1, 2, 3] and not ours.flags.writeable


# Written.


def test_torch_to_jaxstate_to_torch(written, loaded, same, tmp_path, every_dtype):
    obj = {"a": every_dtype, "t": every_dtype.T, "empty": every_dtype[:0], "zero": every_dtype[0, 0]}
    if not has_class(every_dtype.dtype):
        with pytest.raises(FileError, match=rf'obj\["a"\].*{every_dtype.dtype}.*format="pt"'):
            written(loaded(legacy(obj)))
        return
    ours = loaded(legacy(obj))
    theirs = written(ours)
    same(ours, theirs)
    written(obj)  # torch tensors directly
    same(load(tmp_path / "one.pt"), theirs)
    assert theirs["a"].data_ptr() == theirs["t"].data_ptr() and theirs["t"].stride() == obj["t"].stride()


def test_a_checkpoint_resumes(written, loaded, net, trained):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    trained(net, optimizer, 3)
    theirs = written(loaded(legacy({"net": net.state_dict(), "opt": optimizer.state_dict()})))
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    assert str(twin.load_state_dict(theirs["net"], strict=True)) == "<All keys matched successfully>"
    again = torch.optim.AdamW(twin.parameters(), lr=0.5)
    again.load_state_dict(theirs["opt"])
    trained(net, optimizer, 2, seed=5)
    trained(twin, again, 2, seed=5)
    assert all(map(torch.equal, net.state_dict().values(), twin.state_dict().values()))


def test_values_of_jax_and_numpy(written):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    step = jnp.full((), 3.0)
    theirs = written({"x": x, "t": x.T, "row": x[1], "bf": jnp.full(3, 2.5, jnp.bfloat16), 0: step, 1: step})
    assert theirs["t"].data_ptr() == theirs["x"].data_ptr() and theirs["row"].tolist() == [4, 5, 6, 7]
    assert theirs["bf"].dtype is torch.bfloat16 and theirs["bf"].tolist() == [2.5] * 3
    theirs[0] += 1
    assert (theirs[0].item(), theirs[1].item()) == (4, 3)


def test_leaves(written, same):
    obj = {
        "ints": [0, -1, 2**70],
        "b": b"\xff",
        "s": {"b", 1},
        "nan": float("nan"),
        3: ((1,), None, True, 1j),
    }
    same(written(obj), obj)


def test_records_are_written_back(written, loaded):
    obj = {
        "q": torch.quantize_per_tensor(torch.arange(3.0), 0.5, 1, torch.qint8),
        "coo": torch.eye(3).to_sparse(),
        "storage": torch.arange(3.0).storage(),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
    }
    theirs = written(loaded(legacy(obj)))
    assert torch.equal(theirs["q"].int_repr(), obj["q"].int_repr()) and theirs["q"].q_zero_point() == 1
    assert torch.equal(theirs["coo"].to_dense(), torch.eye(3))
    assert theirs["storage"].tolist() == [0, 1, 2]
    assert (theirs["device"], theirs["dtype"]) == (torch.device("cuda:1"), torch.bfloat16)


def test_what_torch_could_not_read_is_refused(tmp_path):
    untyped = Storage(Global("torch.storage", "UntypedStorage"), "0", 2, np.zeros(2, np.uint8))
    for value, message in (
        (untyped, "without a dtype"),
        (np.ones(2, np.uint16), "uint16"),
        (object(), "object"),
    ):
        with pytest.raises(FileError, match=rf'obj\["a"\]\[1\].*{message}'):
            save({"a": [1, value]}, tmp_path / "a.pt", format="legacy")
    assert list(tmp_path.iterdir()) == []


def test_the_stream_is_torchs_own(written, tmp_path):
    """Pickle for pickle, what Python's pickletools and torch see in torch's own file."""
    x = torch.arange(3.0)
    written({"a": x})
    heads = [io.BytesIO((tmp_path / "one.pt").read_bytes()), io.BytesIO(legacy({"a": x}))]
    assert [pickle.load(heads[0]) for _ in range(3)] == [pickle.load(heads[1]) for _ in range(3)]
    assert heads[0].getvalue()[-20:] == heads[1].getvalue()[-20:]
