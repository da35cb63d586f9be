"""Folders of Hugging Face whose index or headers lie, each attack built in its test."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from hostile_files import read_or_refused, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxstate.errors import FileError
from jaxstate.io import load, save

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHTS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4.0) + 1}
WHERE = {"a": FIRST, "b": SECOND}


@pytest.fixture
def shards(tmp_path):
    """A folder in two shards that is right, for the attacks to change."""
    folder = tmp_path / "a"
    save(WEIGHTS, folder, max_shard_size=48)
    assert json.loads((folder / INDEX).read_text())["weight_map"] == WHERE
    return folder


def indexed(folder, where, **more):
    text = where if isinstance(where, str) else json.dumps({"weight_map": where, **more})
    (folder / INDEX).write_text(text)


@pytest.mark.parametrize(
    "name",
    [
        "../{}",
        "/etc/passwd",
        "sub/{}",
        "..",
        ".",
        "",
        "..\\{}",
        "C:{}",
        "{}\0",
        "x" * 300,
        "./{}",
        "\\\\host\\{}",
    ],
)
def test_names_that_are_paths(shards, name):
    safetensors.numpy.save_file({"b": WEIGHTS["b"]}, shards.parent / SECOND)
    (shards / "sub").mkdir()
    safetensors.numpy.save_file({"b": WEIGHTS["b"]}, shards / "sub" / SECOND)
    indexed(shards, {**WHERE, "b": name.format(SECOND)})
    refused(shards, "is a path; a checkpoint names files beside it")


def test_links_that_lead_out(shards):
    outside = shards.parent / "secret"
    shutil.move(shards / SECOND, outside)
    os.symlink(outside, shards / SECOND)
    refused(shards, f"{SECOND} is a link to .*secret, outside of the folder; copy that file here")
    os.unlink(shards / SECOND)
    os.symlink("../secret", shards / SECOND)
    refused(shards, "outside of the folder")
    os.unlink(shards / SECOND)
    os.symlink("nowhere", shards / SECOND)
    refused(shards, f'files that are not there: "{SECOND}"')
    (shards / "whole").write_bytes((shards / FIRST).read_bytes())
    os.unlink(shards / INDEX)
    os.symlink(outside, shards / "model.safetensors")
    refused(shards, "model.safetensors is a link")


def test_links_inside_and_of_hugging_faces_cache(shards, tmp_path):
    """The cache has `snapshots/REVISION/name -> ../../blobs/HASH`; the folder may itself be a link."""
    shutil.move(shards / SECOND, shards / "moved")
    os.symlink("moved", shards / SECOND)
    assert list(load(shards)) == ["a", "b"]
    root = tmp_path / "models--x"
    (root / "snapshots" / "607a").mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, name in enumerate((INDEX, FIRST, SECOND)):
        shutil.copy(shards / name, root / "blobs" / f"{number:x}")
        os.symlink(f"../../blobs/{number:x}", root / "snapshots" / "607a" / name)
    os.symlink(root / "snapshots" / "607a", tmp_path / "link")
    for folder in (root / "snapshots" / "607a", tmp_path / "link"):
        for path in (folder, folder / INDEX):
            assert np.array_equal(load(path)["b"], WEIGHTS["b"])


INDICES = {
    "no proper JSON": ("{", "proper JSON"),
    "deep": ('{"weight_map":' + "[" * 100_000, "proper JSON"),
    "a list": ("[]", "not a JSON object"),
    "no map": ("{}", "no weight_map"),
    "a map of numbers": ('{"weight_map": {"a": 1}}', "no weight_map"),
    "a map of lists": ('{"weight_map": {"a": ["x"]}}', "no weight_map"),
    "key twice": (f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}', "a key stands twice"),
    "map twice": ('{"weight_map": {}, "weight_map": {}}', "a key stands twice"),
    "not a number": ('{"metadata": {"total_size": NaN}, "weight_map": {}}', "the number NaN"),
    "a missing file": ({**WHERE, "c": "model-3.safetensors"}, 'not there: "model-3.safetensors"; fetch'),
    "a missing key": ({**WHERE, "c": FIRST}, f'index names are not there: "c in {FIRST}"'),
    "a surplus key": ({"a": FIRST}, None),
    "an unnamed key": ({"a": FIRST, "c": SECOND}, f'"c in {SECOND}"; keys are there .*"b in {SECOND}"'),
    "keys exchanged": ({"a": SECOND, "b": FIRST}, f'"a in {SECOND}", "b in {FIRST}"; keys are there'),
    "the index as a file": ({**WHERE, "c": INDEX}, f"{INDEX}: JSON text"),
    "a huge number": ('{"metadata": ' + "9" * 10_000 + "}", "proper JSON"),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_that_lie(shards, name, at_once):
    where, message = INDICES[name]
    indexed(shards, where)
    if message is None:  # a file that the index does not name is none of the checkpoint
        assert list(load(shards)) == ["a"]
    else:
        refused(shards, message)


def test_an_index_that_is_refused_unread(shards, at_once):
    os.truncate(shards / INDEX, 100_000_001)
    refused(shards, "an index of 100000001 bytes; no more than 100000000 are read")


def test_a_key_in_two_files(shards):
    safetensors.numpy.save_file(WEIGHTS, shards / SECOND)
    refused(shards, f'keys are there that the index has not or has elsewhere: "a in {SECOND}"')


def test_files_of_the_index_that_are_none(shards):
    for content, message in {
        b"": "an empty file",
        b"GGUF0000": "GGUF",
        (shards / FIRST).read_bytes()[:-1]: f"{FIRST}: the header describes",
    }.items():
        (shards / FIRST).write_bytes(content)
        refused(shards, f"{FIRST}: .*{message}|{message}")
    os.unlink(shards / FIRST)
    os.mkfifo(shards / FIRST)
    refused(shards, "not a regular file")
    os.unlink(shards / FIRST)
    torch.save([1, 2], shards / FIRST)
    refused(shards, f"{FIRST}: holds a list")


def test_folders_without_a_checkpoint(tmp_path):
    refused(tmp_path, "a folder with nothing in it")
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, "a folder; load one of the files in it: notes.txt")
    (tmp_path / "diffusion.safetensors.index.json").touch()
    refused(tmp_path, "load one of these: diffusion.safetensors.index.json")
    (tmp_path / "__0.metadata").touch()
    refused(tmp_path, "__0.metadata: the pickle ends at byte 0")


def part(folder, number, arrays, places):
    text = (
        places
        if isinstance(places, str)
        else json.dumps({k: {"saved_offsets": v} for k, v in places.items()})
    )
    path = folder / f"shard-{number:05d}-model-00001-of-00001.safetensors"
    safetensors.numpy.save_file(arrays, path, {"DCP_SHARDING_INFO": text})


ROWS = np.ones((2, 3), "f4")
PARTS = {
    "a gap": ({"a": (ROWS, [0, 0])}, {"a": (ROWS, [3, 0])}, "do not fill shape"),
    "an overlap": ({"a": (ROWS, [0, 0])}, {"a": (ROWS, [1, 0])}, "do not fill shape"),
    "far away": ({"a": (ROWS, [0, 0])}, {"a": (ROWS, [2**61, 2**61])}, "do not fill shape"),
    "dtypes": ({"a": (ROWS, [0, 0])}, {"a": (ROWS.astype("f8"), [2, 0])}, "several dtypes"),
    "axes": ({"a": (ROWS, [0, 0])}, {"a": (ROWS[0].copy(), [2])}, "several dtypes or numbers of axes"),
    "too few numbers": (
        {"a": (ROWS, [0, 0])},
        {"a": (ROWS, [2])},
        'no place in the whole tensor is given for "a"',
    ),
    "text": ({"a": (ROWS, [0, 0])}, {"a": (ROWS, "2")}, "DCP_SHARDING_INFO is not a map"),
    "negative": ({"a": (ROWS, [0, 0])}, {"a": (ROWS, [-2, 0])}, "DCP_SHARDING_INFO is not a map"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_lie(tmp_path, name):
    *files, message = PARTS[name]
    for number, entries in enumerate(files, 1):
        part(
            tmp_path, number, {k: v for k, (v, _) in entries.items()}, {k: o for k, (_, o) in entries.items()}
        )
    refused(tmp_path, message)


def test_parts_without_places(tmp_path):
    part(tmp_path, 1, {"a": ROWS}, {"a": [0, 0]})
    for text in ("{", "[]", '{"a": 1}', "{}", '{"a": {}, "a": {}}'):
        part(tmp_path, 2, {"a": ROWS}, text)
        refused(tmp_path, "shard-00002.*(DCP_SHARDING_INFO|no place)")
    part(tmp_path, 2, {"a": ROWS * 2}, {"a": [2, 0]})
    assert np.array_equal(load(tmp_path)["a"], np.concatenate([ROWS, ROWS * 2]))


def test_two_kinds_in_one_folder(shards, tmp_path):
    with pytest.raises(FileError, match=f"a checkpoint of another kind, {INDEX}; save into another folder"):
        save(WEIGHTS, shards, format="dcp")
    save(WEIGHTS, tmp_path / "b", format="dcp")
    with pytest.raises(FileError, match="a checkpoint of another kind, .metadata; save into another folder"):
        save(WEIGHTS, tmp_path / "b", max_shard_size=48)
    shutil.copy(tmp_path / "b" / ".metadata", shards / ".metadata")
    refused(shards, f"two checkpoints, .metadata and {INDEX}; take one out")


# Any bytes.


FAST = settings(
    max_examples=120,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([FIRST, SECOND, "..", "/"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["weight_map", "metadata", "a", "b", "c"]), inner, max_size=4),
    ),
    max_leaves=8,
)


@FAST
@given(index=st.one_of(JSON, st.fixed_dictionaries({"weight_map": JSON})), cut=st.integers(0, 400))
def test_any_index(tmp_path, index, cut):
    if not (tmp_path / "f" / FIRST).exists():
        save(WEIGHTS, tmp_path / "f", max_shard_size=48)
    (tmp_path / "f" / INDEX).write_text(json.dumps(index)[: cut + 1])
    read_or_refused(tmp_path / "f")
