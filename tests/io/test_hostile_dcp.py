"""Folders of torch.distributed.checkpoint whose metadata lies, each attack built in its test."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hostile_files import read_or_refused, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from jaxstate.io import load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "a"
    obj = {
        "a": torch.arange(6.0).reshape(2, 3),
        "n": {"b": torch.ones(2), "t": (1, "x")},
        "l": [torch.ones(1)],
    }
    dcp.save(obj, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "dcp")
    return tmp_path / "dcp"


@pytest.fixture
def lying(folder):
    """Changes the metadata with a function and asks for the error."""

    def check(change, message):
        path = folder / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        change(metadata)
        path.write_bytes(pickle.dumps(metadata))
        refused(folder, message)

    return check


def test_the_folder_that_the_attacks_change(folder):
    found = load(folder)
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["n"]["t"] == (1, "x")


A, T = MetadataIndex("a", torch.Size([0, 0])), MetadataIndex("n.t")
FILE = "__0_0.distcp"


def place(index, *info, **more):
    def change(metadata):
        old = metadata.storage_data[index]
        values = {"relative_path": old.relative_path, "offset": old.offset, "length": old.length} | more
        metadata.storage_data[index] = _StorageInfo(*info) if info else _StorageInfo(**values)

    return change


def chunks(*boxes, size=(2, 3), dtype=torch.float32):
    def change(metadata):
        pieces = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes]
        metadata.state_dict_metadata["a"] = TensorStorageMetadata(
            TensorProperties(dtype), torch.Size(size), pieces
        )
        old = metadata.storage_data.pop(A)
        for number, (offset, _) in enumerate(boxes):
            info = _StorageInfo(old.relative_path, old.offset, old.length if number == 0 else 0)
            metadata.storage_data[MetadataIndex("a", offset)] = info

    return change


def setting(**fields):
    return lambda metadata: [setattr(metadata, *item) for item in fields.items()]


def path_of(name, path):
    return lambda metadata: metadata.planner_data.update({name: path})


LIES = {
    "traversal": (place(A, relative_path="../dcp/" + FILE), "is a path"),
    "absolute": (place(A, relative_path="/etc/passwd"), "is a path"),
    "a folder": (place(A, relative_path=".."), "is a path"),
    "no such file": (place(A, relative_path="__9_0.distcp"), "not there: __9_0.distcp"),
    "behind the end": (place(A, offset=2**40), "a chunk of .* bytes at .*, which has"),
    "longer than the file": (place(A, length=2**50), "a chunk of|overlap"),
    "negative": (place(A, offset=-1), "no proper file, offset or length"),
    "an offset that is none": (place(A, offset=1.5), "no proper file, offset or length"),
    "no integer of 62 bits": (place(A, offset=2**70), "no proper file, offset or length"),
    "a path that is a list": (place(A, relative_path=["x"]), "no proper file, offset or length"),
    "overlapping": (lambda m: place(A, FILE, m.storage_data[T].offset, 40)(m), "two chunks overlap"),
    "not the start": (place(A, FILE, 5, 40), "two chunks overlap|no torch file"),
    "compressed": (place(A, transform_descriptors=["zstd"]), r"is transformed \(\['zstd'\]"),
    "a value as a tensor": (
        lambda m: m.storage_data.update({A: m.storage_data[T], T: m.storage_data[A]}),
        "entry",
    ),
    "no place": (lambda m: m.storage_data.pop(A), 'entry "a": the chunk at'),
    "no place of a value": (lambda m: m.storage_data.pop(T), 'entry "n.t" has no place'),
    "a place of nothing": (
        lambda m: m.state_dict_metadata.pop("a"),
        "gives places to chunks that no tensor has",
    ),
    "a gap": (chunks(((0, 0), (2, 3)), size=(3, 3)), "its 1 parts do not fill shape"),
    "too much": (chunks(((0, 0), (2, 4))), "do not fill"),
    "shifted": (chunks(((1, 0), (2, 3))), "do not fill"),
    "twice": (chunks(((0, 0), (2, 3)), ((0, 1), (2, 3))), "do not fill"),
    "none": (chunks(), "do not fill"),
    "another shape in the file": (chunks(((0, 0), (3, 2)), size=(3, 2)), r"has float32 of shape \(3, 2\)"),
    "another dtype in the file": (chunks(((0, 0), (2, 3)), dtype=torch.int32), "has int32 of shape"),
    "huge": (chunks(((0, 0), (2**40, 2**40)), size=(2**40, 2**40)), "has float32 of shape"),
    "axes that differ": (chunks(((0,), (2,))), "chunk without a proper offset"),
    "65 axes": (chunks(((0,) * 65, (1,) * 65), size=(1,) * 65), "no proper size|no proper name"),
    "a negative size": (
        lambda m: setattr(m.state_dict_metadata["a"], "size", (-2, 3)),
        "no proper size or chunks",
    ),
    "a value as an entry": (lambda m: m.state_dict_metadata.update(a=7), "a int stands where a Tensor"),
    "a tensor without data": (
        lambda m: m.state_dict_metadata.update(a=BytesStorageMetadata()),
        '"a" has no place',
    ),
    "entries as a list": (setting(state_dict_metadata=[]), "state_dict_metadata is not a dict"),
    "places as a list": (setting(storage_data=[]), "storage_data is not a dict"),
    "places of none": (setting(storage_data=None), "storage_data is not a dict"),
    "another version": (setting(version="2.0.0"), "version 2.0.0; versions 1"),
    "a version that is none": (setting(version=1), "of version 1"),
    "paths as a list": (setting(planner_data=[1]), "planner_data is not a dict"),
    "no path": (lambda m: m.planner_data.pop("a"), 'entry "a" has no path'),
    "a path that is text": (path_of("a", "a"), "not a map from names to paths"),
    "an empty path": (path_of("a", ()), "a path in planner_data is empty"),
    "a long path": (path_of("a", ("x",) * 1000), "too long"),
    "a path of floats": (path_of("a", (1.5,)), "of other steps"),
    "a negative index": (path_of("a", ("l", -1)), "of other steps"),
    "a huge index": (path_of("a", ("l", 2**60)), r'obj\["l"\] lacks item 1'),
    "two entries at one path": (
        path_of("a", ("n", "b")),
        r'two paths in planner_data lead to obj\["n"\]\["b"\]',
    ),
    "through a value": (path_of("a", ("n", "b", "c")), "two paths in planner_data|leads through the value"),
    "before a value": (path_of("n.t", ("a", "c")), r'leads through the value at obj\["a"\]'),
    "names and indices": (path_of("a", ("n", 0)), "both names and indices"),
    "a list at the root": (
        lambda m: [path_of(k, (i,))(m) for i, k in enumerate(m.planner_data)],
        "make a list",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_metadata_that_lies(lying, name, at_once):
    lying(*LIES[name])


class Bomb:
    """Whatever unpickles it runs a command."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("where", ["root", "entry", "place", "path", "file"])
def test_nothing_in_the_metadata_is_called(folder, lying, monkeypatch, where):
    monkeypatch.chdir(folder)
    if where == "root":
        (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
        refused(folder, "posix.system stands where a Metadata is due")
    changes = {
        "entry": lambda m: m.state_dict_metadata.update(a=Bomb()),
        "place": lambda m: m.storage_data.update({A: Bomb()}),
        "path": lambda m: m.planner_data.update(a=Bomb()),
        "file": place(A, relative_path=Bomb()),
    }
    if where in changes:
        lying(changes[where], "stands where|planner_data|no proper file")
    assert not Path("exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("exploded").exists()


def cyclic(metadata):
    metadata.planner_data["a"] = metadata.planner_data


def shared(metadata):
    value = ()
    for _ in range(60):
        value = (value, value)
    metadata.storage_meta = value


def nested(metadata):
    value = ()
    for _ in range(900):
        value = (value,)
    metadata.storage_meta = value


@pytest.mark.parametrize(
    "change, message", [(cyclic, "contains itself"), (shared, "unfolds"), (nested, "deeper")]
)
def test_cycles_and_bombs(lying, change, message, at_once):
    lying(change, message)


def test_metadata_that_is_no_pickle_or_a_link(folder, tmp_path):
    good = (folder / ".metadata").read_bytes()
    for content, message in {
        b"": "ends at byte 0",
        good[:-20]: "a frame of the pickle reaches behind its end",
        b"(lp0\n.": "opcode",
        b"\x80\x02}.": "a dict stands where a Metadata is due",
        b"\x80\x02(X\x07\0\0\0storageQ.": "names a storage",
    }.items():
        (folder / ".metadata").write_bytes(content)
        refused(folder, rf"\.metadata: .*{message}")
    (tmp_path / "elsewhere").write_bytes(good)
    os.unlink(folder / ".metadata")
    os.symlink(tmp_path / "elsewhere", folder / ".metadata")
    refused(folder, "is a link to")
    os.unlink(folder / ".metadata")
    (folder / ".metadata").write_bytes(good)
    shutil.move(folder / FILE, tmp_path / FILE)
    os.symlink(tmp_path / FILE, folder / FILE)
    refused(folder, "is a link to")


def test_metadata_that_is_refused_unread(folder, at_once):
    os.truncate(folder / ".metadata", (256 << 20) + 1)
    refused(folder, r"\.metadata: it has 268435457 bytes; no more than 268435456 are read")


def test_a_chunk_that_unfolds(folder, at_once):
    """Strides of 0 make a terabyte of four bytes; torch writes every chunk in full."""
    torch.save(torch.ones(1).expand(2**12, 2**11), folder / "x.distcp")
    change = chunks(((0, 0), (2**12, 2**11)), size=(2**12, 2**11))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    place(A, "x.distcp", 0, (folder / "x.distcp").stat().st_size)(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(folder, 'entry "a": the chunk at .* unfolds .* bytes to more')


def test_safetensors_inside_is_refused(folder):
    """torch can write chunks without their archive; nothing tells how they were put together."""
    content = bytearray((folder / FILE).read_bytes())
    info = pickle.loads((folder / ".metadata").read_bytes()).storage_data[A]
    content[info.offset : info.offset + 4] = bytes(4)
    (folder / FILE).write_bytes(content)
    refused(folder, f'entry "a": the bytes at {info.offset} of {FILE} are no torch file')


# Any bytes.


FAST = settings(
    max_examples=120,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FAST
@given(data=st.data())
def test_flipped_bytes_of_the_metadata(written, tmp_path, data):
    shutil.copytree(written, tmp_path / "f", dirs_exist_ok=True)
    raw = bytearray((written / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "f" / ".metadata").write_bytes(raw)
    read_or_refused(tmp_path / "f")


@FAST
@given(data=st.data())
def test_flipped_bytes_of_a_chunk(written, tmp_path, data):
    shutil.copytree(written, tmp_path / "f", dirs_exist_ok=True)
    raw = bytearray((written / FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "f" / FILE).write_bytes(raw)
    read_or_refused(tmp_path / "f")
