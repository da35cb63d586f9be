"""`jaxstate inspect`: every array, tie, group and value of a file, against what torch has in memory."""

import json
import subprocess
import sys

import numpy as np
import torch
from command_line import jaxstate, saved, training  # noqa: F401


def test_every_array_is_listed_as_torch_has_it(jaxstate, saved, training):
    found = json.loads(jaxstate("inspect", saved, "--json").out)
    arrays = {array["path"]: array for array in found["arrays"]}
    expected = {f"model/{key}": tensor for key, tensor in training["model"].items()}
    for number, entries in training["optimizer"]["state"].items():
        expected |= {f"optimizer/state/{number}/{name}": value for name, value in entries.items()}
    assert list(arrays) == list(expected)
    for path, tensor in expected.items():
        assert arrays[path]["shape"] == list(tensor.shape)
        assert f"torch.{arrays[path]['dtype']}" == str(tensor.dtype)
        assert arrays[path]["nbytes"] == tensor.nbytes
    assert found["nbytes"] == sum(tensor.nbytes for tensor in expected.values())
    assert found["values"] == {"epoch": "7"}


def test_groups_have_their_options(jaxstate, saved):
    (group,) = json.loads(jaxstate("inspect", saved, "--json").out)["groups"]
    assert group["path"] == "optimizer/param_groups/0" and group["parameters"] == 3
    assert group["options"]["lr"] == 0.02 and group["options"]["weight_decay"] == 0.3


def test_a_tie_names_the_first_key(jaxstate, tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    torch.save({"embed.weight": tied, "norm": torch.ones(3), "head.weight": tied}, tmp_path / "tied.pt")
    found = json.loads(jaxstate("inspect", tmp_path / "tied.pt", "--json").out)
    assert {a["path"]: a["tied_to"] for a in found["arrays"]} == {
        "embed.weight": None,
        "norm": None,
        "head.weight": "embed.weight",
    }
    assert found["nbytes"] == tied.nbytes + 12


def test_the_table_says_what_and_who(jaxstate, saved):
    done = jaxstate("inspect", saved)
    assert done.status == 0
    assert "torch's zip archive, 12 arrays" in done.out
    assert "written by a training loop" in done.out
    assert "model/2.weight (3, 5) float32 60 B" in " ".join(done.out.split())
    assert "optimizer/param_groups/0: 3 parameters, lr 0.02" in done.out


def test_one_part(jaxstate, saved, training):
    for part in ("optimizer", "model"):
        found = json.loads(jaxstate("inspect", saved, "--part", part, "--json").out)
        assert bool(found["groups"]) == (part == "optimizer")
    assert [array["path"] for array in found["arrays"]] == list(training["model"])


def test_a_part_that_is_not_there_is_refused_with_those_that_are(jaxstate, saved):
    done = jaxstate("inspect", saved, "--part", "ema")
    assert done.status == 2 and not done.out
    assert 'there is no ema in this checkpoint; it holds "model", "epoch", "optimizer"' in done.err


def test_what_is_no_checkpoint_is_named(jaxstate, tmp_path):
    np.save(tmp_path / "one.npy", np.arange(3))
    done = jaxstate("inspect", tmp_path / "one.npy")
    assert done.status == 2 and "load it with numpy.load" in done.err
    done = jaxstate("inspect", tmp_path / "absent.pt")
    assert done.status == 2 and "absent.pt" in done.err


def test_records_that_are_never_called_are_shown(jaxstate, tmp_path):
    torch.save({"net": torch.nn.Linear(2, 3), "weight": torch.ones(2)}, tmp_path / "whole.pt")
    done = jaxstate("inspect", tmp_path / "whole.pt")
    assert done.status == 0 and "torch.nn.modules.linear.Linear" in done.out


def test_a_reader_of_a_pipe_may_stop(saved):
    command = f"{sys.executable} -m jaxstate inspect {saved} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_help_has_an_example_for_each(capsys):
    import pytest

    from jaxstate.commands import COMMANDS, main

    for module in COMMANDS:
        name = module.__name__.rpartition("._")[2]
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"example: jaxstate {name}" in " ".join(capsys.readouterr().out.split())
