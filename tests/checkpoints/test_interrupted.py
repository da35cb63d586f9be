"""Killed in the middle of a save, or out of room: the step before is whole, and nothing hangs."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxstate as js
from jaxstate.errors import CheckpointError

SCRIPT = Path(__file__).parent / "that_dies.py"
W = js.Binding((js.Rule("w", "w", "a -> a"),))


def run(folder, moment):
    command = [sys.executable, str(SCRIPT), str(folder), moment]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert time.monotonic() - start < 60, "a failed save of Orbax's own holds the interpreter for minutes"
    return done


# As soon as the folder is there, when half of the bytes are, when all that lacks is the name.
@pytest.mark.parametrize("moment", ["0", "8000000", "rename"])
def test_killed_while_it_saves(tmp_path, moment):
    assert run(tmp_path, moment).returncode == -9
    begun = [path.name for path in tmp_path.iterdir() if path.name != "1"]
    assert begun and all(name.startswith("2.orbax-checkpoint-tmp") for name in begun)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        js.orbax.restore(tmp_path / begun[0])
    with js.orbax.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]
        found = checkpoints.restore()
        assert found.step == 1 and np.array_equal(found.model["w"], np.arange(4_000_000, dtype="f") + 1)
        checkpoints.save(2, {"w": np.float32([5])}, binding=W)
        checkpoints.wait()
        assert checkpoints.steps == [1, 2] and checkpoints.restore().model["w"].tolist() == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"], "what was begun is gone"


def test_no_room(tmp_path):
    done = run(tmp_path, "full disk")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, between, after = done.stdout.splitlines()
    assert first.startswith("async: step 2 was not saved: ") and "rror writing" in first
    assert second.startswith(f"sync: {tmp_path / 'alone'} was not written: ")
    assert between == "['1'] [1]" and after == "[1, 3]"
    assert js.orbax.restore(tmp_path / "3").model["w"][-1] == 4_000_002
