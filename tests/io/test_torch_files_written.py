"""Files that jaxstate wrote, as torch reads them with weights_only, and as zipfile and unzip see them."""

import collections
import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from jaxstate.errors import FileError
from jaxstate.io import Opaque, Raw, load, save

pytestmark = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support", "ignore:.*quantized tensor", "ignore:TypedStorage"
)


@pytest.fixture(params=[False, True], ids=["read", "mmap"])
def written(request, tmp_path):
    """What torch reads of an object that jaxstate wrote; twice, so that equal bytes are seen."""

    def roundtrip(obj):
        save(obj, tmp_path / "one.pt")
        save(obj, tmp_path / "two.pt")
        assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
        with zipfile.ZipFile(tmp_path / "one.pt") as archive:
            assert archive.testzip() is None
        return torch.load(tmp_path / "one.pt", weights_only=True, mmap=request.param)

    return roundtrip


def test_torch_to_jaxstate_to_torch(written, same, tmp_path, every_dtype):
    obj = {"a": every_dtype, "t": every_dtype.T, "empty": every_dtype[:0], "zero": every_dtype[0, 0]}
    torch.save(obj, tmp_path / "torch.pt")
    ours = load(tmp_path / "torch.pt")
    theirs = written(ours)
    same(ours, theirs)
    assert theirs["a"].data_ptr() == theirs["t"].data_ptr() and theirs["t"].stride() == obj["t"].stride()


def test_torch_tensors_directly(written, same, every_dtype):
    assert every_dtype.dtype is written({"a": every_dtype})["a"].dtype
    obj = {"a": every_dtype, "t": every_dtype.T}
    theirs = written(obj)
    assert theirs["a"].untyped_storage().data_ptr() == theirs["t"].untyped_storage().data_ptr()
    for key in obj:
        assert theirs[key].shape == obj[key].shape
        assert bytes(theirs[key].contiguous().untyped_storage()) == bytes(
            obj[key].contiguous().untyped_storage()
        )


def test_module_and_optimizer_resume(written, tmp_path, net, trained):
    """Training goes on from our file as it goes on from torch's own."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    trained(net, optimizer, 3)
    torch.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, tmp_path / "torch.pt")
    checkpoint = written(load(tmp_path / "torch.pt"))
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    assert str(twin.load_state_dict(checkpoint["net"], strict=True)) == "<All keys matched successfully>"
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.5)
    twin_optimizer.load_state_dict(checkpoint["opt"])
    trained(net, optimizer, 2, seed=5)
    trained(twin, twin_optimizer, 2, seed=5)
    for one, other in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_metadata_is_written_as_torch_writes_it(written, tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "torch.pt")
    theirs = written(load(tmp_path / "torch.pt"))
    assert type(theirs) is collections.OrderedDict and theirs._metadata == net.state_dict()._metadata


def test_tied_tensors_stay_tied(written):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    theirs = written({"x": x, "same": x, "t": x.T, "row": x[1], "columns": x[:, 1:3], "copy": x.copy()})
    base = theirs["x"].data_ptr()
    assert theirs["same"] is theirs["x"]
    assert [theirs[k].data_ptr() - base for k in ("t", "row", "columns")] == [0, 16, 4]
    assert theirs["copy"].data_ptr() != base
    assert all(
        np.array_equal(theirs[k].numpy(), v) for k, v in {"t": x.T, "row": x[1], "columns": x[:, 1:3]}.items()
    )
    theirs["x"].mul_(2)
    assert torch.equal(theirs["t"], theirs["x"].T) and theirs["copy"][0, 1] == 1


def test_tied_numbers_stay_tied(written):
    step = np.zeros((), np.float32)
    theirs = written({"a": step, "b": step[...]})
    theirs["a"] += 1
    assert theirs["b"].item() == 1


def test_columns_of_one_array_without_the_array(written):
    qkv = np.arange(12, dtype=np.float32).reshape(2, 6)
    theirs = written({"q": qkv[:, :2], "k": qkv[:, 2:4]})
    assert np.array_equal(theirs["q"].numpy(), qkv[:, :2]) and np.array_equal(
        theirs["k"].numpy(), qkv[:, 2:4]
    )
    assert theirs["k"].data_ptr() - theirs["q"].data_ptr() == 8


def test_an_array_alone_is_written_contiguous(written, tmp_path):
    big = np.zeros((1000, 1000), np.float32)
    theirs = written({"slice": big[:2, :2], "t": np.arange(6.0).reshape(2, 3).T})
    assert (tmp_path / "one.pt").stat().st_size < 4000
    assert theirs["t"].is_contiguous() and theirs["t"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_what_torch_has_no_strides_for(written):
    x = np.arange(6, dtype=np.int32)
    pair = np.zeros(3, dtype=[("a", np.int8), ("b", np.int32)])
    pair["b"] = [1, 2, 3]
    obj = {
        "x": x,
        "back": x[::-1],
        "wide": np.broadcast_to(x[:2], (3, 2)),
        "field": pair["b"],
        "swapped": x.astype(">i4"),
    }
    theirs = written(obj)
    for key, value in obj.items():
        assert theirs[key].is_contiguous() and theirs[key].tolist() == value.tolist(), key


def test_two_dtypes_over_one_memory_part(written):
    x = np.arange(4, dtype=np.float32)
    theirs = written({"f": x, "i": x.view(np.int32), "b": x.view(np.uint8)[1:5].view(np.float32)})
    assert theirs["f"].tolist() == [0, 1, 2, 3] and theirs["i"].tolist() == x.view(np.int32).tolist()
    assert theirs["b"].numpy().tobytes() == x.view(np.uint8)[1:5].tobytes()


def test_jax_arrays_never_share(written):
    step = jnp.zeros((), jnp.float32)
    view = np.asarray(step)
    theirs = written({0: {"step": step}, 1: {"step": step}, 2: {"step": view}, 3: {"step": np.asarray(step)}})
    assert len({theirs[i]["step"].data_ptr() for i in range(4)}) == 4
    theirs[0]["step"] += 1
    assert [theirs[i]["step"].item() for i in range(4)] == [1, 0, 0, 0]


def test_jax_dtypes(written):
    obj = {"bf16": jnp.ones(3, jnp.bfloat16), "f8": jnp.ones(2, jnp.float8_e4m3fn), "b": jnp.array([True])}
    theirs = written(obj)
    assert [t.dtype for t in theirs.values()] == [torch.bfloat16, torch.float8_e4m3fn, torch.bool]
    assert [t.float().tolist() for t in theirs.values()] == [[1, 1, 1], [1, 1], [1]]


def test_leaves(written, same):
    counter = collections.Counter({30: 1, 80: 2})
    ints = [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**63, 2**70, -(2**2030)]
    other = [
        None,
        True,
        "",
        "ü\udc80",
        b"",
        b"\xff",
        bytearray(b"x"),
        1j,
        {"b", 1, "a"},
        counter,
        torch.Size([2]),
    ]
    obj = {
        "ints": ints,
        "other": other,
        "nan": float("nan"),
        3: {None: ((), [{}], {}), (1, "a"): 1.5, -1: 2.5},
    }
    theirs = written(obj)
    other[-1] = (2,)
    same(theirs, obj)


def test_numpy_scalars_become_numbers(written):
    obj = {
        "lr": np.float32(0.5),
        "i": np.int64(3),
        "b": np.True_,
        "bf": ml_dtypes.bfloat16(2),
        "s": np.str_("a"),
    }
    theirs = written({**obj, np.int64(7): (np.float64(1.5),), "c": np.complex64(1j)})
    expected = {"lr": 0.5, "i": 3, "b": True, "bf": 2.0, "s": "a", 7: (1.5,), "c": 1j}
    assert theirs == expected and all(type(theirs[k]) is type(v) for k, v in expected.items())


def test_shared_objects_stay_shared(written):
    shared = [1, {"a": (1, 2)}]
    theirs = written({"a": shared, "b": shared, "c": shared[1]["a"]})
    assert theirs["a"] is theirs["b"] and theirs["c"] is theirs["a"][1]["a"]


def test_objects_that_unfold_are_written_folded(written):
    node = (0, 1)
    for _ in range(18):
        node = (node, node)
    assert written(node)[0][1][0] == node[0][1][0]


def test_records_are_written_back(written, tmp_path):
    obj = {
        "q": torch.quantize_per_tensor(torch.arange(3.0), 0.1, 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "coo": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, 3, device="meta"),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
        "half": torch.zeros(2, dtype=torch.complex32),
    }
    torch.save(obj, tmp_path / "torch.pt")
    theirs = written(load(tmp_path / "torch.pt"))
    assert torch.equal(theirs["q"].int_repr(), obj["q"].int_repr()) and theirs["q"].q_scale() == 0.1
    assert torch.equal(theirs["sparse"].to_dense(), torch.eye(3))
    assert theirs["meta"].shape == (2, 3) and theirs["half"].dtype is torch.complex32
    assert (theirs["device"], theirs["dtype"]) == (torch.device("cuda:1"), torch.bfloat16)
    assert written({"d": torch.device("cpu"), "t": torch.int8}) == {"d": torch.device("cpu"), "t": torch.int8}


def test_payloads_are_aligned_and_offsets_may_be_computed(tmp_path):
    arrays = {f"w{i}": np.full(i + 1, i, np.float32) for i in range(5)}
    save(arrays, tmp_path / "a.pt")
    for value in load(tmp_path / "a.pt").values():
        assert value.ctypes.data % 64 == 0  # the mapping starts at a page
    config = torch.utils.serialization.config.load
    before = config.calculate_storage_offsets
    config.calculate_storage_offsets = True
    try:
        theirs = torch.load(tmp_path / "a.pt", mmap=True)
    finally:
        config.calculate_storage_offsets = before
    assert all(np.array_equal(theirs[k].numpy(), v) for k, v in arrays.items())


def test_unzip_agrees(tmp_path):
    if shutil.which("unzip") is None:
        pytest.skip("needs unzip")
    save({"a": np.ones(3)}, tmp_path / "a.pt")
    out = subprocess.run(["unzip", "-t", tmp_path / "a.pt"], capture_output=True, text=True)
    assert out.returncode == 0 and "No errors" in out.stdout


Point = collections.namedtuple("Point", "x y")
REFUSED = [
    ({"optimizer": {"x": object()}}, r'obj\["optimizer"\]\["x"\]'),
    ([1, (Point(1, 2),)], r"obj\[1\]\[0\].*Point"),
    ({"a": collections.defaultdict(list)}, r'obj\["a"\].*defaultdict'),
    ({"a": np.array(["x"])}, r'obj\["a"\].*dtype'),
    ({"a": np.array([None])}, r'obj\["a"\].*dtype object'),
    ({"a": np.ones(2, ml_dtypes.int4)}, r'obj\["a"\].*int4'),
    ({"a": np.ma.ones(2)}, r'obj\["a"\].*MaskedArray'),
    ({"a": 2**2040}, r'obj\["a"\].*2041 bits'),
    ({"a": np.datetime64("2020-01-01")}, r'obj\["a"\].*datetime64'),
    ({"a": {frozenset(): 1}}, r'obj\["a"\].*key of type frozenset'),
    ({"a": {2**64: 1}}, r'obj\["a"\].*key of type int'),
    ({"a": pathlib.PurePosixPath("x")}, r'obj\["a"\].*PurePosixPath'),
    ({"a": frozenset()}, r'obj\["a"\].*frozenset'),
    ({"a": Raw("F6_E2M3", (4,), np.zeros(3, np.uint8))}, r'obj\["a"\].*F6_E2M3'),
    ({"a": torch.eye(2).to_sparse()}, r'obj\["a"\].*sparse'),
    ({"a": torch.empty(2, device="meta")}, r'obj\["a"\].*meta'),
]


@pytest.mark.parametrize("obj, message", REFUSED, ids=range(len(REFUSED)))
def test_what_weights_only_refuses_is_refused(tmp_path, obj, message):
    with pytest.raises(FileError, match=message):
        save(obj, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_opaque_records_of_other_classes_are_refused(tmp_path):
    import argparse

    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    ours = load(tmp_path / "a.pt")
    assert isinstance(ours["args"], Opaque)
    with pytest.raises(FileError, match=r'obj\["args"\].*argparse.Namespace'):
        save(ours, tmp_path / "b.pt")


def test_attributes_are_not_lost(tmp_path):
    obj = collections.OrderedDict(a=1)
    obj.note = "x"
    with pytest.raises(FileError, match="note"):
        save(obj, tmp_path / "a.pt")


def test_cycles_and_depth(tmp_path):
    cycle: list = []
    cycle.append({"again": cycle})
    deep: list = []
    for _ in range(200_000):
        deep = [deep]
    for obj, message in ((cycle, "contains itself"), (deep, "nests deeper")):
        with pytest.raises(FileError, match=message):
            save(obj, tmp_path / "a.pt")


def test_a_bare_storage(written, tmp_path):
    torch.save(torch.arange(3, dtype=torch.int16).untyped_storage(), tmp_path / "torch.pt")
    ours = load(tmp_path / "torch.pt")
    assert ours.kind.name == "torch.storage.UntypedStorage" and ours.data.tolist() == [0, 0, 1, 0, 2, 0]
    assert written(ours).tolist() == [0, 0, 1, 0, 2, 0]


def test_jax_arrays_without_values(tmp_path):
    import jax

    gone = jnp.ones(2)
    gone.delete()
    with pytest.raises(FileError, match=r'obj\["x"\].*deleted'):
        save({"x": gone}, tmp_path / "a.pt")
    with pytest.raises(FileError, match=r'obj\["k"\]'):
        save({"k": jax.random.key(0)}, tmp_path / "a.pt")
    with pytest.raises(FileError, match="traced"):
        jax.jit(lambda x: save({"x": x}, tmp_path / "a.pt"))(jnp.ones(2))


def test_the_argument_is_not_changed(tmp_path, net):
    obj = {"b": jnp.ones(2), "a": [np.ones(2), {"x": torch.ones(1)}], "m": net.state_dict()}
    before = {**obj, "a": list(obj["a"])}
    save(obj, tmp_path / "a.pt")
    assert list(obj) == list(before) and all(obj[k] is before[k] for k in ("b", "m"))
    assert all(one is other for one, other in zip(obj["a"], before["a"], strict=True))


def test_entries_above_one_piece(tmp_path):
    """Their CRC is known only behind them."""
    big = np.arange(700_000, dtype=np.float64)
    save({"a": big, "b": big[::-1]}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
    assert torch.equal(torch.load(tmp_path / "a.pt")["a"], torch.from_numpy(big))


def test_bytes_do_not_depend_on_the_seed_of_hashes(tmp_path):
    for seed in ("1", "2"):
        path = str(tmp_path / seed)
        code = f"import jaxstate.io as io; io.save({{*'abcdefgh', 1, 2, None}}, {path!r})"
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
