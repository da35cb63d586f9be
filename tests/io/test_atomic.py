"""A write that fails leaves what was there, and nothing beside it."""

import errno
import os

import numpy as np
import pytest

from jaxstate.errors import FileError
from jaxstate.io import _atomic, load, save


@pytest.fixture
def failing(monkeypatch):
    """Makes the second tensor of a file fail."""

    def arrange(error):
        calls = []

        def crc32(piece, crc=0):
            calls.append(piece)
            if len(calls) > 2:
                raise error
            return 0

        monkeypatch.setattr("jaxstate.io._zip_writer.crc32", crc32)

    return arrange


@pytest.mark.parametrize(
    "error, seen",
    [(OSError(errno.ENOSPC, "No space left"), FileError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failure_in_the_middle(tmp_path, failing, error, seen):
    path = tmp_path / "a.pt"
    save({"a": np.ones(3)}, path)
    before = path.read_bytes()
    failing(error)
    with pytest.raises(seen):
        save({"a": np.zeros(3), "b": np.zeros(3)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_a_failure_to_rename(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "a.safetensors"
    save({"a": np.ones(3)}, path)
    monkeypatch.setattr(_atomic.os, "replace", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        save({"a": np.zeros(3)}, path)
    monkeypatch.undo()
    assert load(path)["a"].tolist() == [1, 1, 1] and os.listdir(tmp_path) == ["a.safetensors"]


def test_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(_atomic.os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(_atomic.os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    save({"a": np.ones(1)}, tmp_path / "a.pt")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_the_mode_follows_the_umask(tmp_path, name):
    old = os.umask(0o027)
    try:
        save({"a": np.ones(1)}, tmp_path / name)
    finally:
        os.umask(old)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "folder" / "real.pt")
    save({"a": np.ones(1)}, tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and load(tmp_path / "folder" / "real.pt")["a"].tolist() == [1]
    assert os.listdir(tmp_path / "folder") == ["real.pt"]


def test_a_file_can_be_saved_over_itself(tmp_path):
    path = tmp_path / "a.pt"
    save({"a": np.arange(5.0), "b": np.arange(3)}, path)
    save({"b": load(path)["b"], "a": load(path)["a"]}, path)
    assert load(path)["a"].tolist() == [0, 1, 2, 3, 4] and list(load(path)) == ["b", "a"]
