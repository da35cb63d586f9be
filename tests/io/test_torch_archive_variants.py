"""The archives of torch.save as other torches, other machines and other tools leave them; torch is asked."""

import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import repacked

from jaxstate.errors import FileError
from jaxstate.io import Opaque, Raw, Storage, load

pytestmark = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support",
    "ignore:.*quantized tensor",
    "ignore:Sparse",
    "ignore:The PyTorch API of nested",
)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.pt"
    x = torch.arange(6.0).reshape(2, 3)
    torch.save({"x": x, "t": x.T, "i": torch.arange(5), "b": torch.ones(3).bfloat16(), "n": 3}, path)
    return path


def rooted(path, root, method=zipfile.ZIP_STORED, folders=()):
    """The archive with another root, and perhaps entries for its folders."""
    target = path.with_name("other.pt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as out:
        for name in folders:
            out.writestr(zipfile.ZipInfo(root + name), b"")
        for info in archive.infolist():
            out.writestr(f"{root}/{info.filename.partition('/')[2]}", archive.read(info), method)
    return target


@pytest.mark.parametrize("root", ["net", "x y", "\u00fc", ".", "archive" * 30])
def test_other_roots(saved, same, root):
    path = rooted(saved, root)
    same(load(path, verify=True), torch.load(path))


def test_entries_for_folders(saved, same):
    path = rooted(saved, "net", folders=["/", "/data/"])
    same(load(path), torch.load(path))


def test_no_root_or_two(saved):
    for root, message in (("a/b", "no entry 'data.pkl'"), ("", "no entry")):
        path = rooted(saved, root)
        if root:
            with pytest.raises(FileError, match=message):
                load(path)
        else:
            assert load(path)["n"] == torch.load(path)["n"] == 3


def test_compressed_storages(saved, same):
    """torch inflates them where it does not map the file, and where it maps, gives compressed bytes."""
    path = rooted(saved, "net", zipfile.ZIP_DEFLATED)
    theirs = torch.load(path, mmap=False)
    for ours in (load(path, verify=True), load(path, mmap=False)):
        same(ours, theirs)
        assert np.shares_memory(ours["x"], ours["t"]) and not ours["x"].flags.writeable


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(saved, method):
    with pytest.raises(FileError, match="compressed"):
        load(rooted(saved, "net", method))


def test_packed_by_the_zip_tool(saved, same, tmp_path):
    if shutil.which("zip") is None:
        pytest.skip("needs zip")
    with zipfile.ZipFile(saved) as archive:
        archive.extractall(tmp_path / "unpacked")
    subprocess.run(["zip", "-q", "-r", "-0", tmp_path / "b.pt", "."], cwd=tmp_path / "unpacked", check=True)
    subprocess.run(["zip", "-q", "-r", "-9", tmp_path / "c.pt", "net"], cwd=tmp_path / "unpacked", check=True)
    theirs = torch.load(saved)
    same(load(tmp_path / "b.pt", verify=True), theirs)
    same(load(tmp_path / "c.pt", verify=True), theirs)


OPTIONAL = ("byteorder", ".data/serialization_id", ".format_version", ".storage_alignment")


@pytest.mark.parametrize("missing", [*[(name,) for name in OPTIONAL], OPTIONAL])
def test_entries_that_older_torches_do_not_write(loaded, saved, same, missing):
    raw = repacked(saved, lambda name, content: None if name in missing else content)
    same(loaded(raw), torch.load(saved))


def swapped(path, itemsize):
    """The archive as a big-endian machine would have written it, where all storages have one item size."""

    def swap(name, content):
        if name == "byteorder":
            return b"big"
        words = np.frombuffer(content, f"u{itemsize}") if name.startswith("data/") else None
        return content if words is None else words.byteswap().tobytes()

    return repacked(path, swap)


BIG = "float64 float32 float16 bfloat16 int64 int32 int16 int8 bool complex64 complex128".split()


@pytest.mark.parametrize("name", BIG)
def test_from_a_big_endian_machine(tmp_path, loaded, same, name):
    dtype = getattr(torch, name)
    x = (torch.arange(6).reshape(2, 3) - 2).to(dtype)
    torch.save({"x": x, "t": x.T, "row": x[1]}, tmp_path / "little.pt")
    raw = swapped(tmp_path / "little.pt", dtype.itemsize // (2 if dtype.is_complex else 1))
    (tmp_path / "big.pt").write_bytes(raw)
    ours, theirs = load(tmp_path / "big.pt"), torch.load(tmp_path / "big.pt")
    same(ours, theirs)
    same(ours, {"x": x, "t": x.T, "row": x[1]})
    assert np.shares_memory(ours["x"], ours["t"])


def test_newer_dtypes_from_a_big_endian_machine(tmp_path, loaded):
    """torch does not swap these: the values that it gives are others than those that were saved."""
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn"):
        x = torch.tensor([1, 2, 3]).to(getattr(torch, name))
        torch.save(x, tmp_path / "little.pt")
        assert loaded(swapped(tmp_path / "little.pt", x.itemsize)).tolist() == [1, 2, 3]
    torch.save(torch.zeros(2, dtype=torch.complex32), tmp_path / "half.pt")
    with pytest.raises(FileError, match="complex32 in the other byte order"):
        loaded(swapped(tmp_path / "half.pt", 2))


class Tagged(torch.Tensor):
    pass


def test_what_is_no_array_is_an_inert_record(tmp_path):
    csr = torch.eye(3).to_sparse_csr()
    channels = (torch.tensor([0.5, 0.25]), torch.tensor([0, 1]))
    obj = {
        "tagged": torch.arange(3.0).as_subclass(Tagged),
        "csr": csr,
        "q": torch.quantize_per_channel(torch.ones(2, 3), *channels, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=torch.jagged),
        "meta": torch.empty(2, 3, device="meta"),
        "half": torch.ones(2, dtype=torch.complex32),
        "w": torch.ones(2),
    }
    torch.save(obj, tmp_path / "a.pt")
    ours = load(tmp_path / "a.pt", verify=True)
    records = {key for key, value in ours.items() if isinstance(value, Opaque)}
    assert records == {"tagged", "csr", "q", "nested", "jagged", "meta"} and isinstance(ours["half"], Raw)
    assert ours["w"].tolist() == [1, 1]
    assert ours["tagged"].args[1].name.endswith("Tagged")
    crow, col, values, size = ours["csr"].args[1]
    assert (crow.tolist(), col.tolist()) == (csr.crow_indices().tolist(), csr.col_indices().tolist())
    assert values.tolist() == [1, 1, 1] and size == (3, 3)
    assert isinstance(ours["q"].args[0], Storage)
    assert ours["q"].args[0].data.view(np.int8).tolist() == obj["q"].int_repr().reshape(-1).tolist()
    assert ours["q"].args[4][1].tolist() == [0.5, 0.25]
    assert ours["nested"].args[0].tolist() == [1, 1, 0, 0, 0]


def test_a_storage_on_the_device_meta_has_no_values(tmp_path, loaded):
    """Whatever bytes stand under its key."""
    torch.save(torch.ones(3), tmp_path / "a.pt")
    ours = loaded(
        repacked(tmp_path / "a.pt", lambda _, raw: raw.replace(b"\x03\0\0\0cpu", b"\x04\0\0\0meta"))
    )
    assert isinstance(ours, Opaque) and isinstance(ours.args[0], Opaque)


# Checksums.


def flipped(path, name):
    """The file with the last byte of one entry changed, and nothing else."""
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.partition("/")[2] == name)
    at = (
        info.header_offset
        + 30
        + sum(raw[info.header_offset + k] + 256 * raw[info.header_offset + k + 1] for k in (26, 28))
    )
    raw[at + info.compress_size - 1] ^= 1
    return bytes(raw)


def test_a_changed_byte_is_found_when_asked_for(saved, tmp_path):
    names = ["data.pkl", "data/0", "data/1", "version", ".data/serialization_id"]
    for name in names:
        (tmp_path / "b.pt").write_bytes(flipped(saved, name))
        with pytest.raises(FileError, match=rf"b.pt: the bytes of net/{name} are not.*CRC-32"):
            load(tmp_path / "b.pt", verify=True)
    (tmp_path / "b.pt").write_bytes(flipped(saved, "data/0"))
    assert load(tmp_path / "b.pt")["x"][1, 2] != 5 and torch.load(tmp_path / "b.pt")["x"][1, 2] != 5


def test_changed_bytes_of_compressed_entries(saved, tmp_path):
    path = rooted(saved, "net", zipfile.ZIP_DEFLATED)
    raw = bytearray(flipped(path, "data/1"))
    (tmp_path / "b.pt").write_bytes(raw)
    with pytest.raises(FileError, match="net/data/1"):
        load(tmp_path / "b.pt", verify=True)


def test_all_changed_entries_are_named_once(saved, tmp_path):
    (tmp_path / "b.pt").write_bytes(flipped(saved, "data/0"))
    (tmp_path / "c.pt").write_bytes(flipped(tmp_path / "b.pt", "version"))
    with pytest.raises(FileError, match="net/data/0, net/version are"):
        load(tmp_path / "c.pt", verify=True)


def test_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.ones(2), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load(tmp_path / "a.pt").tolist() == [1, 1]
    with pytest.raises(FileError, match="without checksums.*verify=False"):
        load(tmp_path / "a.pt", verify=True)
