"""Every writer makes one array at a time, once, and drops it before it makes the next."""

import os
import re
import subprocess
import sys
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import FileError
from jaxstate.io import load, save

FORMATS = {
    "pt": {"format": "pt"},
    "safetensors": {"format": "safetensors"},
    "sharded": {"max_shard_size": 3_000_000},
    "dcp": {"format": "dcp"},
}
LARGE = 300_007
"""Elements: more than one of the pieces that are written at a time."""


@pytest.fixture
def tracked():
    """Makes lazy arrays that tell how many of theirs were alive at once, and how often each was made."""
    alive, most, made = [], [0], []

    class Owned(np.ndarray):
        """An array that owns its memory and whose end can be seen."""

    def lazy(name, values):
        def make():
            made.append(name)
            array = Owned(values.shape, values.dtype)
            array[...] = values
            alive.append(weakref.ref(array))
            most[0] = max(most[0], sum(reference() is not None for reference in alive))
            return array

        return LazyArray(values.shape, values.dtype, make)

    return lazy, most, made


@pytest.mark.parametrize("how", FORMATS)
def test_live_arrays_are_counted(tmp_path, tracked, how):
    lazy, most, made = tracked
    values = {f"w{n}": np.arange(n, LARGE + n, dtype=np.float32) * 0.5 for n in range(4)}
    values["small"] = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
    sd = {name: lazy(name, array) for name, array in values.items()}
    assert not made
    save(sd, tmp_path / "a", **FORMATS[how])
    assert sorted(made) == sorted(values) and most[0] == 1
    found = load(tmp_path / "a")
    for name, array in values.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_torch_reads_what_lazy_arrays_gave(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    lazy = LazyArray((3, 2), "float32", lambda: array.T)
    for kwargs in ({}, {"mmap": True}):
        save(
            {"a": lazy, "again": lazy, "jax": LazyArray((2,), "int32", lambda: jax.numpy.arange(2))},
            tmp_path / "a",
        )
        theirs = torch.load(tmp_path / "a", weights_only=True, **kwargs)
        assert theirs["a"].tolist() == theirs["again"].tolist() == array.T.tolist()
        assert theirs["jax"].tolist() == [0, 1] and theirs["a"].is_contiguous()
        assert theirs["a"].data_ptr() != theirs["again"].data_ptr()


class Dataset:
    """What h5py and zarr have: a shape, a dtype, and `__array__`."""

    shape, dtype = (2, 3), np.dtype(">f4")

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype, copy=copy)


def test_anything_with_the_protocol_is_lazy(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    save({"a": Dataset(array)}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt")["a"].tolist() == array.tolist()


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("made", [np.zeros((3, 2), ">f4"), np.zeros((2, 3)), None])
def test_a_broken_promise_leaves_what_was_there(tmp_path, how, made):
    def fail():
        raise OSError("the disk is gone")

    lazy = Dataset(made) if made is not None else LazyArray((2, 3), "float32", fail)
    save({"w": np.float32([3, 4])}, tmp_path / "a", **FORMATS[how])
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        FileError, match=r'a: obj\["x"\]: a (Dataset announced|LazyArray that numpy cannot read)'
    ):
        save({"w": np.float32([5, 6]), "x": lazy}, tmp_path / "a", **FORMATS[how])
    assert load(tmp_path / "a")["w"].tolist() == [3, 4] and sorted(os.listdir(tmp_path)) == before


SHARDED = """
import re, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxstate.io import save

def heap():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
x = np.arange(4 << 20, dtype=np.float32).reshape(2, -1)
sd = {str(n): jax.device_put(x + n, sharding) for n in range(6)}
assert len(sd["0"].sharding.device_set) == 2
save({"a": sd["0"]}, sys.argv[1])
before = heap()
save(sd, sys.argv[1], format=sys.argv[2])
print(heap() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_jax_arrays_leave_no_copies_on_the_host(tmp_path):
    """JAX keeps the host's copy of a sharded array in it: here six of 16 MiB, which are not to stay."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "a"), "pt"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"-?\d+", done.stdout)[0]) < 40
    found = torch.load(tmp_path / "a")
    x = torch.arange(4 << 20, dtype=torch.float32).reshape(2, -1)
    assert all(torch.equal(found[str(n)], x + n) for n in range(6))
