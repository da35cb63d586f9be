"""The way to an accelerator, taken on the host, gives the other way's bits, in every dtype and sharding."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.arrays import crossing, placement
from jaxstate.arrays.crossing import crossed, crosses, in_order_of_memory, read_ahead

DTYPES = (
    *("bool", "int8", "uint16", "int32", "float16", "float32", "complex64"),
    *("bfloat16", "int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn"),
)
FEWER_BITS = {"bool": 1, "int4": 15, "uint4": 15, "float4_e2m1fn": 15}


def random_bits(name, shape):
    """Every bit pattern of the dtype, NaNs with their payloads among them."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    drawn = np.random.default_rng(3).integers(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), "uint8")
    return (drawn & FEWER_BITS.get(name, 255)).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_in_every_dtype(dtype):
    array = random_bits(dtype, (3, 5, 7))
    for view in (array, array.transpose(2, 0, 1)[::-1]):
        made = crossed(view, None, view.dtype)
        assert made.dtype == view.dtype and made.shape == view.shape
        assert np.asarray(made).tobytes() == view.tobytes()


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_the_turn_makes_the_view_of_what_lies(data):
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    view = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    view = view.transpose(data.draw(st.permutations(range(view.ndim))))
    view = view[tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2]))) for _ in shape)]
    view = np.broadcast_to(view, (2, *view.shape)) if data.draw(st.booleans()) else view
    lying, turn = in_order_of_memory(view)
    steps = [step for step, n in zip(lying.strides, lying.shape, strict=True) if n > 1]
    assert steps == sorted(steps, reverse=True) and all(step >= 0 for step in steps)
    assert np.array_equal(np.flip(lying.transpose(turn.axes), turn.backwards), view)


def test_what_crossed_shares_nothing_with_the_view():
    memory = np.arange(1040, dtype="float32")
    start = -memory.ctypes.data % 64 // 4  # where JAX would take the memory over
    view = memory[start : start + 1024].reshape(32, 32)
    for source in (view, view.T):
        made, before = crossed(source, None, view.dtype), source.copy()
        view += 1
        np.testing.assert_array_equal(made, before)


def test_another_dtype_is_converted_as_on_the_host():
    view = random_bits("float16", (6, 4)).T
    made = crossed(view, None, np.dtype("float32"))
    assert np.asarray(made).tobytes() == view.astype("float32").tobytes()


RULES = (
    js.Rule("a", "a", "i o -> o i"),
    js.Rule("up", "up", "h w i o -> i o ~h ~w"),
    js.Rule("fc", "fc", "(h w c) o -> o (c h w)", h=2, w=3),
    js.Rule("qkv", "attn.{p}", "d n k -> (p n k) d", p=("q", "k", "v"), n=2),
    js.Rule("h.{l}.w", "h", "l i o -> o i", l=range(3)),
    js.Rule("{p}_proj", "fused", "d p n k -> (n k) d", p=("q", "k"), n=2),
    js.Rule("scale", "scale", " -> "),
)
SHAPES = {"a": (5, 6), "up": (2, 3, 4, 5), "fc": (24, 5), "h": (3, 4, 6), "fused": (6, 2, 2, 4), "scale": ()}
SHAPES |= {f"attn.{p}": (6, 2, 4) for p in "qkv"}


def tree(paths):
    made = {}
    for path, leaf in paths.items():
        *outer, last = path.split(".")
        (made.setdefault(outer[0], {}) if outer else made)[last] = leaf
    return made


def model_and_file(folder):
    binding = js.Binding(RULES)
    leaves = {path: random_bits("float32", (*shape, 1))[..., 0] for path, shape in SHAPES.items()}
    js.save(js.state_dict(tree(leaves), binding), folder / "net.pt")
    return binding, tree(leaves), js.load(folder / "net.pt")


def same(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    return [np.asarray(x).tobytes() for x in left] == [np.asarray(x).tobytes() for x in right]


def test_every_kind_of_rule_crosses(tmp_path, monkeypatch):
    binding, model, found = model_and_file(tmp_path)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
    assert same(js.load_state_dict(template, found, binding), model)
    monkeypatch.setattr(placement, "crosses", lambda sharding: True)
    monkeypatch.setattr(placement, "SMALL", 0)
    seen = []
    monkeypatch.setattr(placement, "crossed", lambda *args: seen.append(args) or crossed(*args))
    assert same(js.load_state_dict(template, found, binding), model) and len(seen) == len(SHAPES)


def test_equal_layers_are_compiled_once():
    arrays = [random_bits("uint16", (11, 13)).T for _ in range(3)]
    crossed(arrays[0], None, arrays[0].dtype)
    before = crossing._turned._cache_size()
    for array in arrays:
        crossed(array, None, array.dtype)
    assert crossing._turned._cache_size() == before


def test_what_crosses_is_told_by_its_devices():
    def on(*platforms, memory_kind=None):
        devices = [SimpleNamespace(platform=platform) for platform in platforms]
        return SimpleNamespace(device_set=devices, memory_kind=memory_kind)

    assert crosses(on("gpu", "gpu")) and crosses(on("tpu", memory_kind="device"))
    assert not crosses(on("cpu")) and not crosses(on("tpu", memory_kind="pinned_host"))
    assert not crosses(None)  # of these tests, JAX's default


def test_one_array_is_read_ahead_and_no_more():
    made = []

    def pairs():
        for n in range(4):
            made.append(n)
            view = np.arange(9.0) if n < 3 else js.LazyArray((), "int8", None)
            yield str(n), view.reshape(3, 3).T if n < 2 else view

    for n, (path, _) in enumerate(read_ahead(pairs())):
        assert path == str(n) and len(made) == min(n + 2, 4)
    assert made == [0, 1, 2, 3] and list(read_ahead([])) == []


def test_an_error_on_the_way_is_raised():
    def pairs():
        yield "a", np.ones(3)
        raise js.FileError("damaged")

    with pytest.raises(js.FileError, match="damaged"):
        list(read_ahead(pairs()))


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxstate as js
from jaxstate.arrays import placement
sys.path.insert(0, sys.argv[1])
from test_crossing import model_and_file, same
from pathlib import Path
binding, model, found = model_and_file(Path(sys.argv[2]))
mesh = jax.make_mesh((2, 2), ("x", "y"))
def split(leaf):
    cut = [name if n % 2 == 0 else None for n, name in zip(leaf.shape[::-1], ["x", "y", None, None])][::-1]
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P(*cut)))
template = jax.tree.map(split, model)
host = js.load_state_dict(template, found, binding)
placement.crosses = lambda sharding: True
over = js.load_state_dict(template, found, binding)
assert same(host, model) and same(over, model)
assert jax.tree.map(lambda a, b: a.sharding == b.sharding, host, over)
for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(over)):
    assert a.sharding == b.sharding
    assert [np.asarray(s.data).tobytes() for s in a.addressable_shards] == [
        np.asarray(s.data).tobytes() for s in b.addressable_shards
    ]
print(sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(over)))
"""


def test_shards_cross_as_they_are_made_on_the_host(tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, here, str(tmp_path)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 7
