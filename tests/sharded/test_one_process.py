"""In one process, the folders of the sharded writer hold what `state_dict` gives, or it says why not."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import jaxstate as js
from jaxstate.errors import BindingError, FileError


class Net(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.bn = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 6, param_dtype=jax.numpy.bfloat16, rngs=rngs)


@pytest.fixture(scope="module")
def net():
    net = Net(nnx.Rngs(0))
    leaves = {path: leaf + 0.5 * n for n, (path, leaf) in enumerate(js.tree.flat(nnx.state(net)).items())}
    nnx.update(net, js.tree.unflat(nnx.state(net), leaves))
    return net


@pytest.mark.parametrize("format", ["safetensors", "dcp"])
def test_a_module(tmp_path, net, format):
    js.sharded.save(net, tmp_path / "a", format=format)
    found, expected = js.load(tmp_path / "a"), js.state_dict(net)
    assert set(found) == set(expected) and expected["head.weight"].dtype == ml_dtypes.bfloat16
    for key, array in expected.items():
        assert found[key].dtype == array.dtype and np.asarray(found[key]).tobytes() == array.tobytes(), key


def test_numpy_leaves_and_parameters_alone(tmp_path):
    binding = js.Binding((js.Rule("w", "w", "i o -> o i"), js.Rule("n", "n", "a -> a", buffer=True)))
    model = {"w": np.arange(6.0).reshape(3, 2), "n": np.int64([2**40, 3])}
    js.sharded.save(model, tmp_path / "a", binding, format="dcp")
    found = js.load(tmp_path / "a")
    assert found["w"].tolist() == model["w"].T.tolist() and found["n"].tolist() == [2**40, 3]
    js.sharded.save({"w": model["w"]}, tmp_path / "b", binding)
    assert list(js.load(tmp_path / "b")) == ["w"]


def test_what_is_refused(tmp_path):
    binding = js.Binding((js.Rule("w", "w", "a -> a"), js.JaxOnly("zero", 0.0)))
    model = {"w": np.ones(2, "float32"), "zero": np.zeros(3, "float32")}
    with pytest.raises(FileError, match='format must be "safetensors" or "dcp", not \'pt\''):
        js.sharded.save(model, tmp_path / "a", binding, format="pt")  # type: ignore[arg-type]
    with pytest.raises(
        BindingError, match="torch cannot hold these leaves:\n\tleaf zero is not 0.0 everywhere"
    ):
        js.sharded.save({**model, "zero": model["zero"] + 1}, tmp_path / "a", binding)
    with pytest.raises(BindingError, match="a rule names w, and there is no such leaf"):
        js.sharded.save({"zero": model["zero"]}, tmp_path / "a", binding)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="exists; several processes write into a new folder only"):
        js.sharded.save(model, tmp_path, binding)


@pytest.mark.parametrize("format", ["safetensors", "dcp"])
def test_what_is_joined_of_parts_or_padded(tmp_path, format):
    parts = [js.Rule("qkv.weight", f"{p}.kernel", "d n k -> (n k) d") for p in "qkv"]
    padded = js.Padded(js.Rule("wte.weight", "wte", "v d -> v d"), "v", 5)
    binding = js.Binding((js.Fused(parts, "n"), padded))
    shapes = {"q.kernel": (4, 4, 3), "k.kernel": (4, 2, 3), "v.kernel": (4, 2, 3), "wte": (8, 4)}
    model = {path: np.random.default_rng(n).random(shape) for n, (path, shape) in enumerate(shapes.items())}
    model["wte"][5:] = 0
    js.sharded.save(model, tmp_path / "a", binding, format=format)
    found = js.load(tmp_path / "a")
    whole = np.concatenate([model[f"{p}.kernel"].reshape(4, -1).T for p in "qkv"])
    assert np.array_equal(found["qkv.weight"], whole) and np.array_equal(
        found["wte.weight"], model["wte"][:5]
    )
