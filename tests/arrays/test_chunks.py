"""What lies in parts, on eight devices, is read as numpy reads the whole, into any layout."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js
from jaxstate.arrays.hosted import readable
from jaxstate.arrays.lazy import LazyArray

ROOT = Path(__file__).parent.parent.parent
SPECS = [P(), P("x"), P(None, "y"), P("y", None, "x"), P(("x", "y")), P(None, None, ("y", "x"))]
RULES = [
    (js.Rule("w", "w", "a b c -> c a b"), lambda x: {"w": x.transpose(2, 0, 1)}),
    (js.Rule("w", "w", "a b c -> (b a) ~c"), lambda x: {"w": x.swapaxes(0, 1).reshape(32, 16)[:, ::-1]}),
    (js.Rule("{a}.w", "w", "a b c -> c b", a=range(8)), lambda x: {f"{a}.w": x[a].T for a in range(8)}),
    (
        js.Rule("w", "w", "a b (n c) -> n (c a) b", n=2),
        lambda x: {"w": x.reshape(8, 4, 2, 8).transpose(2, 3, 0, 1).reshape(2, 64, 4)},
    ),
]


def compared():
    """For each sharding and rule, whether what is read is what numpy makes of the whole array."""
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    rows = {}
    for dtype, (m, spec), (n, (rule, by_numpy)) in product(
        ("float32", "bfloat16", "int8"), enumerate(SPECS), enumerate(RULES)
    ):
        whole = np.random.default_rng(m).integers(-99, 99, (8, 4, 16)).astype(dtype)
        leaf = jax.device_put(whole, NamedSharding(mesh, spec))
        binding, wanted = js.Binding((rule,)).of({"w": leaf}), by_numpy(whole)
        found = js.state_dict({"w": leaf}, binding)
        lazy = js.state_dict({"w": leaf}, binding, lazy=True)
        same = [found[key].tobytes() == np.asarray(wanted[key]).tobytes() for key in wanted]
        same += [np.asarray(lazy[key]).tobytes() == np.asarray(wanted[key]).tobytes() for key in wanted]
        same += [lazy[key][1:3, ..., :1].tobytes() == wanted[key][1:3, ..., :1].tobytes() for key in wanted]
        same.append(isinstance(readable(leaf), np.ndarray) == leaf.is_fully_replicated)
        rows[f"{dtype} {spec} {n}"] = bool(all(same)) and len(found) == len(wanted)
    return rows


def test_shards_on_eight_devices_are_read_where_they_lie():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__]
    env = {**os.environ, **flags, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 3 * len(SPECS) * len(RULES) and all(rows.values()), rows


def test_one_device_is_viewed_and_others_are_asked_by_the_part():
    leaf = jax.numpy.arange(6.0).reshape(2, 3)
    assert np.shares_memory(readable(leaf), np.asarray(leaf))
    number = readable(np.float32(7.5))
    assert isinstance(number, LazyArray) and np.asarray(number) == np.float32(7.5)


if __name__ == "__main__":
    print(json.dumps(compared()))
