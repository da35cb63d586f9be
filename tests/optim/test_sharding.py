"""Parameters may be spread over devices: a step of every optimizer is that of one device, and stays there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "lbfgs",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sparse_adam",
]


@pytest.fixture(scope="module")
def found():
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    script = Path(__file__).with_name("sharded_steps.py")
    run = subprocess.run(
        [sys.executable, script], env={**os.environ, **devices}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_do_what_one_does(found, name):
    # Devices sum in another order. Muon rounds sums to bfloat16, LBFGS divides by their differences.
    assert found[name]["error"] <= {"muon": 1e-2, "lbfgs": 1e-4}.get(name, 2e-6), found[name]
    assert found[name]["moved"] > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_state_lies_where_its_parameters_lie(found, name):
    assert not found[name]["astray"]


def test_every_optimizer_is_asked():
    torch = pytest.importorskip("torch")
    classes = [getattr(torch.optim, name) for name in torch.optim.__all__ if name[0].isupper()]
    theirs = {kind.__name__.lower() for kind in classes if kind is not torch.optim.Optimizer}
    assert {name.replace("_", "") for name in NAMES} == theirs
