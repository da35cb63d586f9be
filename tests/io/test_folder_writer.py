"""A folder is written such that at every moment it holds the old checkpoint or the new one."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxstate.errors import FileError
from jaxstate.io import _folder_writer, load, save

KILLED = """
import os, shutil, signal, sys
import numpy as np
from jaxstate.io import load, save

OLD = {"a": np.arange(30.0), "b": np.arange(20.0), "c": np.arange(10.0)}
NEW = {key: value + 1 for key, value in OLD.items()}
MORE = {**NEW, "d": np.arange(40.0) + 1}
CALLS = ("replace", "rename", "link", "unlink", "fsync", "mkdir")


def die_at(count):
    left = [count]

    def watched(call):
        def run(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return run

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))


def state(folder, news):
    found = load(folder)
    is_old, is_new = (
        any(
            list(found) == list(sd) and all(np.array_equal(found[key], sd[key]) for key in sd)
            for sd in group
        )
        for group in ((OLD,), news)
    )
    assert is_old != is_new, dict(found)
    return "n" if is_new else "o"


def survived(folder, old, new, sd, first):
    states, count = "", 0
    while not states.endswith("!"):
        count += 1
        shutil.rmtree(folder, ignore_errors=True)
        if first:
            save(OLD, folder, **old)
        pid = os.fork()
        if pid == 0:
            die_at(count)
            save(sd, folder, **new)
            os._exit(0)
        killed = os.waitpid(pid, 0)[1] != 0
        if first or not killed:
            states += state(folder, [sd])
        else:
            try:
                states += state(folder, [sd])
            except ValueError:
                states += "-"
        states += "" if killed else "!"
        save(NEW, folder, **new)
        assert state(folder, [NEW]) == "n"
    return states


whole, parts, dcp = {"max_shard_size": "1GB"}, {"max_shard_size": 250}, {"format": "dcp"}
for old, new, sd in [
    (parts, parts, NEW), (whole, parts, NEW), (parts, whole, NEW), (whole, whole, NEW), (dcp, dcp, NEW),
    (parts, parts, MORE),
]:
    print(survived(sys.argv[1], old, new, sd, True))
for new in (parts, whole, dcp):
    print(survived(sys.argv[1], None, new, NEW, False))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills its own children")
def test_killed_before_every_call_of_the_system(tmp_path):
    """The states after each kill: first the old checkpoint, then the new one, and never another thing."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.split()
    assert len(rows) == 9
    for row in rows:
        before = "o" if row[0] == "o" else "-"
        steps = row.rstrip("!")
        assert len(steps) > 4 and steps == before * steps.count(before) + "n" * steps.count("n"), row
        assert steps[0] == before and row.endswith("n!")


SHARDS = {"a": np.arange(30.0), "b": np.arange(20.0)}
FORMATS = {"shards": {"max_shard_size": 250}, "whole": {"max_shard_size": 10**6}, "dcp": {"format": "dcp"}}


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("call", ["rename", "link", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, how, there, call):
    folder = tmp_path / "a"
    if there:
        save(SHARDS, folder, **FORMATS[how])
        before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    calls, real = [], getattr(os, call)

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2 or how == "whole" or call == "link":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(_folder_writer.os, call, fail)
    new = {key: value + 1 for key, value in SHARDS.items()}
    try:
        save(new, folder, **FORMATS[how])
    except FileError as error:
        assert "No space left" in str(error) and str(folder) in str(error)
        assert os.path.exists(folder) == there
        if there:
            assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    else:
        assert len(calls) < 2
        assert load(folder)["b"].tolist() == new["b"].tolist()


def test_other_files_stay(tmp_path):
    folder = tmp_path / "a"
    save(SHARDS, folder, max_shard_size=250)
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    save(SHARDS, folder, max_shard_size=10**6)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "sub"]
    save(SHARDS, folder, max_shard_size=250)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(os.listdir(folder)) == ["config.json", *files, "model.safetensors.index.json", "sub"]


def test_an_index_that_names_other_files_removes_none(tmp_path):
    """The names in an old index are data: none leads out of the folder."""
    folder, other = tmp_path / "a", tmp_path / "other"
    other.touch()
    folder.mkdir()
    index = json.dumps({"weight_map": {"a": "../other", "b": str(other)}})
    (folder / "model.safetensors.index.json").write_text(index)
    save(SHARDS, folder, max_shard_size=250)
    assert other.exists() and load(folder)["a"].tolist() == SHARDS["a"].tolist()


def test_a_folder_can_be_saved_over_itself(tmp_path):
    for how in FORMATS.values():
        save(SHARDS, tmp_path / "a", **how)
        save({key: load(tmp_path / "a")[key] for key in ("b", "a")}, tmp_path / "a", **how)
        found = load(tmp_path / "a")
        assert list(found) == ["b", "a"] and found["b"].tolist() == SHARDS["b"].tolist()
        for name in os.listdir(tmp_path / "a"):
            os.unlink(tmp_path / "a" / name)
