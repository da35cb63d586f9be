"""Two hosts that share no disk: each writes and reads its own part, and what fails in one is told to both."""

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

import jaxstate as js
from jaxstate.errors import FileError

pytestmark = pytest.mark.filterwarnings("ignore:.*distributed.*:UserWarning")
ENVIRONMENT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}


def start(script, folder, *rest):
    """Two processes that find each other."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, str(Path(__file__).parent / script), str(folder), port]
    return [
        subprocess.Popen(
            [*command, str(number), *rest],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def ended(started, timeout=240):
    """What they have said. Both are listened to at once: one that is not heard stops at a full pipe."""
    try:
        with ThreadPoolExecutor(len(started)) as pool:
            said = list(pool.map(lambda process: process.communicate(timeout=timeout), started))
        return [(*words, process.returncode) for words, process in zip(said, started, strict=True)]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "shared").mkdir()
    for out, err, code in ended(start("on_two_hosts.py", folder)):
        assert code == 0, err[-3000:]
        assert out.split("\n")[-2] == "all of it"
    return folder


def same(found, hosts):
    expected = torch.load(hosts / "expected.pt")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert np.asarray(found[key]).tobytes() == tensor.numpy().tobytes(), key


def test_the_folders_of_both_are_the_model(hosts, tmp_path):
    folders = [hosts / f"host{n}" / "own" for n in range(2)]
    same(js.load(folders), hosts)
    same(js.load([str(folder) for folder in reversed(folders)]), hosts)
    for folder in folders:
        shutil.copytree(folder, tmp_path / "one", dirs_exist_ok=True)
    same(js.load(tmp_path / "one"), hosts)
    js.save(js.load(tmp_path / "one"), tmp_path / "whole", format="dcp")
    tensors = {key: torch.empty_like(t) for key, t in torch.load(hosts / "expected.pt").items()}
    dcp.load(tensors, checkpoint_id=tmp_path / "whole", no_dist=True)
    same(tensors, hosts)


def test_torch_reads_what_one_host_has(hosts, tmp_path):
    for number in range(2):
        shutil.copytree(hosts / f"host{number}" / "own", tmp_path / str(number))
        shutil.copy(tmp_path / str(number) / f"__{number}.metadata", tmp_path / str(number) / ".metadata")
        tensors = {"norm": torch.empty(10), "crumbs": torch.empty(2048)}
        dcp.load(tensors, checkpoint_id=tmp_path / str(number), no_dist=True)
        expected = torch.load(hosts / "expected.pt")
        assert all(torch.equal(tensors[key], expected[key]) for key in tensors)


def test_parts_that_make_no_whole(hosts, tmp_path):
    own, again = hosts / "host0" / "own", hosts / "host1" / "again"
    with pytest.raises(FileError, match="parts of different saves, and would make a mixture"):
        js.load([own, again])
    half = js.load([own])
    with pytest.raises(
        FileError, match=r"the part \[0:32, 0:8\] of a tensor of shape \(32, 8\) is not in these"
    ):
        np.asarray(half["wte.weight"])
    with pytest.raises(FileError, match="is no folder"):
        js.load([own, tmp_path / "nowhere"])
    with pytest.raises(FileError, match="has no metadata of a rank"):
        js.load([own, tmp_path])
    with pytest.raises(FileError, match="is no folder"):
        js.load([hosts / "expected.pt"])


def test_a_host_is_killed_while_it_saves(tmp_path):
    first, second = start("host_that_dies.py", tmp_path, "dies")
    try:
        assert second.wait(150) == -9
        for _ in range(2400):
            if (tmp_path / "host0" / "steps" / "2").is_dir():
                break
            time.sleep(0.05)
    finally:
        ended_at_once([first, second])
    names = [sorted(path.name for path in (tmp_path / f"host{n}" / "steps").iterdir()) for n in range(2)]
    assert names == [["1", "2"], ["1", "2.orbax-checkpoint-tmp"]], "one has a step that the other one has not"
    for out, err, code in ended(start("host_that_dies.py", tmp_path, "resumes")):
        assert code == 0, err[-3000:]
        assert out.split("\n")[-2] == "all of it"


def ended_at_once(started):
    for process in started:
        process.kill()
    ended(started)
