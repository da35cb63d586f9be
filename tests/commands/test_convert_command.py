"""`jaxstate convert`: what torch, safetensors and torch.distributed.checkpoint read of what was written."""

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import jaxstate, saved, training  # noqa: F401
from safetensors.torch import load_file

import jaxstate as js


def same(found, expected):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


@pytest.mark.parametrize("format", ["pt", "legacy"])
def test_the_whole_of_a_training(jaxstate, saved, training, tmp_path, format):
    done = jaxstate("convert", saved, tmp_path / "new.pt", "--format", format)
    assert done.status == 0 and "12 arrays, 432 B" in done.out and not done.err
    found = torch.load(tmp_path / "new.pt", weights_only=True)
    assert list(found) == list(training) and found["epoch"] == 7
    same(found["model"], training["model"])
    assert found["optimizer"]["param_groups"] == training["optimizer"]["param_groups"]
    for number, entries in training["optimizer"]["state"].items():
        same(found["optimizer"]["state"][number], entries)


def test_safetensors_takes_the_model_and_says_what_is_left(jaxstate, saved, training, tmp_path):
    done = jaxstate("convert", saved, tmp_path / "model.safetensors")
    assert done.status == 0 and 'not taken: "optimizer", "epoch"' in done.err
    found = load_file(tmp_path / "model.safetensors")
    same({key: found[key] for key in training["model"]}, training["model"])


def test_a_folder_in_shards(jaxstate, saved, training, tmp_path):
    assert jaxstate("convert", saved, tmp_path / "hf", "--max-shard-size", "100B").status == 0
    parts = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert len(parts) > 2 and parts[-1] == "model.safetensors.index.json"
    found = {key: t for part in parts[:-1] for key, t in load_file(tmp_path / "hf" / part).items()}
    same({key: found[key] for key in training["model"]}, training["model"])
    assert jaxstate("convert", tmp_path / "hf", tmp_path / "back.pt").status == 0
    same(torch.load(tmp_path / "back.pt", weights_only=True), training["model"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint(jaxstate, saved, training, tmp_path):
    assert jaxstate("convert", saved, tmp_path / "dcp", "--format", "dcp", "--part", "model").status == 0
    found = {key: torch.zeros_like(tensor) for key, tensor in training["model"].items()}
    dcp.load(found, checkpoint_id=tmp_path / "dcp", no_dist=True)
    same(found, training["model"])


def test_prefixes(jaxstate, saved, training, tmp_path):
    assert jaxstate("convert", saved, tmp_path / "a.pt", "--prefix", "encoder.").status == 0
    same(torch.load(tmp_path / "a.pt"), {f"encoder.{key}": t for key, t in training["model"].items()})
    assert jaxstate("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--strip-prefix", "encoder.").status == 0
    same(torch.load(tmp_path / "b.pt"), training["model"])
    done = jaxstate("convert", tmp_path / "a.pt", tmp_path / "c.pt", "--strip-prefix", "decoder.")
    assert done.status == 2 and 'do not begin with "decoder."' in done.err
    assert not (tmp_path / "c.pt").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_another_dtype_is_torch_s_rounding(jaxstate, tmp_path, dtype):
    torch.manual_seed(1)
    entries = {"w": torch.randn(5, 7), "n": torch.tensor(3), "z": torch.randn(4, dtype=torch.complex64)}
    torch.save(entries, tmp_path / "a.pt")
    assert jaxstate("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--dtype", dtype).status == 0
    found = torch.load(tmp_path / "b.pt")
    assert torch.equal(found["w"], entries["w"].to(getattr(torch, dtype))), dtype
    assert found["n"].dtype == torch.int64 and torch.equal(found["z"], entries["z"])


def test_a_number_beyond_the_dtype_is_refused(jaxstate, tmp_path):
    torch.save({"w": torch.tensor([1.0, 1e6])}, tmp_path / "a.pt")
    done = jaxstate("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--dtype", "float16")
    assert done.status == 2 and "1000000.0 is beyond float16" in done.err and 'obj["w"]' in done.err
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_tied_weights_stay_tied(jaxstate, tmp_path, dtype):
    tied = torch.randn(6, 4)
    entries = {"embed": tied, "norm": torch.randn(4), "head": tied, "half": tied[2:4]}
    torch.save(entries, tmp_path / "a.pt")
    jaxstate("convert", tmp_path / "a.pt", tmp_path / "b.pt", *(["--dtype", dtype] if dtype else []))
    found = torch.load(tmp_path / "b.pt")
    assert found["embed"].data_ptr() == found["head"].data_ptr() != found["norm"].data_ptr()
    for key, tensor in entries.items():
        assert torch.equal(found[key], tensor.to(found[key].dtype)), key
    if dtype is None:
        assert found["half"].data_ptr() == found["embed"][2:].data_ptr()


def test_a_memory_budget_names_what_is_above_it(jaxstate, saved, tmp_path):
    done = jaxstate("convert", saved, tmp_path / "new.pt", "--memory", "59B")
    assert done.status == 2 and "model/0.weight of 60 B" in done.err
    assert jaxstate("convert", saved, tmp_path / "new.pt", "--memory", "60B").status == 0


def test_a_model_of_ones_own_goes_to_orbax(jaxstate, tmp_path, monkeypatch):
    (tmp_path / "nets_for_orbax.py").write_text(
        "from flax import nnx\n"
        "def make():\n"
        "    return nnx.eval_shape(lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(0)))\n"
    )
    monkeypatch.chdir(tmp_path)
    linear = torch.nn.Linear(3, 5)
    torch.save({"model": linear.state_dict(), "epoch": 3}, tmp_path / "linear.pt")
    done = jaxstate("convert", "linear.pt", "ckpt", "--model", "nets_for_orbax:make")
    assert done.status == 0, done.err
    from flax import nnx

    model = js.orbax.restore(
        tmp_path / "ckpt", nnx.eval_shape(lambda: nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    ).model
    assert np.array_equal(model.kernel[...], linear.weight.detach().numpy().T)
    assert jaxstate("convert", "ckpt", "back.pt").status == 0
    same(torch.load("back.pt"), linear.state_dict())
    assert "an Orbax checkpoint" in jaxstate("inspect", "ckpt").out


def test_the_bar_counts_every_byte(training):
    from jaxstate.commands._one_by_one import announced

    asked = []
    obj = {"a": np.arange(6.0), "b": [np.arange(3, dtype="int8")], "c": "text"}
    new = announced(obj, asked.append)
    assert asked == []
    assert np.array_equal(np.asarray(new["a"]), obj["a"]) and np.asarray(new["b"][0]).dtype == "int8"
    assert asked == [48, 3] and new["c"] == "text"


def test_only_a_model_is_rounded(jaxstate, saved, training, tmp_path):
    """A step count of 1001 has no bfloat16, and would come back as 1000."""
    done = jaxstate("convert", saved, tmp_path / "a.pt", "--dtype", "bfloat16")
    assert done.status == 0 and 'not taken: "optimizer", "epoch"' in done.err
    same(torch.load(tmp_path / "a.pt"), {key: t.bfloat16() for key, t in training["model"].items()})


@pytest.mark.parametrize("option", [("--dtype", "bfloat16"), ("--prefix", "net."), ("--strip-prefix", "s")])
def test_an_optimizer_is_neither_rounded_nor_renamed(jaxstate, saved, tmp_path, option):
    done = jaxstate("convert", saved, tmp_path / "a.pt", "--part", "optimizer", *option)
    assert done.status == 2 and not (tmp_path / "a.pt").exists()
    assert f"{option[0]} is for the weights of a model, and optimizer is none" in done.err


def test_the_versions_of_modules_are_renamed_with_them(jaxstate, tmp_path):
    inner = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    outer = torch.nn.ModuleDict({"net": inner})
    torch.save(inner.state_dict(), tmp_path / "inner.pt")
    assert jaxstate("convert", tmp_path / "inner.pt", tmp_path / "outer.pt", "--prefix", "net.").status == 0
    found, expected = torch.load(tmp_path / "outer.pt"), outer.state_dict()
    same(found, expected)
    assert {**found._metadata, "": {"version": 1}} == dict(expected._metadata)
    assert jaxstate("convert", tmp_path / "outer.pt", tmp_path / "b.pt", "--strip-prefix", "net.").status == 0
    assert torch.load(tmp_path / "b.pt")._metadata == inner.state_dict()._metadata
