"""torch's optimizers are loaded onto shards and written from there, and torch goes on from what it reads."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from moves_optimizers import BINDING, EMPTY
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import jaxstate as js
from jaxstate.errors import FileError

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning", "ignore:TypedStorage is deprecated:UserWarning"
)

SCRIPT = Path(__file__).parent / "moves_optimizers.py"
SHAPES = {key: shape for key, shape in BINDING.of(EMPTY).shapes.items() if key != "head.weight"}


class Box(torch.nn.Module):
    """A module with these parameters, at the places that their names say."""

    def __init__(self, shapes, rng):
        super().__init__()
        for key, shape in shapes.items():
            module = self
            *steps, last = key.split(".")
            for step in steps:
                if step not in module._modules:
                    module.add_module(step, torch.nn.Module())
                module = module._modules[step]
            values = torch.from_numpy(rng.standard_normal(shape, np.float32))
            module.register_parameter(last, torch.nn.Parameter(values))
        if "wte.weight" in shapes:
            self.add_module("head", torch.nn.Module())
            self.head.register_parameter("weight", self.wte.weight)


def trained(name, steps=3):
    """A module and its optimizer after steps; `norm` is frozen but for optax, which counts once."""
    rng = np.random.default_rng(len(name))
    net = Box(SHAPES, rng)
    named = list(net.named_parameters())
    norm = [(n, p.requires_grad_(name == "adam")) for n, p in named if n == "norm"]
    rest = [(n, p) for n, p in named if n != "norm"]
    optimizer = {
        "adamw": lambda: torch.optim.AdamW(
            [{"params": norm, "lr": 0.02}, {"params": rest}], lr=0.1, amsgrad=True
        ),
        "nadam": lambda: torch.optim.NAdam(named, lr=0.1),
        "adafactor": lambda: torch.optim.Adafactor(named, lr=0.1),
        "adam": lambda: torch.optim.Adam([dict(named)[key] for key in SHAPES], lr=0.1),
    }[name]()
    for _ in range(steps):
        for p in (p for _, p in named if p.requires_grad):
            p.grad = torch.from_numpy(rng.standard_normal(tuple(p.shape), np.float32))
        optimizer.step()
    return net, optimizer


NAMES = ("adamw", "nadam", "adafactor", "adam")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    for name in NAMES:
        net, optimizer = trained(name)
        osd = optimizer.state_dict()
        torch.save({"model": net.state_dict(), "optimizer": osd}, folder / f"{name}.pt")
        flat = {f"{i}/{k}": x for i, row in osd["state"].items() for k, x in row.items()}
        save_file(flat, folder / f"{name}.safetensors")
        model, named = get_state_dict(net, optimizer)
        dcp.save({"model": model, "optimizer": named}, checkpoint_id=folder / f"{name}.dcp", no_dist=True)
    return folder


def run(folder, devices, *processes):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *arguments],
            env={**os.environ, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in processes
    ]
    try:
        ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, ended, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert "all of it" in out


def same(found, expected):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        return all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return all(map(same, found, expected))
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    else:
        assert type(found) is type(expected) and found == expected
    return True


def resumed_by_torch(folder, name):
    """What torch's own functions make of a folder in an optimizer that knows nothing yet."""
    net, optimizer = trained(name, steps=0)
    model, osd = get_state_dict(net, optimizer)
    parts = {"model": model, "optimizer": osd}
    dcp.load(parts, checkpoint_id=folder, no_dist=True)
    set_state_dict(net, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
    return optimizer.state_dict()


def check(folder, devices, names):
    for name in names:
        expected = torch.load(folder / f"{name}.pt")["optimizer"]
        same(resumed_by_torch(folder / f"{name}-{devices}", name), expected)


def test_eight_devices_of_one_process(folder):
    run(folder, 8, ("0", "0", *NAMES))
    check(folder, 8, NAMES)


def test_two_processes(folder):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    run(folder, 2, (port, "0", *NAMES[::2]), (port, "1", *NAMES[::2]))
    files = sorted(path.name for path in (folder / "adamw-4").iterdir())
    assert files == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    check(folder, 4, NAMES[::2])


def test_a_folder_of_arrays_alone_takes_no_optimizer(tmp_path):
    tx, params = js.optim.adam(), {"w": np.ones((2, 3), "float32")}
    binding = js.Binding((js.Rule("w", "w", "i o -> o i"),))
    with pytest.raises(FileError, match='needs format="dcp", and safetensors holds arrays alone'):
        js.sharded.save(params, tmp_path / "a", binding, opt_state=tx.init(params))
    assert not list(tmp_path.iterdir())
