"""What Orbax does in silence, and what it does not survive: each is refused before it happens, or undone."""

import gc
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

import jaxstate as js
from jaxstate.errors import BindingError, CheckpointError
from jaxstate.orbax._digests import checksum
from jaxstate.orbax._engine import read_region
from jaxstate.orbax._values import value_from_json, value_to_json

W = js.Binding((js.Rule("w", "w", "a -> a"),))
# Orbax warns of leaves without shardings where its own functions are the judge.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def saved(path, model=None, opt_state=None, **options):
    """A checkpoint of one vector and of whatever is to be looked at."""
    js.orbax.save(
        path, {"w": np.float32([1, 2, 3])} if model is None else model, opt_state, binding=W, **options
    )
    return path


def kept(path, opt_state, **options):
    """An optimizer's tree after it was stored, without a template."""
    return js.orbax.restore(saved(path, None, opt_state, **options)).opt_state


def test_names_that_would_collide(tmp_path):
    """Orbax would store both under one name, and read one of them twice."""
    twice = {"a.b": np.float32([1]), "a": {"b": np.float32([2])}}
    ocp.save(tmp_path / "theirs", twice)
    assert ocp.load(tmp_path / "theirs")["a"]["b"] == ocp.load(tmp_path / "theirs")["a.b"]
    with pytest.raises(BindingError, match=r"same path \['a.b'\]"):
        saved(tmp_path / "ours", None, twice)
    assert not (tmp_path / "ours").exists()


def test_empty_leaves_and_empty_collections(tmp_path):
    tree = {
        "none": np.zeros((0, 3), "bfloat16"),
        "jax": jnp.zeros((2, 0), "int8"),
        "e": {},
        "t": (),
        "n": None,
    }
    found = kept(tmp_path / "c", tree)
    assert found["none"].shape == (0, 3) and found["none"].dtype == ml_dtypes.bfloat16
    assert found["jax"].dtype == np.int8 and (found["e"], found["t"], found["n"]) == ({}, (), None)
    again = js.orbax.restore(tmp_path / "c", None, tree).opt_state
    assert isinstance(again["jax"], jax.Array) and again["jax"].shape == (2, 0)


def test_scalars_of_every_kind(tmp_path):
    tree = {
        "np": [np.float32(0.1), np.int64(2**40), np.bool_(True)],
        "0-d": [np.array(7, np.int16), jnp.float32(0.3)],
        "python": [3, 0.1, True, 2**62, 1 + 2j],
    }
    found = kept(tmp_path / "c", tree)
    assert found["python"] == tree["python"] and list(map(type, found["python"])) == [
        int,
        float,
        bool,
        int,
        complex,
    ]
    for key in ("np", "0-d"):
        for x, y in zip(found[key], tree[key], strict=True):
            assert x.shape == () and x.dtype == np.asarray(y).dtype and x == y
    again = js.orbax.restore(tmp_path / "c", None, tree).opt_state
    assert type(again["python"][4]) is complex and type(again["python"][2]) is bool


@pytest.mark.parametrize("value", ["x", b"x", 2**70, np.array(["x"]), object(), len])
def test_what_is_no_number(tmp_path, value):
    with pytest.raises(CheckpointError, match="optimizer: a.0 is a .*no array of numbers"):
        saved(tmp_path / "c", None, {"a": [value]})
    assert not list(tmp_path.iterdir())


DTYPES = (
    "bool int8 int16 int32 uint8 uint16 uint32 float16 float32 complex64 bfloat16 int2 int4 uint2 uint4 "
    "float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "float8_e8m0fnu float4_e2m1fn float6_e2m3fn float6_e3m2fn"
).split()
WIDE = ["int64", "uint64", "float64", "complex128"]


def test_every_dtype_in_numpy_and_in_jax(tmp_path):
    rng, no_jax = np.random.default_rng(0), ("float6_e2m3fn", "float6_e3m2fn")
    # Every byte pattern that the dtype has, among them NaNs and both zeros.
    arrays = {d: rng.integers(0, 2, (3, 4)).astype(d) for d in (*DTYPES, *WIDE)}
    for d in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float32"):
        size = np.dtype(d).itemsize
        arrays[d] = rng.integers(0, 256, (3, 4 * size), np.uint8).view(d)
    tree = {"np": arrays, "jax": {d: jnp.asarray(x) for d, x in arrays.items() if d not in (*no_jax, *WIDE)}}
    tree["np"] |= {"fortran": np.asfortranarray(arrays["float32"]), "swapped": arrays["int32"].astype(">i4")}
    saved(tmp_path / "c", None, tree)
    for found in (js.orbax.restore(tmp_path / "c"), js.orbax.restore(tmp_path / "c", None, tree)):
        for side in tree:
            for name, x in tree[side].items():
                y = np.asarray(found.opt_state[side][name])
                x = np.asarray(x)
                x = x.astype(x.dtype.newbyteorder("="))
                assert (y.dtype, y.shape, y.tobytes()) == (x.dtype, x.shape, x.tobytes()), (side, name)


def test_random_keys(tmp_path):
    rngs = {
        "one": jax.random.key(3),
        "many": jax.random.split(jax.random.key(4), (2, 3)),
        "rbg": jax.random.key(5, impl="rbg"),
        "raw": jax.random.PRNGKey(6),
    }
    saved(tmp_path / "c", rngs=rngs)
    abstract = jax.eval_shape(lambda: rngs)
    for found in (
        js.orbax.restore(tmp_path / "c").rngs,
        js.orbax.restore(tmp_path / "c", rngs=abstract).rngs,
    ):
        for name, key in rngs.items():
            assert found[name].dtype == key.dtype and found[name].shape == key.shape
            data = (jax.random.key_data(x) if name != "raw" else x for x in (found[name], key))
            assert np.array_equal(*data)
    assert jax.random.normal(found["one"]) == jax.random.normal(rngs["one"])
    with pytest.raises(CheckpointError, match=r"rngs: one is key<fry>\[\] .* key<rbg>\[\]"):
        js.orbax.restore(tmp_path / "c", rngs=rngs | {"one": jax.random.key(3, impl="rbg")})


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.fc(x))


def test_the_random_state_of_a_module(tmp_path):
    net, x = Noisy(nnx.Rngs(7)), jnp.ones((2, 3))
    net(x)
    js.orbax.save(tmp_path / "c", net)
    expected = net(x)
    for template in (Noisy(nnx.Rngs(8)), nnx.eval_shape(lambda: Noisy(nnx.Rngs(8)))):
        assert np.array_equal(js.orbax.restore(tmp_path / "c", template).model(x), expected)


def test_the_random_state_of_a_module_is_read_without_templates(tmp_path):
    net, x = Noisy(nnx.Rngs(7, dropout=jax.random.key(9, impl="rbg"))), jnp.ones((2, 3))
    net(x)
    js.orbax.save(tmp_path / "c", net, rngs={"mine": jax.random.key(2)})
    dropped = jax.random.bernoulli(net.drop.rngs(), 0.5, (2, 3))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for sharding in (None, here):
        found = js.orbax.restore(tmp_path / "c", sharding=sharding)
        assert sorted(found.random) == ["drop.rngs.count", "drop.rngs.key"] and "mine" in found.rngs
        assert found.random["drop.rngs.count"] == 1 and found.random["drop.rngs.count"].dtype == "uint32"
        key = found.random["drop.rngs.key"]
        assert key.dtype == net.drop.rngs.key[...].dtype and jax.random.key_impl(key) == "rbg"
        noise = jax.random.bernoulli(jax.random.fold_in(key, found.random["drop.rngs.count"]), 0.5, (2, 3))
        assert np.array_equal(noise, dropped)
        assert sorted(found.model) == ["fc.bias", "fc.kernel"]
    assert js.orbax.restore(tmp_path / "c", net).random is None
    assert js.orbax.to_torch(tmp_path / "c")["model"]["fc.weight"].shape == (4, 3)


def test_integers_beside_jax_without_x64(tmp_path):
    assert not jax.config.jax_enable_x64
    saved(tmp_path / "c", None, {"n": np.array([2**40, -1])})
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    theirs = {"optimizer": {"n": jax.ShapeDtypeStruct((2,), "int32", sharding=here)}}
    found = ocp.load_checkpointables(tmp_path / "c", theirs)["optimizer"]["n"]
    assert found.tolist() == [0, -1], "Orbax narrows in silence"
    for dtype in ("int32", "int64"):
        template = {"n": jax.ShapeDtypeStruct((2,), dtype)}
        with pytest.raises(CheckpointError, match=r"n is .*int64\[2\]"):
            js.orbax.restore(tmp_path / "c", None, template)
    with pytest.raises(CheckpointError, match="n has values that int32 does not hold"):
        js.orbax.restore(tmp_path / "c", None, {"n": jax.ShapeDtypeStruct((2,), "int32")}, cast=True)
    with pytest.raises(CheckpointError, match="only with jax_enable_x64"):
        js.orbax.restore(tmp_path / "c", sharding=here)
    assert js.orbax.restore(tmp_path / "c", None, {"n": np.zeros(2, int)}).opt_state["n"].tolist() == [
        2**40,
        -1,
    ]


@pytest.mark.parametrize("to", ["bfloat16", "float16", "float64"])
def test_a_cast_is_asked_for(tmp_path, to):
    saved(tmp_path / "c", {"w": np.float32([1 / 3, -0.0, 1e-3])})
    for like in (np.zeros(3, to), *([] if to == "float64" else [jax.ShapeDtypeStruct((3,), to)])):
        with pytest.raises(CheckpointError, match="pass cast=True"):
            js.orbax.restore(tmp_path / "c", {"w": like})
        found = js.orbax.restore(tmp_path / "c", {"w": like}, cast=True).model["w"]
        expected = np.float32([1 / 3, -0.0, 1e-3]).astype(to)
        assert found.dtype == to and np.asarray(found).tobytes() == expected.tobytes()
        assert isinstance(found, jax.Array) == isinstance(like, jax.ShapeDtypeStruct)


@pytest.mark.parametrize("to", ["int32", "bool", "complex64"])
def test_no_cast_changes_the_kind_of_number(tmp_path, to):
    saved(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"w is float32\[3\] in the checkpoint"):
        js.orbax.restore(tmp_path / "c", {"w": np.zeros(3, to)}, cast=True)


def test_no_placeholder_comes_back(tmp_path):
    """A partial load of Orbax answers what is not there with the question."""
    saved(tmp_path / "c", None, {"a": np.ones(2), "b": (np.ones(3), 4)})
    with pytest.raises(CheckpointError, match="optimizer: c is not in the checkpoint"):
        js.orbax.restore(tmp_path / "c", None, {"a": np.ones(2), "c": np.ones(3)})
    with pytest.raises(CheckpointError, match="optimizer: b.1 is in the checkpoint and not in the template"):
        js.orbax.restore(tmp_path / "c", None, {"a": np.ones(2), "b": (np.ones(3),)})


def test_keys_that_are_numbers_and_tuples_with_names(tmp_path):
    from collections import namedtuple

    Point = namedtuple("Point", ["x", "y"])
    tree = {3: {-1: np.ones(2)}, 10: [Point(np.zeros(1), np.arange(3)), (np.ones(1),)]}
    found = kept(tmp_path / "c", tree)
    assert list(found) == [3, 10] and list(found[3]) == [-1]
    assert found[10][0]._fields == ("x", "y") and found[10][0].y.tolist() == [0, 1, 2]
    again = js.orbax.restore(tmp_path / "c", None, tree).opt_state
    assert type(again[10][0]) is Point and type(again[10][1]) is tuple


def flip(folder, needle):
    """Flip one bit where these bytes lie in a data file."""
    for file in (f for f in folder.rglob("*") if f.is_file()):
        data = bytearray(file.read_bytes())
        if (at := bytes(data).find(needle)) >= 0:
            data[at + len(needle) // 2] ^= 0x10
            file.write_bytes(data)
            return
    raise AssertionError("these bytes are in no file")


def test_one_flipped_bit(tmp_path):
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(size=300)}
    opt = {
        "m": rng.normal(size=(20, 30)).astype("float32"),
        "n": jnp.asarray(rng.normal(size=5000), "bfloat16"),
    }
    saved(tmp_path / "c", model, opt)
    flip(tmp_path / "c", opt["m"].tobytes())
    assert js.orbax.restore(tmp_path / "c", model).model["w"][7] == model["w"][7], (
        "what is not read is not judged"
    )
    target = {"optimizer": {"m": np.empty((20, 30), "f"), "n": np.empty(5000, "bfloat16")}}
    theirs = ocp.load_checkpointables(tmp_path / "c", target)
    assert not np.array_equal(theirs["optimizer"]["m"], opt["m"]), "Orbax says nothing"
    with pytest.raises(CheckpointError, match="damaged: optimizer: m are not the values"):
        js.orbax.restore(tmp_path / "c", None, opt)
    flip(tmp_path / "c", np.asarray(opt["n"]).tobytes())
    with pytest.raises(CheckpointError, match="damaged: optimizer: m, optimizer: n are not"):
        js.orbax.restore(tmp_path / "c")


def test_a_damaged_record(tmp_path):
    saved(tmp_path / "c", step=7)
    file = tmp_path / "c" / "jaxstate" / "data.json"
    text = file.read_text()
    for changed, what in (
        (text.replace('"step": 7', '"step": 6').replace('"step":7', '"step":6'), "is damaged"),
        (text[: len(text) // 2], "cannot be read"),
        (json.dumps({**json.loads(text), "version": 9}), "version 9"),
        ("[]", "version None"),
    ):
        assert changed != text
        file.write_text(changed)
        with pytest.raises(CheckpointError, match=what):
            js.orbax.restore(tmp_path / "c")
    file.unlink()
    file.parent.rmdir()
    with pytest.raises(CheckpointError, match="had a record"):
        js.orbax.restore(tmp_path / "c", {"w": np.zeros(3, "f")})


@pytest.fixture
def failing():
    """Orbax leaves coroutines behind that nobody awaits, and they complain when they are collected."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_flipped_bit_is_noticed_or_does_nothing(tmp_path, failing):
    """Whatever file it is in. An error is ours, and what comes without one is what was saved."""
    rng = np.random.default_rng(0)
    model, opt = {"w": rng.normal(size=5000)}, {"small": jnp.float32([1, 2]), "n": 3, "m": jnp.arange(999.0)}
    saved(tmp_path / "c", model, opt, step=7, extra={"epoch": 2})
    noticed = 0
    for file in sorted(f for f in (tmp_path / "c").rglob("*") if f.is_file() and f.stat().st_size):
        whole = file.read_bytes()
        for at in rng.integers(0, len(whole), 4):
            changed = bytearray(whole)
            changed[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            try:
                found = js.orbax.restore(tmp_path / "c", model, opt)
                assert found.model["w"].tobytes() == model["w"].tobytes() and found.opt_state["n"] == 3
                assert np.array_equal(found.opt_state["m"], opt["m"]) and found.extra == {"epoch": 2}
                assert found.opt_state["small"].tolist() == [1, 2] and found.step == 7
            except CheckpointError:
                noticed += 1
        file.write_bytes(whole)
    assert noticed > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_damaged_data_file(tmp_path, failing, damage):
    w = np.random.default_rng(0).normal(size=3000)
    saved(tmp_path / "c", {"w": w})
    file = next(f for f in (tmp_path / "c").rglob("*") if f.is_file() and w.tobytes() in f.read_bytes())
    file.write_bytes(file.read_bytes()[:9000]) if damage == "truncate" else file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        js.orbax.restore(tmp_path / "c")


def test_a_refused_save_leaves_nothing_and_hangs_nothing(tmp_path):
    code = f"""
import numpy as np, jaxstate as js
binding = js.Binding((js.Rule("w", "w", "a -> a"),))
for opt in ({{"a": "x"}}, {{"a.b": np.ones(1), "a": {{"b": np.ones(1)}}}}):
    try:
        js.orbax.save({str(tmp_path / "c")!r}, {{"w": np.ones(3)}}, opt, binding=binding)
    except js.JaxstateError as error:
        print(type(error).__name__, flush=True)
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["CheckpointError", "BindingError"] and time.monotonic() - start < 30
    assert not list(tmp_path.iterdir())


def test_relative_paths_and_strings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("here")
    assert js.orbax.restore("here").model["w"].tolist() == [1, 2, 3] and (tmp_path / "here").is_dir()


def test_a_region_that_no_device_holds_whole_is_read_from_the_file(tmp_path):
    w = np.random.default_rng(0).normal(size=(6, 7)).astype("float32")
    js.orbax.save(tmp_path / "c", {"w": w}, binding=js.Binding((js.Rule("w", "w", "a b -> a b"),)))
    part = read_region(tmp_path / "c", "params/w", ((2, 5), (1, 4)))
    assert np.array_equal(part, w[2:5, 1:4]) and checksum(part) == checksum(w[2:5, 1:4].copy())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_plain_values_survive_json(value):
    assert repr(value_from_json(json.loads(json.dumps(value_to_json(value, "here"))))) == repr(value)


def test_steps(tmp_path):
    saved(tmp_path / "c", step=np.int64(7))
    assert js.orbax.restore(tmp_path / "c").step == 7
    for step in (0.5, "7", -1):
        with pytest.raises(CheckpointError, match="a step is"):
            saved(tmp_path / "d", step=step)


def test_values_that_are_not_plain_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"scheduler\['a'\]\[1\] is a builtins.function"):
        saved(tmp_path / "c", scheduler={"a": [1, lambda: 0]})
    with pytest.raises(CheckpointError, match=r"extra has the key 0.5"):
        saved(tmp_path / "c", extra={0.5: 1})
