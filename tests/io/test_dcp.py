"""Folders of torch.distributed.checkpoint both ways, against torch: one process, and two with shards."""

import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from flax import nnx
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import jaxstate as js
from jaxstate.errors import FileError
from jaxstate.io import load, save
from jaxstate.io._dcp_reader import contents_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support"),
]


def as_arrays(obj):
    """The same object with lazy arrays as numpy's."""
    if isinstance(obj, dict):
        return {key: as_arrays(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [as_arrays(value) for value in obj]
    return np.asarray(obj) if isinstance(obj, js.LazyArray) else obj


MIXED = {
    "model": OrderedDict({"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4), "b.c": torch.ones(1)}),
    "b": {"c": (1, "x"), "dots.in.it": 2.5},
    "list": [1, torch.full((2, 3), 0.25), {"a": torch.arange(3), "b": None}],
    "plain": [1, 2, [3, 4]],
    "nested": [[torch.zeros(2), 5], [torch.ones(1)]],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "bytes": b"raw",
    "tensor in a tuple": (torch.ones(2), 3),
}


def test_what_torch_writes(tmp_path, same):
    dcp.save(MIXED, checkpoint_id=tmp_path / "a", no_dist=True)
    for mmap in (True, False):
        same(load(tmp_path / "a", mmap=mmap), {**MIXED, "model": dict(MIXED["model"])})


def test_every_dtype(tmp_path, same, every_dtype):
    obj = {"a": every_dtype, "b": {"c": every_dtype[1]}}
    torch.save(obj, tmp_path / "a.pt")
    if "bits" in str(every_dtype.dtype):
        with pytest.raises(FileError, match=r'obj\["a"\]: an array of dtype bits.*fails at'):
            save(load(tmp_path / "a.pt"), tmp_path / "b", format="dcp")
        return
    dcp.save(obj, checkpoint_id=tmp_path / "a", no_dist=True)
    found = load(tmp_path / "a")
    same(found, obj)
    save(found, tmp_path / "b", format="dcp")
    back = {"a": torch.empty_like(every_dtype), "b": {"c": torch.empty_like(every_dtype[1])}}
    dcp.load(back, checkpoint_id=tmp_path / "b", no_dist=True)
    same(found, back)
    same(load(tmp_path / "b"), obj)


def test_the_flat_planner(tmp_path, same):
    """Without planner_data names are not taken apart."""
    obj = {"a.b": torch.randn(2, 3), "c": 4}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(obj, checkpoint_id=tmp_path / "a", planner=planner, no_dist=True)
    same(load(tmp_path / "a"), obj)


def test_several_files(tmp_path, same):
    writer = dcp.FileSystemWriter(tmp_path / "a", single_file_per_rank=False)
    dcp.save(MIXED, storage_writer=writer, no_dist=True)
    assert len(os.listdir(tmp_path / "a")) > 10
    same(load(tmp_path / "a"), {**MIXED, "model": dict(MIXED["model"])})


# Two ranks.


OURS = {
    "m": {
        "rows": np.arange(15, dtype="f4").reshape(5, 3),
        "columns": np.arange(24, dtype="f4").reshape(6, 4).T,
        "middle": np.arange(24, dtype="f4").reshape(2, 3, 4),
        "one": np.float32([7]),
        "none": np.zeros((0, 3), "f4"),
        "same": np.arange(6, dtype="f4").reshape(3, 2),
        "half": np.arange(10).reshape(5, 2).astype(jax.numpy.bfloat16),
    }
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks saved, and what they found in a folder of ours."""
    folder = tmp_path_factory.mktemp("ranks")
    save(OURS, folder / "ours", format="dcp")
    program = Path(__file__).with_name("dcp_ranks.py")
    command = [sys.executable, "-W", "ignore", str(program), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return folder


def test_shards_are_put_together(ranks, same):
    found, whole = load(ranks / "mesh"), torch.load(ranks / "mesh.pt")
    kinds = {key: type(value) for key, value in found["m"].items()}
    cut = {"rows", "columns", "middle", "half"}
    assert {key for key, kind in kinds.items() if kind is js.LazyArray} == cut
    assert kinds["one"] is kinds["none"] is kinds["same"] is np.ndarray
    same(as_arrays(found), whole)


def test_parts_of_what_is_in_shards(ranks):
    found, whole = load(ranks / "mesh")["m"], torch.load(ranks / "mesh.pt")["m"]
    for name, index in {
        "rows": (slice(1, 4), 2),
        "columns": (..., slice(5, 1, -2)),
        "middle": (1, slice(None), slice(0, 3, 2)),
    }.items():
        assert np.array_equal(found[name][index], whole[name].numpy()[index])


def test_values_of_each_rank(ranks, same):
    """What all ranks wrote alike is one value; of what each loads as its own, none is chosen."""
    found, wholes = load(ranks / "own"), [torch.load(ranks / f"own.{rank}.pt") for rank in range(2)]
    own = ("mine", "random")
    kept = {key: value for key, value in found.items() if key not in own}
    assert isinstance(kept["both"], np.ndarray)
    for rank, whole in enumerate(wholes):
        same(as_arrays(kept), {key: value for key, value in whole.items() if key not in own})
        mine, random = (found[key].values[str(ranks / "own" / f"__{rank}_0.distcp")] for key in own)
        assert mine == whole["mine"] == rank and np.array_equal(random, whole["random"].numpy())
    with pytest.raises(FileError, match=r'obj\["mine"\]: a jaxstate.*PerRank is not written'):
        save(found, ranks / "none.pt")


def test_safetensors_of_each_rank(ranks, same, tmp_path):
    """Files of parts are put together; one of them alone is refused where it tells that it is a part."""
    found, whole = load(ranks / "parts"), torch.load(ranks / "mesh.pt")["m"]
    names = sorted(os.listdir(ranks / "parts"))
    assert len(names) == 2 and not any(name.endswith(".json") for name in names)
    assert {key for key, value in found.items() if isinstance(value, js.LazyArray)} == {
        "rows",
        "columns",
        "half",
    }
    same(as_arrays(dict(found)), {key: whole[key] for key in found})
    assert set(found) == {"rows", "columns", "same", "half"} and found.__metadata__ == {}
    with pytest.raises(FileError, match="one rank's part of .*load the folder"):
        load(ranks / "parts" / names[1])
    shutil.copy(ranks / "parts" / names[1], tmp_path / names[1])
    with pytest.raises(FileError, match="parts do not fill shape .*; a file is missing"):
        load(tmp_path)


def test_fsdp_with_its_optimizer(ranks, same):
    """The order is that of the model; `.metadata` has what rank 1 wrote behind what rank 0 wrote."""
    found, whole = load(ranks / "fsdp"), torch.load(ranks / "fsdp.pt")
    assert list(contents_of(ranks / "fsdp").entries) != list(contents_of(ranks / "fsdp").paths)
    same(as_arrays(found), whole)
    assert list(found["model"]) == list(whole["model"])


def test_fsdp_goes_on_in_jax(ranks):
    found, whole = load(ranks / "fsdp"), torch.load(ranks / "fsdp.pt")
    net = nnx.Sequential(*(layer(rngs=nnx.Rngs(0)) for layer in LAYERS))
    net = js.load_state_dict(net, found["model"])
    for key, value in js.state_dict(net).items():
        if "num_batches" not in key:
            assert np.array_equal(value, whole["model"][key].numpy())
    binding, params = js.bind(net), nnx.state(net, nnx.Param)
    opt = js.optim.adamw(lr=0.02, weight_decay=0.3).init(params)
    opt = js.optim.load_state_dict(opt, found["optim"], binding)
    back = js.optim.state_dict(opt, binding, keys="fqn")
    for name, entry in whole["optim"]["state"].items():
        for key, value in entry.items():
            assert np.array_equal(back["state"][name][key], value.numpy())


LAYERS = (
    lambda rngs: nnx.Linear(3, 5, rngs=rngs),
    lambda rngs: nnx.BatchNorm(5, rngs=rngs),
    lambda rngs: nnx.Linear(5, 2, rngs=rngs),
)


def test_ranks_load_their_shards_of_what_we_write(ranks):
    whole = torch.load(ranks / "ours.pt")["m"]
    assert list(whole) == list(OURS["m"])
    for key, value in whole.items():
        assert np.array_equal(value.float().numpy(), OURS["m"][key].astype("f4"))


# What we write.


def test_torch_reads_what_we_write(tmp_path, same):
    torch.save({**MIXED, "none": {}}, tmp_path / "a.pt")
    save(load(tmp_path / "a.pt"), tmp_path / "a", format="dcp")
    expected = {**MIXED, "model": dict(MIXED["model"])}
    dcp_to_torch_save(tmp_path / "a", tmp_path / "b.pt")
    same(load(tmp_path / "b.pt"), expected)  # torch forgets empty dicts; ours keep their places
    same(load(tmp_path / "a"), {**expected, "none": {}})
    assert sorted(os.listdir(tmp_path / "a")) == [".metadata", "__0_0.distcp"]


def test_metadata_is_torchs_own(tmp_path):
    """Its classes, with every field filled, compare equal to what torch would have written."""
    dcp.save(MIXED, checkpoint_id=tmp_path / "theirs", no_dist=True)
    save(load(tmp_path / "theirs"), tmp_path / "ours", format="dcp")
    ours, theirs = (pickle.loads((tmp_path / name / ".metadata").read_bytes()) for name in ("ours", "theirs"))
    assert type(ours) is Metadata and ours.version == theirs.version
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data and set(ours.storage_data) == set(theirs.storage_data)
    shape = ours.state_dict_metadata["model.0.weight"].size
    assert isinstance(ours.state_dict_metadata["scalar"], TensorStorageMetadata) and type(shape) is torch.Size
    assert all(info.offset % 64 == 0 for info in ours.storage_data.values())


def training():
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return net, torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.2, amsgrad=True)


def test_torch_resumes_from_what_we_write(tmp_path, trained):
    """Names, as torch asks for, from arrays that came as ids: the same weights after three more steps."""
    net, optimizer = training()
    trained(net, optimizer, 3)
    model, names = get_state_dict(net, optimizer)
    torch.save({"model": model, "optim": names, "step": 3}, tmp_path / "a.pt")
    save(load(tmp_path / "a.pt"), tmp_path / "a", format="dcp")
    again, fresh = training()
    trained(again, fresh, 1, seed=9)
    empty, state = get_state_dict(again, fresh)
    wanted = {"model": empty, "optim": state, "step": 0}
    dcp.load(wanted, checkpoint_id=tmp_path / "a", no_dist=True)
    set_state_dict(again, fresh, model_state_dict=empty, optim_state_dict=state)
    assert wanted["step"] == 3
    trained(net, optimizer, 3, seed=1)
    trained(again, fresh, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_ids_stay_whole_numbers(tmp_path, same, trained, kind):
    """torch spells the ids as text in the file; the groups tell what they were."""
    net, _ = training()
    groups = [{"params": list(net.parameters())[2:]}, {"params": list(net.parameters())[:2], "lr": 0.5}]
    optimizer = kind(groups, lr=0.1)
    trained(net, optimizer, 2)
    osd = optimizer.state_dict()
    dcp.save({"optim": osd}, checkpoint_id=tmp_path / "a", no_dist=True)
    found = load(tmp_path / "a")
    if osd["state"]:
        same(found["optim"], osd)
    torch.save(osd, tmp_path / "a.pt")
    save({"optim": load(tmp_path / "a.pt")}, tmp_path / "b", format="dcp")
    same(load(tmp_path / "b")["optim"], osd)
    fresh = kind([{"params": g["params"]} for g in groups], lr=0.3)
    trained(net, fresh, 1)
    wanted = {"optim": fresh.state_dict()}
    dcp.load(wanted, checkpoint_id=tmp_path / "b", no_dist=True)
    fresh.load_state_dict(wanted["optim"])
    assert [group["lr"] for group in fresh.param_groups] == [0.1, 0.5]
    for key, entry in osd["state"].items():
        assert all(torch.equal(fresh.state_dict()["state"][key][name], entry[name]) for name in entry)


@pytest.mark.parametrize(
    "obj, message",
    [
        ([1], "holds a dict, not a list"),
        ({1: 2}, r"obj has the key '1' of type int, which this format gives back as '1'"),
        ({"a": {"b": {None: 2}}}, r'obj\["a"\]\["b"\] has the key \'None\''),
        (
            {"o": {"state": {0: {}, "x": {}}, "param_groups": [{"params": [0]}]}},
            r'"state"\] has the key .*fqn',
        ),
        (
            {"o": {"state": {"0": {}}, "param_groups": [{"params": [0]}]}},
            r"key '0' of type str.*gives back as 0",
        ),
        ({"o": {"state": {5: {}}, "param_groups": [{"params": [0]}]}}, "key '5' of type int"),
        ({"a.b": 1, "a": {"b": 2}}, 'two entries are "a.b"'),
        ({"a": [{}, {"b": {"c": print}}]}, r'obj\["a"\]\[1\]\["b"\]\["c"\]: a builtins.builtin'),
        ({"a": np.ones(2, "datetime64[s]")}, r'obj\["a"\]: an array of dtype datetime64'),
    ],
)
def test_what_the_format_cannot_give_back(tmp_path, obj, message):
    with pytest.raises(FileError, match=message):
        save(obj, tmp_path / "a", format="dcp")
    assert os.listdir(tmp_path) == []


def test_empty_dicts_and_lists_keep_their_places(tmp_path, same):
    for obj in ({}, {"a": {}}, {"b": [], "a": {"x": {}, "y": 1}, "c": [{}, {"d": torch.ones(2)}, [{}]]}):
        torch.save(obj, tmp_path / "a.pt")
        save(load(tmp_path / "a.pt"), tmp_path / "a", format="dcp")
        same(load(tmp_path / "a"), obj)


def test_writing_over_a_folder(tmp_path):
    save({"a": np.arange(3), "b": np.arange(2)}, tmp_path / "a", format="dcp")
    (tmp_path / "a" / "config.json").write_text("{}")
    save({key: value * 2 for key, value in load(tmp_path / "a").items()}, tmp_path / "a", format="dcp")
    assert sorted(os.listdir(tmp_path / "a")) == [".metadata", "__0_1.distcp", "config.json"]
    back = {"a": torch.zeros(3, dtype=torch.int64), "b": torch.zeros(2, dtype=torch.int64)}
    dcp.load(back, checkpoint_id=tmp_path / "a", no_dist=True)
    assert back["a"].tolist() == [0, 2, 4] and back["b"].tolist() == [0, 2]


def test_what_we_write_is_aligned_and_what_torch_writes_is_read_as_it_lies(tmp_path):
    sd = {"a": np.arange(16, dtype="f4"), "b": np.arange(5, dtype="i1"), "c": np.arange(16, dtype="f4") + 1}
    save(sd, tmp_path / "a", format="dcp")
    assert all(array.ctypes.data % 64 == 0 for array in load(tmp_path / "a").values())
    dcp.save(
        {key: torch.tensor(value) for key, value in sd.items()}, checkpoint_id=tmp_path / "b", no_dist=True
    )
    found = load(tmp_path / "b")
    assert not all(array.flags.aligned for array in found.values())
    for key, array in found.items():
        assert np.array_equal(jax.device_put(array), sd[key]) and np.array_equal(
            jax.numpy.asarray(array), sd[key]
        )
    save(found, tmp_path / "c.pt")
    assert torch.load(tmp_path / "c.pt")["c"].tolist() == sd["c"].tolist()
