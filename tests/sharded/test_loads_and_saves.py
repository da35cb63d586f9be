"""Two processes load a model from torch's files and write it back, each its part; torch reads the result."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

SCRIPT = Path(__file__).parent / "loads_and_saves.py"
ENVIRONMENT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), port, str(i)],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, ended, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert "all of it" in out.split("\n")[-2]
    return folder


def same(found, folder):
    expected = torch.load(folder / "net.pt")
    assert set(found) == set(expected)
    for key in set(expected) - {"b_ih", "b_hh"}:
        assert found[key].dtype == expected[key].dtype and torch.equal(found[key], expected[key]), key
    assert torch.equal(found["b_ih"] + found["b_hh"], expected["b_ih"] + expected["b_hh"])


@pytest.mark.filterwarnings("ignore:.*distributed.*:UserWarning")
def test_torch_reads_the_shards_of_both(folder, tmp_path):
    files = sorted(path.name for path in (folder / "ours.dcp").iterdir())
    assert files == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    dcp_to_torch_save(str(folder / "ours.dcp"), str(tmp_path / "whole.pt"))
    same(torch.load(tmp_path / "whole.pt"), folder)


def test_safetensors_reads_the_files_of_both(folder):
    files = sorted(path.name for path in (folder / "ours").iterdir())
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert files == [*names, "model.safetensors.index.json"]
    rows = [load_file(folder / "ours" / name) for name in names]
    assert not set(rows[0]) & set(rows[1])
    same(rows[0] | rows[1], folder)
    sizes = [sum(t.nbytes for t in row.values()) for row in rows]
    assert np.ptp(sizes) < max(t.nbytes for t in (rows[0] | rows[1]).values())
