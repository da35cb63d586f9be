"""Checkpoints in several files with an index, against huggingface_hub and transformers."""

import json
import os
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstate.errors import FileError
from jaxstate.io import load, save
from jaxstate.io._shards import size_in_bytes, split

hub = pytest.importorskip("huggingface_hub.serialization")


def tensors(**shapes):
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


TENSORS = {
    **tensors(b=(5, 3), a=(4, 4), huge=(11, 9), c=(2,), s=()),
    "bf": torch.arange(6.0, dtype=torch.bfloat16).reshape(2, 3),
    "n": torch.tensor([[2**40 + 1], [-3]]),
}


def arrays():
    return {
        k: v.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if k == "bf" else v.numpy()
        for k, v in TENSORS.items()
    }


@pytest.mark.parametrize("limit", [64, 100, "0.4KB", "0.3KiB", "5GB"])
def test_what_hugging_face_writes(tmp_path, same, limit):
    theirs = size_in_bytes(limit) if "KiB" in str(limit) else limit
    hub.save_torch_state_dict(TENSORS, tmp_path, max_shard_size=theirs)
    found = load(tmp_path)
    same(dict(found), {key: TENSORS[key] for key in found})
    assert set(found) == set(TENSORS) and found.__metadata__["format"] == "pt"
    if limit != "5GB":
        index = tmp_path / "model.safetensors.index.json"
        assert list(load(index)) == list(json.loads(index.read_text())["weight_map"]) == list(found)


@pytest.mark.parametrize("limit", [64, 100, "0.4KB", "0.3KiB", "5GB"])
def test_hugging_face_reads_what_we_write(tmp_path, same, limit):
    """File for file what huggingface_hub writes, but for the order of the keys, which is the dict's."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    hub.save_torch_state_dict(
        TENSORS, theirs, max_shard_size=size_in_bytes(limit) if "KiB" in str(limit) else limit
    )
    save(arrays(), ours, max_shard_size=limit)
    assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))
    for name in os.listdir(ours):
        if name.endswith(".json"):
            one, other = (json.loads((folder / name).read_text()) for folder in (ours, theirs))
            assert one == other and list(one["weight_map"]) == list(TENSORS)
        else:
            one, other = (safetensors.torch.load_file(folder / name) for folder in (ours, theirs))
            assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)
            assert hub.load_state_dict_from_file(ours / name, safe=True).keys() == one.keys()
    found = load(ours)
    same(dict(found), TENSORS if limit != "5GB" else {key: TENSORS[key] for key in found})
    net = torch.nn.ParameterDict(
        {k: torch.nn.Parameter(torch.zeros_like(v), False) for k, v in TENSORS.items()}
    )
    hub.load_torch_model(net, ours, strict=True)
    assert all(torch.equal(net[key], TENSORS[key]) for key in TENSORS)


def test_the_older_format(tmp_path, same):
    """`pytorch_model.bin` in parts, as transformers wrote it before safetensors."""
    parts = {
        "pytorch_model-00001-of-00002.bin": ["b", "bf"],
        "pytorch_model-00002-of-00002.bin": ["a", "s"],
    }
    for name, keys in parts.items():
        torch.save({key: TENSORS[key] for key in keys}, tmp_path / name)
    where = {key: name for name, keys in parts.items() for key in keys}
    # The total as older versions computed it: a float.
    index = {"metadata": {"total_size": 236.0}, "weight_map": {key: where[key] for key in sorted(where)}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = load(tmp_path)
    same(dict(found), {key: TENSORS[key] for key in sorted(where)})
    # The order is the index's, not a model's.
    assert type(found) is OrderedDict and found.__metadata__ == {}
    safetensors.torch.save_file({"other": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(load(tmp_path)) == ["other"]


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers(tmp_path, same):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=13, n_positions=6)
    torch.manual_seed(3)
    net = transformers.GPT2LMHeadModel(config)
    net.save_pretrained(tmp_path / "theirs", max_shard_size="2KB")
    sd = net.state_dict()
    found = load(tmp_path / "theirs")
    assert len(os.listdir(tmp_path / "theirs")) > 4 and sorted(found) == list(found)
    same(dict(found), {key: sd[key] for key in found})
    ours = tmp_path / "ours"
    config.save_pretrained(ours)
    save({key: value.numpy() + 1 for key, value in sd.items() if key in found}, ours, max_shard_size="2KB")
    back = transformers.GPT2LMHeadModel.from_pretrained(ours).state_dict()
    assert list(back) == list(sd) and all(torch.equal(back[key], sd[key] + 1) for key in sd)


def test_metadata_goes_into_every_file(tmp_path):
    obj = OrderedDict(arrays())
    obj.__metadata__ = {"format": "pt", "step": "7"}
    save(obj, tmp_path, max_shard_size=100)
    assert load(tmp_path).__metadata__ == {"format": "pt", "step": "7"}
    for name in os.listdir(tmp_path):
        if name.endswith(".safetensors"):
            with safetensors.safe_open(tmp_path / name, "pt") as file:
                assert file.metadata() == {"format": "pt", "step": "7"}
    name = next(name for name in os.listdir(tmp_path) if name.startswith("model-00001"))
    one = load(tmp_path / name)
    one.__metadata__ = {"format": "pt", "step": "8", "more": "x"}
    save(one, tmp_path / name)
    assert load(tmp_path).__metadata__ == {"format": "pt"}


@settings(max_examples=100, deadline=None, database=None)
@given(sizes=st.lists(st.integers(0, 12), max_size=9), limit=st.integers(1, 15))
def test_the_split_is_hugging_faces(sizes, limit):
    named = {f"w{n}": size for n, size in enumerate(sizes)}
    theirs = hub.split_state_dict_into_shards_factory(
        named, get_storage_size=lambda size: size, filename_pattern="m{suffix}", max_shard_size=limit
    )
    assert split(named, limit) == (list(theirs.filename_to_tensors.values()) or [[]])


@pytest.mark.parametrize("text", ["5GB", "1.5MB", "7 kb", "3TB", "0.004MB"])
def test_units_are_hugging_faces(text):
    assert size_in_bytes(text) == hub._base.parse_size_to_int(text)


@pytest.mark.parametrize("size", ["", "5", "GB", "5 XB", "-1GB", "1e3GB", 0, -3, 2.5, True, "0KB", b"5GB"])
def test_sizes_that_are_none(tmp_path, size):
    with pytest.raises(FileError, match="max_shard_size is a number of bytes or text"):
        save({"a": np.ones(3)}, tmp_path / "a", max_shard_size=size)
    assert os.listdir(tmp_path) == []


def test_arguments(tmp_path):
    with pytest.raises(FileError, match='max_shard_size is for safetensors, not for format="dcp"'):
        save({"a": np.ones(3)}, tmp_path / "a", format="dcp", max_shard_size=3)
    with pytest.raises(FileError, match=r'obj\["a"\]: a int, and safetensors holds arrays only'):
        save({"b": np.ones(3), "a": 3}, tmp_path / "a", max_shard_size=3)
    with pytest.raises(FileError, match="cannot be written: No such file"):
        save({"b": np.ones(3)}, tmp_path / "a" / "b", max_shard_size=3)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written: File exists"):
        save({"b": np.ones(3)}, tmp_path / "file", max_shard_size=3)
    assert os.listdir(tmp_path) == ["file"]


def test_an_empty_dict(tmp_path):
    save({}, tmp_path / "a", max_shard_size=3)
    assert os.listdir(tmp_path / "a") == ["model.safetensors"] and dict(load(tmp_path / "a")) == {}


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(arrays(), "a", max_shard_size=100)
    monkeypatch.chdir(tmp_path / "a")
    for path in (".", "model.safetensors.index.json", "../a/"):
        assert list(load(path)) == list(TENSORS)
    save({"b": np.arange(3)}, ".", max_shard_size=100)
    assert os.listdir(".") == ["model.safetensors"] and load(".")["b"].tolist() == [0, 1, 2]


def test_tensors_are_views_of_their_files(tmp_path):
    save(arrays(), tmp_path / "a", max_shard_size=100)
    found = load(tmp_path / "a")
    assert not any(value.flags.writeable for value in found.values())
    assert all(value.ctypes.data % 64 == 0 for value in found.values() if value.nbytes % 64 == 0)
    for name in os.listdir(tmp_path / "a"):
        os.unlink(tmp_path / "a" / name)
    assert np.array_equal(found["huge"], TENSORS["huge"])
