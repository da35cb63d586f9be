"""A new model is placed and typed like its template, owns its memory, and leaves the template alone."""

import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from _nnx_oracle import noise, randomized, rngs
from flax import nnx
from torch import nn

import jaxstate as js


class Net(nnx.Module):
    def __init__(self, rngs, dtype="float32"):
        self.fc = nnx.Linear(4, 6, param_dtype=dtype, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(6, param_dtype=dtype, rngs=rngs)
        self.table = nnx.data(jnp.zeros(3, dtype))  # an array that is no variable

    def __call__(self, x):
        return self.drop(self.norm(self.fc(x)))


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(3))
        self.fc, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)


def _file(dtype=torch.float32):
    return randomized(TorchNet()).to(dtype).state_dict()


def _arrays(model):
    values = jax.tree.map(lambda x: x.get_raw_value() if isinstance(x, nnx.Variable) else x, nnx.state(model))
    return [
        np.asarray(jax.random.key_data(x) if "key" in str(x.dtype) else x) for x in jax.tree.leaves(values)
    ]


def test_the_template_is_never_changed():
    model = Net(rngs())
    kernel, before = np.array(model.fc.kernel[...]), _arrays(model)
    new = js.load_state_dict(model, _file())
    assert all(np.array_equal(a, b) for a, b in zip(_arrays(model), before, strict=True))
    assert new is not model and new.fc is not model.fc and new.fc.kernel is not model.fc.kernel
    new.fc.kernel[...] = new.fc.kernel[...] + 1
    assert np.array_equal(model.fc.kernel[...], kernel)


def test_update_puts_the_new_values_into_a_live_module():
    live, file = Net(rngs()), _file()
    kernel = live.fc.kernel
    nnx.update(live, nnx.state(js.load_state_dict(live, file)))
    assert live.fc.kernel is kernel and np.array_equal(kernel[...], file["fc.weight"].numpy().T)
    assert np.array_equal(live.norm.var[...], file["norm.running_var"])
    assert np.array_equal(live.table, file["table"])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_no_file_has_stays_what_it_was(mode):
    model = Net(rngs(7))
    getattr(model, mode)()
    new = js.load_state_dict(model, _file())
    assert new.norm.use_running_average is model.norm.use_running_average
    assert new.drop.deterministic is model.drop.deterministic
    assert (
        jax.random.key_data(new.drop.rngs.key[...]) == jax.random.key_data(model.drop.rngs.key[...])
    ).all()


def test_results_own_their_memory():
    file = {key: tensor.numpy().copy() for key, tensor in _file().items()}
    saved = {key: array.copy() for key, array in file.items()}
    model = js.load_state_dict(Net(rngs()), file)
    binding = js.bind(model, like=file)
    for array in file.values():
        array[...] = 0
    again = js.state_dict(model, binding)
    assert all(np.array_equal(again[key], saved[key]) for key in saved)
    for array in again.values():
        array[...] = 1
    assert all(np.array_equal(array, saved[key]) for key, array in js.state_dict(model, binding).items())


def test_written_arrays_are_contiguous_writable_and_apart():
    sd = js.state_dict(Net(rngs()))
    assert all(
        array.flags.c_contiguous and array.flags.writeable and array.flags.owndata for array in sd.values()
    )
    assert len({array.__array_interface__["data"][0] for array in sd.values()}) == len(sd)


def test_abstract_leaves_are_filled_and_random_state_is_asked_for():
    abstract, file = nnx.eval_shape(lambda: Net(rngs())), _file()
    with pytest.raises(
        js.BindingError, match="random state has no value.*drop.rngs.count, drop.rngs.key"
    ) as refused:
        js.load_state_dict(abstract, file)
    remedy = re.search(r"say (nnx\.update\(.*)", str(refused.value))
    assert remedy is not None
    call = remedy[1].replace("Model(..., ", "Net(")
    eval(call, {"nnx": nnx, "jax": jax, "model": abstract, "Net": Net})
    model = js.load_state_dict(abstract, file)
    assert np.array_equal(model.fc.kernel[...], file["fc.weight"].numpy().T)
    assert np.array_equal(model.table, file["table"])
    assert model(jnp.ones((2, 4))).shape == (2, 6)
    assert isinstance(abstract.fc.kernel.get_raw_value(), jax.ShapeDtypeStruct)


class Bare(nnx.Module):
    def __init__(self):
        self.table = jnp.zeros(3)


def test_arrays_that_nnx_loses_in_a_trace_are_refused():
    assert js.bind(Bare()).keys == ("table",)
    with pytest.raises(
        js.BindingError, match=r"does not count these arrays as state.*: table; assign them as nnx.data"
    ):
        js.bind(nnx.eval_shape(Bare))


def test_abstract_leaves_cannot_keep_what_they_do_not_have():
    abstract, file = (
        nnx.eval_shape(lambda: nnx.Linear(4, 6, rngs=rngs())),
        {"weight": np.zeros((6, 4), "float32")},
    )
    with pytest.raises(
        js.StateDictError, match="strict=False keeps the model's own values, and bias is abstract"
    ):
        js.load_state_dict(abstract, file, strict=False)
    with pytest.raises(js.BindingError, match="would stay without values: bias"):
        js.load_state_dict(abstract, file, only="weight")


DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("found", DTYPES)
def test_widening_is_done_and_narrowing_is_asked_for(found, wanted):
    file, model = _file(getattr(torch, found)), Net(rngs(), wanted)
    if found != wanted and wanted != "float32":
        problem = f'"fc.weight" is {found} and leaf fc.kernel of the model is {wanted}.*pass cast=True'
        with pytest.raises(js.StateDictError, match=problem):
            js.load_state_dict(model, file)
    new = js.load_state_dict(model, file, cast=found != wanted and wanted != "float32")
    assert str(new.fc.kernel[...].dtype) == wanted
    assert np.array_equal(
        np.asarray(new.fc.kernel[...]).T.astype(DTYPES[wanted]),
        file["fc.weight"].float().numpy().astype(DTYPES[wanted]),
    )


def test_bfloat16_comes_back_bit_for_bit():
    file, model = _file(torch.bfloat16), Net(rngs(), "bfloat16")
    new = js.load_state_dict(model, file, cast=False)
    again = js.state_dict(new, js.bind(new, like=file))
    for key, tensor in file.items():
        if key.startswith("norm.running"):  # nnx.BatchNorm counts in float32 always
            assert again[key].dtype == np.float32
            continue
        bits = tensor.view(torch.int16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()
        assert again[key].tobytes() == bits.tobytes()


def test_the_sum_of_two_biases_is_taken_in_the_wider_dtype():
    theirs = randomized(nn.RNN(3, 4)).to(torch.bfloat16)
    model = js.load_state_dict(nnx.RNN(nnx.SimpleCell(3, 4, rngs=rngs())), theirs.state_dict())
    exact = theirs.bias_ih_l0.float() + theirs.bias_hh_l0.float()
    assert np.array_equal(model.cell.dense_i.bias[...], exact.detach().numpy())


def test_training_entries_load_with_their_gradients_off():
    theirs = randomized(nn.Linear(4, 6))
    new = js.load_state_dict(nnx.Linear(4, 6, rngs=rngs()), dict(theirs.named_parameters()))
    assert np.allclose(new(jnp.asarray(noise(2, 4))), theirs(noise(2, 4)).detach(), atol=1e-5)


SHARDED = """
    import jax, numpy as np
    from flax import nnx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import jaxstate as js

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    specs = {("fc", "kernel"): P("a", "b"), ("fc", "bias"): P("b"), ("norm", "scale"): P()}

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(8, 6, rngs=rngs)
            self.norm = nnx.LayerNorm(6, use_bias=False, rngs=rngs)

    def place(abstract):
        model = nnx.eval_shape(lambda: Net(nnx.Rngs(0))) if abstract else Net(nnx.Rngs(0))
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            sharding = NamedSharding(mesh, specs[path])
            make = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            new = make(leaf) if abstract else jax.device_put(leaf.get_raw_value(), sharding)
            getattr(getattr(model, path[0]), path[1]).set_value(new)
        return model

    sizes = []
    original = jax.make_array_from_callback
    def counted(shape, sharding, callback, **options):
        def each(index):
            part = callback(index)
            sizes.append((shape, part.shape))
            return part
        return original(shape, sharding, each, **options)
    jax.make_array_from_callback = counted

    rng = np.random.default_rng(0)
    shapes = {"fc.weight": (6, 8), "fc.bias": (6,), "norm.weight": (6,)}
    file = {key: np.float32(rng.normal(size=shape)) for key, shape in shapes.items()}
    for abstract in (False, True):
        new = js.load_state_dict(place(abstract), file)
        for path, leaf in nnx.to_flat_state(nnx.state(new)):
            assert leaf.get_raw_value().sharding == NamedSharding(mesh, specs[path]), path
        assert np.array_equal(new.fc.kernel[...], file["fc.weight"].T)
        assert {s.data.shape for s in new.fc.kernel.get_raw_value().addressable_shards} == {(2, 3)}
        assert all(np.array_equal(array, file[key]) for key, array in js.state_dict(new).items())
    assert {part for shape, part in sizes if shape == (8, 6)} == {(2, 3)}
    print("sharded", len(jax.devices()))
"""


def test_a_sharded_template_keeps_its_sharding_and_each_shard_reads_its_own_part():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(SHARDED)]
    done = subprocess.run(command, env=flags | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("sharded 8\n", 0), done.stderr
