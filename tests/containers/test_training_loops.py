"""Dicts that people save: each part is found under its usual names, nothing is guessed, nothing is lost."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

import jaxstate as js
from jaxstate.containers._load import _of_object
from jaxstate.display import checkpoint_table

torch.manual_seed(1)
NET = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
OPTIMIZER = torch.optim.AdamW(NET.parameters(), lr=0.02, weight_decay=0.3)
NET(torch.randn(5, 3)).square().sum().backward()
OPTIMIZER.step()
SCHEDULER = torch.optim.lr_scheduler.StepLR(OPTIMIZER, 3, 0.5)
PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau(OPTIMIZER, patience=2)
AVERAGE = torch.optim.swa_utils.AveragedModel(NET)
AVERAGE.update_parameters(NET)
SD, OSD, AVERAGED = NET.state_dict(), OPTIMIZER.state_dict(), AVERAGE.state_dict()
OTHER = {key: value + 0.5 for key, value in SD.items()}
SCALER = dict(scale=512.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=7, _growth_tracker=3)


def loaded(tmp_path, obj, **asked):
    torch.save(obj, tmp_path / "last.pt")
    return js.load_checkpoint(tmp_path / "last.pt", **asked)


def assert_arrays(ours, theirs):
    assert list(ours) == list(theirs)
    assert all(np.array_equal(ours[key], theirs[key].numpy()) for key in theirs)


def roles(ckpt):
    return {place: part for part, place, _ in ckpt.rows if part not in ("extra", "wrappers")}


@pytest.mark.parametrize(
    "obj, expected",
    [
        (
            {"epoch": 3, "model_state_dict": SD, "optimizer_state_dict": OSD, "loss": 0.25},
            {"model_state_dict": "model", "optimizer_state_dict": "optimizer", "epoch": "epoch"},
        ),
        (
            {
                "state_dict": SD,
                "optimizer": OSD,
                "scheduler": SCHEDULER.state_dict(),
                "arch": "r",
                "best_acc1": 0.5,
            },
            {"state_dict": "model", "optimizer": "optimizer", "scheduler": "scheduler"},
        ),
        (
            {"model": SD, "optimizer": OSD, "model_args": {"n": 1}, "iter_num": 40, "config": {"lr": 1.0}},
            {"model": "model", "optimizer": "optimizer", "iter_num": "step"},
        ),
        (
            {
                "net": SD,
                "opt": OSD,
                "sched": PLATEAU.state_dict(),
                "grad": SCALER,
                "global_step": np.int64(9),
            },
            {
                "net": "model",
                "opt": "optimizer",
                "sched": "scheduler",
                "grad": "scaler",
                "global_step": "step",
            },
        ),
        ({"params": SD, "params_ema": OTHER}, {"params": "model", "params_ema": "ema"}),
        ({"model": SD, "swa": AVERAGED, "ema_decay": 0.9}, {"model": "model", "swa": "ema"}),
        ({"weights": SD, "best": AVERAGED}, {"weights": "model", "best": "ema"}),
        ({"model": SD, "scaler": {}}, {"model": "model", "scaler": "scaler"}),
        ({"model": SD, "amp": {"loss_scaler0": {"loss_scale": 8.0}}}, {"model": "model", "amp": "scaler"}),
        (
            {"model": SD, "optimizers": {"g": OSD, "d": OSD}, "optimizer_c": OSD},
            {
                "model": "model",
                "optimizers.g": "optimizer",
                "optimizers.d": "optimizer",
                "optimizer_c": "optimizer",
            },
        ),
        (
            {"model": SD, "optimizers": [OSD, OSD], "lr_schedulers": [SCHEDULER.state_dict()]},
            {
                "model": "model",
                "optimizers[0]": "optimizer",
                "optimizers[1]": "optimizer",
                "lr_schedulers[0]": "scheduler",
            },
        ),
        ({"step": 4, "iteration": 4, "model": SD}, {"model": "model", "step": "step"}),
        # Names that would mislead: what stands there is no part of a training.
        ({"model": SD, "scaler": {"mean": np.ones(2), "std": np.ones(2)}}, {"model": "model"}),
        ({"model": SD, "average_meters": {"loss": 0.5}, "schedule": "cosine"}, {"model": "model"}),
        ({"model": SD, "epoch": "last", "step": True}, {"model": "model"}),
        # One part alone.
        (SD, {"": "model"}),
        (OSD, {"": "optimizer"}),
        (AVERAGED, {"": "ema"}),
        ({"optimizer": OSD, "epoch": 1}, {"optimizer": "optimizer", "epoch": "epoch"}),
    ],
)
def test_parts_under_their_usual_names(tmp_path, obj, expected):
    ckpt = loaded(tmp_path, obj)
    assert roles(ckpt) == expected
    assert [place for part, place, _ in ckpt.rows if part == "extra"] == [
        key
        for key in obj
        if not any(place.startswith(str(key)) for place in expected if place) and "" not in expected
    ]


def test_the_values_are_torchs(tmp_path):
    osd, scheduler = OSD, SCHEDULER.state_dict()
    ckpt = loaded(
        tmp_path, {"model": SD, "optim": osd, "lr_sched": scheduler, "ema": AVERAGED, "scaler": SCALER}
    )
    assert_arrays(ckpt.model, SD)
    assert_arrays(ckpt.ema, AVERAGED)
    assert ckpt.model._metadata == SD._metadata
    assert ckpt.scaler == SCALER and ckpt.scheduler == scheduler
    assert ckpt.optimizer["param_groups"] == osd["param_groups"]
    for number, entry in osd["state"].items():
        assert_arrays(ckpt.optimizer["state"][number], entry)


def test_wrappers_are_taken_out_of_all_parts(tmp_path):
    wrapped = torch.nn.DataParallel(NET)
    optimizer = torch.optim.SGD(wrapped.named_parameters(), lr=0.1)
    ckpt = loaded(
        tmp_path, {"model": wrapped.state_dict(), "optimizer": optimizer.state_dict(), "ema": AVERAGED}
    )
    assert_arrays(ckpt.model, SD)
    assert ckpt.optimizer["param_groups"][0]["param_names"] == [name for name, _ in NET.named_parameters()]
    assert_arrays(ckpt.ema, AVERAGED)  # an AveragedModel's own keys are what js.averaging reads
    assert ckpt.prefix == "module." and set(ckpt.wrappers) == {"model", "optimizer"}
    wrapped.load_state_dict(
        {k: torch.tensor(v) for k, v in js.containers.wrap(ckpt.model, ckpt.wrappers["model"]).items()}
    )


@pytest.mark.parametrize(
    "obj, asked, place",
    [
        ({"model": SD, "net": OTHER}, {"model": "net"}, "net"),
        ({"generator": SD, "critic": OTHER}, {"model": "critic"}, "critic"),
        ({"state_dict": SD, "state_dict_ema": OTHER}, {"model": "state_dict_ema"}, "state_dict_ema"),
    ],
)
def test_the_caller_chooses(tmp_path, obj, asked, place):
    ckpt = loaded(tmp_path, obj, **asked)
    assert_arrays(ckpt.model, OTHER)
    assert ckpt.places["model"] == place and ckpt.ema is None
    assert set(ckpt.extra) == set(obj) - {place}


REFUSALS = [
    (
        {"model": SD, "net": SD, "epoch": 1},
        {},
        "{path}: a checkpoint of a training loop (a dict with model, net, epoch):\n"
        "\tseveral may be the model; choose by an argument of load_checkpoint:\n"
        '\t\tmodel="model": state_dict, 7 entries, 33 numbers\n'
        '\t\tmodel="net": state_dict, 7 entries, 33 numbers',
    ),
    (
        {"generator": SD, "step": 3, "iteration": 4},
        {},
        "{path}: a checkpoint of a training loop (a dict with step, iteration):\n"
        "\tnothing has a name that is usual for a model, and these may be one; choose by an argument of "
        'load_checkpoint:\n\t\tmodel="generator": state_dict, 7 entries, 33 numbers\n'
        "\tseveral may be the step; choose by an argument of load_checkpoint:\n"
        '\t\tstep="step": 3\n\t\tstep="iteration": 4',
    ),
    (
        {"model": SD, "ema": SD, "state_dict_ema": SD},
        {"model": "modle", "epoch": "ema"},
        "{path}: a checkpoint of a training loop (a dict with model, ema, state_dict_ema):\n"
        '\tmodel="modle": there is no such place; did you mean "model"?\n'
        '\tepoch="ema": no number, but state_dict, 7 entries, 33 numbers',
    ),
    (
        {"model": SD, "loss": 2.5},
        {"model": "loss"},
        "{path}: a checkpoint of a training loop (a dict with model):\n"
        '\tmodel="loss": no state_dict, but 2.5',
    ),
    ([1, 2], {}, "{path}: no checkpoint, which is a dict, but list of 2"),
    ({"loss": 0.5, 3: "x"}, {}, '{path}: no part of a checkpoint among "loss", "3"'),
    ({}, {}, "{path}: no part of a checkpoint among nothing"),
]


@pytest.mark.parametrize("obj, asked, message", REFUSALS)
def test_nothing_is_guessed(tmp_path, obj, asked, message):
    with pytest.raises(js.CheckpointError) as caught:
        loaded(tmp_path, obj, **asked)
    assert str(caught.value) == message.format(path=tmp_path / "last.pt")


def test_the_only_optimizer(tmp_path):
    ckpt = loaded(tmp_path, {"model": SD, "optimizer_g": OSD, "optimizer_d": OSD})
    with pytest.raises(js.CheckpointError) as caught:
        ckpt.optimizer  # noqa: B018
    assert str(caught.value) == (
        'the checkpoint holds 2 optimizers: "optimizer_g", "optimizer_d"; '
        'take one, ckpt.optimizers["optimizer_g"]'
    )
    with pytest.raises(js.CheckpointError, match="^the checkpoint holds no scheduler$"):
        ckpt.scheduler  # noqa: B018


def test_what_it_prints_is_text(tmp_path):
    ckpt = loaded(tmp_path, {"model": SD, "<b>": "<i>", "long": "x" * 999, "huge": 7**2000, "raw": b"abc"})
    assert "&lt;b&gt;" in ckpt._repr_html_() and "<b>" not in ckpt._repr_html_()
    assert [what for _, place, what in ckpt.rows if place in ("long", "huge", "raw")] == [
        repr("x" * 60 + "..."),
        "a huge number",
        "3 bytes",
    ]


def test_what_is_no_file_is_ios_error(tmp_path):
    with pytest.raises(js.FileError, match="cannot be read: No such file"):
        js.load_checkpoint(tmp_path / "none.pt")
    for path in (3, None, b"last.pt", "a\0b"):
        with pytest.raises(js.FileError, match="a path is due"):
            js.load_checkpoint(path)


def test_a_table_in_a_terminal(tmp_path):
    ckpt = loaded(tmp_path, {"model": torch.nn.DataParallel(NET).state_dict(), "[red]": 1})
    with open(os.devnull, "w") as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        console.print(checkpoint_table(ckpt))
    text = console.export_text()
    for row in ckpt.rows:
        assert all(cell in text for cell in row)
    assert f"Checkpoint of {ckpt.tool}" in text and "[red]" in text


def test_read_at_once_or_mapped(tmp_path):
    ckpt = loaded(tmp_path, {"model": SD}, mmap=False)
    (tmp_path / "last.pt").write_bytes(b"")
    assert_arrays(ckpt.model, SD)


def leaves(value):
    """The identity of every array and number, however deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [id(value)] if inside is None else [leaf for item in inside for leaf in leaves(item)]


ARRAYS = st.builds(lambda shape: np.zeros(shape), st.sampled_from([(2,), (3, 2), ()]))
STATE_DICTS = st.dictionaries(
    st.sampled_from(["module.a.weight", "module.b.bias", "c.w"]), ARRAYS, min_size=1
)
OPTIMIZERS = st.builds(
    lambda array: {"state": {0: {"exp_avg": array}}, "param_groups": [{"lr": 0.5, "params": [0]}]}, ARRAYS
)
OTHERS = st.floats() | st.text(max_size=3) | st.lists(st.floats(), max_size=2) | st.just({"last_epoch": 3})
PLACES = st.sampled_from("model net generator ema optimizer opt scheduler epoch step args scaler amp".split())


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(PLACES, STATE_DICTS | OPTIMIZERS | OTHERS | st.lists(OPTIMIZERS, max_size=2), min_size=1)
)
def test_the_parts_are_the_file(contents):
    try:
        ckpt = _of_object(contents, {})
    except js.CheckpointError:
        assume(False)
    parts = [ckpt.model, ckpt.ema, ckpt.scaler, ckpt.epoch, ckpt.step]
    parts += [ckpt.optimizers, ckpt.schedulers, ckpt.extra]
    found = [leaf for part in parts if part is not None for leaf in leaves(part)]
    assert Counter(leaves(contents)) == Counter(found)
    assert str(ckpt)
