"""state_dict(lazy=True): the eager one's entries, made when they are written; torch reads the same file."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import BindingError
from jaxstate.rules.declared import Tied


def arange(*shape, dtype="float32"):
    return jnp.asarray(np.arange(np.prod(shape)).reshape(shape) * 0.5 + 3, dtype)


RULES = {
    "matrix": (js.Rule("w", "w", "i o -> o i"), {"w": arange(3, 5)}),
    "stack": (js.Rule("h.{l}.w", "h.w", "l i o -> o i", l=range(4)), {"h.w": arange(4, 3, 5)}),
    "stack inside": (js.Rule("h.{l}.w", "h.w", "i l o -> o i", l=range(4)), {"h.w": arange(3, 4, 5)}),
    "stack backwards": (js.Rule("h.{l}.w", "h.w", "~l i o -> o i", l=range(4)), {"h.w": arange(4, 4, 4)}),
    "merged stack": (js.Rule("{l}.w", "w", "(l i) o -> o i", l=range(2)), {"w": arange(6, 5)}),
    "two axes": (
        js.Rule("{l}.{m}.w", "w", "m i l o -> o i", l=range(2), m=("a", "b", "c")),
        {"w": arange(3, 4, 2, 5, dtype="bfloat16")},
    ),
    "fused": (
        js.Rule("in_proj", "{qkv}.kernel", "d n k -> (qkv n k) d", qkv=("q", "k", "v")),
        {f"{name}.kernel": arange(8, 2, 4) + n for n, name in enumerate("qkv")},
    ),
    "each": (
        js.Rule("{l}.w", "h.{l}.k", "i 1 o -> o i 1", l=range(3)),
        {f"h.{n}.k": arange(2, 1, 3) + n for n in range(3)},
    ),
    "flatten": (js.Rule("w", "w", "(h w c) o -> o (c h w)", h=2, w=3), {"w": arange(24, 5)}),
    "numpy": (js.Rule("w", "w", "h w i o -> i o ~h ~w"), {"w": np.asarray(arange(2, 3, 4, 5))}),
    "scalar": (js.Rule("w", "w", "->"), {"w": arange()}),
}


@pytest.mark.parametrize("name", RULES)
def test_each_lazy_array_is_the_rules_own(name):
    rule, leaves = RULES[name]
    expected = rule.state_dict({path: np.asarray(leaf) for path, leaf in leaves.items()})
    found = rule.of(leaves).lazy_state_dict(leaves)
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype)
        assert np.asarray(found[key]).tobytes() == array.tobytes()


class Net(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 7, use_bias=False, rngs=rngs)


@pytest.mark.parametrize("kwargs", [{}, {"prefix": "net."}, {"recurse": False}])
def test_what_surrounds_the_arrays_is_the_same(kwargs):
    net = Net(nnx.Rngs(0))
    eager, lazy = js.state_dict(net, **kwargs), js.state_dict(net, lazy=True, **kwargs)
    assert list(lazy) == list(eager) and lazy._metadata == eager._metadata
    for key, array in eager.items():
        assert np.array_equal(lazy[key], array) and lazy[key].dtype == array.dtype


def tied():
    rule = js.Rule("embed.weight", "embed", "v d -> v d")
    other = js.Rule("out.weight", "out", "i o -> o i")
    binding = js.Binding((rule, other, Tied("head.weight", "embed.weight")))
    return binding, {"embed": arange(7, 3), "out": arange(3, 5, dtype="bfloat16")}


def test_torch_reads_the_file_of_the_eager_one(tmp_path):
    binding, leaves = tied()
    for name, lazy in (("eager", False), ("lazy", True)):
        js.save(js.state_dict(leaves, binding, lazy=lazy), tmp_path / name)
    assert (tmp_path / "lazy").read_bytes() == (tmp_path / "eager").read_bytes()
    found = torch.load(tmp_path / "lazy", weights_only=True)
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert found["out.weight"].tolist() == np.asarray(leaves["out"], "float32").T.tolist()
    assert found["embed.weight"].tolist() == np.asarray(leaves["embed"]).tolist()


def test_lazy_means_when_it_is_written():
    leaves = {"w": np.zeros((3, 2), "float32")}
    lazy = js.state_dict(leaves, js.Binding((js.Rule("w", "w", "i o -> o i"),)), lazy=True)
    leaves["w"][...] = 5
    assert isinstance(lazy["w"], LazyArray) and (np.asarray(lazy["w"]) == 5).all()


@pytest.mark.parametrize("lazy", [True, False])
def test_an_abstract_leaf_has_no_values(lazy):
    leaves = {"w": jax.ShapeDtypeStruct((3, 2), "float32")}
    with pytest.raises(BindingError, match='abstract and have no values: "w"'):
        js.state_dict(leaves, js.Binding((js.Rule("w", "w", "i o -> o i"),)), lazy=lazy)


MEMORY = """
import sys, threading
import jax, jax.numpy as jnp, numpy as np
import jaxstate as js

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

def peak(run):
    before, most, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.0005):
            most[0] = max(most[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start(); run(); done.set(); thread.join()
    return most[0] - before

rules = js.Binding(tuple(js.Rule(f"{n}.w", f"{n}", "i o -> o i") for n in range(4)))
leaves = {str(n): jnp.full((2000, 4000 + 8 * n), n + 0.5, jnp.bfloat16) for n in range(4)}
small = {str(n): jnp.ones((20, 30 + n)) for n in range(4)}
for name in ("a.pt", "a.safetensors"):
    path = sys.argv[1] + "/" + name
    js.save(js.state_dict(small, rules, lazy=True), path)
    print(peak(lambda: js.save(js.state_dict(leaves, rules, lazy=True), path)))
abstract = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
sd = js.load(path)
js.load_state_dict(jax.eval_shape(lambda: small), js.state_dict(small, rules), rules)
kept = []
print(peak(lambda: kept.append(js.load_state_dict(abstract, sd, rules))))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_memory_stays_below_one_tensor(tmp_path):
    """Four transposed tensors of 15 MiB: written, none of them is in memory; read, they are all there is."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pt, safetensors, loaded = map(int, done.stdout.split())
    assert pt < 15 and safetensors < 15
    assert 60 <= loaded < 60 + 16
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    for n in range(4):
        assert found[f"{n}.w"].shape == (4000 + 8 * n, 2000) and (found[f"{n}.w"] == n + 0.5).all()
