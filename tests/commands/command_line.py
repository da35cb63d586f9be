"""A training's checkpoint, as torch writes it, and the command line as a function."""

from typing import NamedTuple

import pytest
import torch

from jaxstate.commands import main


class Output(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def jaxstate(capsys):
    """Runs a command in this process: its status, and what it printed."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return Output(status, *capsys.readouterr())

    return run


@pytest.fixture
def training():
    """A module with a tied weight, its optimizer after a step, and what a user saves of them."""
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3, bias=False))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.3)
    module(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}


@pytest.fixture
def saved(training, tmp_path):
    path = tmp_path / "train.pt"
    torch.save(training, path)
    return path
