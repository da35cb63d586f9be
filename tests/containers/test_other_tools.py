"""torchvision, timm, fairseq, Megatron-LM: files of their documented layout, made by `make_fixtures.py`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from make_fixtures import FOLDER, fairseq, scaler, timm, torchvision

import jaxstate as js
from jaxstate.containers._load import FILES
from jaxstate.io import Opaque

FIXTURES = {"torchvision.pth": torchvision, "timm.pth.tar": timm, "fairseq.pt": fairseq}


def assert_same(ours, theirs, values=True):
    """The same values, with arrays in the place of tensors."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key], values)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, values)
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        assert ours.shape == theirs.shape
        assert not values or np.array_equal(ours, theirs.numpy())
    elif isinstance(ours, Opaque):
        assert dict(ours.state).keys() == vars(theirs).keys()
    else:
        assert ours == theirs


@pytest.fixture(params=FIXTURES)
def pair(request):
    """The checkpoint, and what torch reads."""
    path = FOLDER / request.param
    return js.load_checkpoint(path), torch.load(path, weights_only=False)


def test_the_fixtures_are_what_the_script_writes():
    for name, construct in FIXTURES.items():
        assert_same(
            js.load(FOLDER / name), construct(), values=False
        )  # another machine rounds in another way


def test_one_tool_each(pair):
    ckpt, contents = pair
    assert [tool.name for tool in FILES if tool.evidence(contents) or tool.name == ckpt.tool.name] == [
        ckpt.tool.name
    ]


PARTS = {
    "a torchvision reference script": dict(
        model="model",
        optimizer="optimizer",
        scheduler="lr_scheduler",
        scaler="scaler",
        ema="model_ema",
        epoch="epoch",
    ),
    "timm": dict(
        model="state_dict", optimizer="optimizer", scaler="amp_scaler", ema="state_dict_ema", epoch="epoch"
    ),
    "fairseq": dict(model="model", optimizer="last_optimizer_state"),
}
TOLD = {"fairseq": {"scheduler": {"best": 2.5}, "epoch": 9, "step": 3}}


def test_each_part_is_torchs(pair):
    ckpt, contents = pair
    places = PARTS[ckpt.tool.name]
    for part, place in places.items():
        assert_same(getattr(ckpt, part), contents[place])
    for part, value in TOLD.get(ckpt.tool.name, {}).items():
        assert getattr(ckpt, part) == value
    assert_same(ckpt.extra, {k: value for k, value in contents.items() if k not in places.values()})


def test_what_lies_deeper_in_fairseqs():
    ckpt = js.load_checkpoint(FOLDER / "fairseq.pt")
    assert_same(ckpt.ema, torch.load(FOLDER / "fairseq.pt", weights_only=False)["extra_state"]["ema"])
    assert ckpt.places["step"] == "optimizer_history[-1].num_updates"


def test_the_average_and_the_scale_go_into_jax():
    """What torchvision's script averages is an AveragedModel, and its scaler torch's."""
    ckpt = js.load_checkpoint(FOLDER / "torchvision.pth")
    assert int(ckpt.ema["n_averaged"]) == 3 and ckpt.scaler == scaler()
    params = {"embed": np.zeros((5, 3), np.float32)}
    binding = js.Binding([js.Rule("embed.weight", "embed", "v d -> v d")])
    average = {k: v for k, v in ckpt.ema.items() if k in ("n_averaged", "module.embed.weight")}
    ours = js.averaging.load_state_dict(js.averaging.AveragedModel.of(params), average, binding)
    theirs = torch.load(FOLDER / "torchvision.pth", weights_only=False)["model_ema"]
    np.testing.assert_array_equal(ours.module["embed"], theirs["module.embed.weight"].numpy())


def test_megatron_is_refused_by_name(tmp_path):
    message = r"a checkpoint of Megatron-LM \(.*\); .*tools/checkpoint/convert.py"
    rank = {"checkpoint_version": 3.0, "iteration": 5, "model": {"language_model": {}}, "optimizer": {}}
    torch.save(rank, tmp_path / "model_optim_rng.pt")
    with pytest.raises(js.CheckpointError, match=message):
        js.load_checkpoint(tmp_path / "model_optim_rng.pt")
    for name in ("iter_0000005", "mp_rank_00_001"):
        folder = tmp_path / "of" / name
        (folder / name).mkdir(parents=True)
        with pytest.raises(js.CheckpointError, match=message):
            js.load_checkpoint(folder)


def test_marks_of_two_tools_are_refused(tmp_path):
    torch.save({**timm(), "pytorch-lightning_version": "2.0"}, tmp_path / "two.pt")
    with pytest.raises(
        js.CheckpointError, match="the marks of several tools: Lightning .*; timm .*jaxstate.load"
    ):
        js.load_checkpoint(tmp_path / "two.pt")


def test_an_unknown_folder_is_refused(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    Path(tmp_path, "notes.txt").write_text("")
    with pytest.raises(js.CheckpointError) as caught:
        js.load_checkpoint(tmp_path)
    assert str(caught.value) == (
        f'{tmp_path}: a folder that no known tool writes, with "checkpoint-3", "notes.txt"; '
        'load one of the folders in it: "checkpoint-3"'
    )
