"""`jaxstate convert` holds one tensor in memory at a time, whatever the size of the file."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import jaxstate as js

MIB = 2**20

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from jaxstate.commands import main

def anonymous():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

peak, done = [anonymous()], threading.Event()
start = peak[0]

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
status = main(sys.argv[1:])
done.set()
watcher.join()
print(json.dumps({"status": status, "extra": peak[0] - start}))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def converted(*arguments):
    """The status of the command, and by how many bytes anonymous memory peaked above its start."""
    command = [sys.executable, "-c", PROGRAM, "convert", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Sixteen tensors of 16 MiB."""
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    rng = np.random.default_rng(0)
    torch.save({f"{n}": torch.from_numpy(rng.normal(size=(4 * MIB,)).astype("f4")) for n in range(16)}, path)
    return path


@pytest.mark.parametrize(
    ("target", "options", "tensors"),
    [
        ("net.safetensors", [], 1),
        ("net.safetensors", ["--dtype", "bfloat16"], 2.5),  # the rounded tensor, and numpy's masks beside it
        ("hf", ["--max-shard-size", "40MiB"], 1),
        ("dcp", ["--format", "dcp"], 1),
        ("legacy.pt", ["--format", "legacy"], 1),
    ],
)
def test_one_tensor_is_in_memory(weights, tmp_path, target, options, tensors):
    found = converted(weights, tmp_path / target, *options)
    assert found["status"] == 0
    assert found["extra"] <= tensors * 16 * MIB + 24 * MIB
    key = "7"
    new = np.asarray(js.load(tmp_path / target)[key])
    expected = js.load(weights)[key].astype(new.dtype)
    assert np.array_equal(new, expected)


@pytest.mark.slow
def test_a_file_above_4_gib(tmp_path):
    path, count, rows = tmp_path / "large.safetensors", 9, 128 * MIB
    entries = {
        f"{n}": {"dtype": "F32", "shape": [rows], "data_offsets": [4 * rows * n, 4 * rows * (n + 1)]}
        for n in range(count)
    }
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:  # what is never written takes no room on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * rows * count)
    start = time.perf_counter()
    assert js.load(path)["8"][-1] == 0
    assert time.perf_counter() - start < 0.05
    found = converted(path, tmp_path / "large.pt", "--memory", "600MB")
    assert found["status"] == 0 and found["extra"] <= 4 * rows + 24 * MIB
    assert torch.load(tmp_path / "large.pt", mmap=True)["8"].shape == (rows,)
