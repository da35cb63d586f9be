"""What other converters get wrong without a word: each fault once, shown not to happen here."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from _nnx_oracle import Case, as_jax, assert_close, assert_there_and_back, built, noise, randomized, rngs
from flax import nnx
from torch import nn

import jaxstate as js


def _linear(i, o):
    return nnx.Linear(i, o, rngs=rngs())


class ByOtherNames(nnx.Module):
    def __init__(self):
        self.encoder, self.decoder = _linear(4, 4), _linear(4, 4)


def test_names_are_paired_and_not_their_ranks_in_the_alphabet():
    theirs = nn.ModuleDict({"net1": nn.Linear(4, 4), "net2": nn.Linear(4, 4)})
    with pytest.raises(
        js.StateDictError, match='(?s)Missing key.*"encoder.weight".*Unexpected key.*"net1.weight"'
    ) as e:
        js.load_state_dict(ByOtherNames(), theirs.state_dict())
    assert e.value.unexpected_keys == list(theirs.state_dict())
    assert e.value.missing_keys == ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]


def test_a_name_spelt_a_little_differently_is_pointed_out():
    sd = nn.ModuleDict({"encodr": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)}).state_dict()
    with pytest.raises(js.StateDictError, match='Did you mean "encodr.weight" for "encoder.weight"'):
        js.load_state_dict(ByOtherNames(), sd)


def test_twelve_layers_are_not_loaded_as_0_1_10_11_2():
    theirs = randomized(nn.ModuleList([nn.Linear(2, 2) for _ in range(12)]))
    model = js.load_state_dict(nnx.List([_linear(2, 2) for _ in range(12)]), theirs.state_dict())
    for ours, layer in zip(model, theirs, strict=True):
        assert np.array_equal(ours.kernel[...].T, layer.weight.detach())


@pytest.mark.parametrize("i, o", [(2, 6), (3, 4), (4, 4)])
def test_a_kernel_is_the_transpose_and_no_reshape(i, o):
    theirs = randomized(nn.Linear(i, o))
    model = js.load_state_dict(_linear(i, o), theirs.state_dict())
    assert np.array_equal(model.kernel[...], theirs.weight.detach().numpy().T)


@pytest.mark.parametrize("kernel", [(2, 3, 4), (3, 3, 3)])
def test_the_spatial_axes_of_a_conv3d_keep_their_order(kernel):
    assert_there_and_back(
        Case(
            "Conv3d",
            lambda: nn.Conv3d(2, 3, kernel),
            lambda: nnx.Conv(2, 3, kernel, padding="VALID", rngs=rngs()),
            (1, 2, 5, 6, 7),
            image=True,
        )
    )


def test_a_square_transposed_convolution_is_flipped():
    theirs = randomized(nn.ConvTranspose2d(3, 3, 3))
    model = built(lambda: nnx.ConvTranspose(3, 3, (3, 3), padding="VALID", rngs=rngs()))
    model = js.load_state_dict(model, theirs.state_dict())
    x = noise(1, 3, 4, 4)
    assert_close(np.moveaxis(np.asarray(model(as_jax(x, True))), -1, 1), theirs(x).detach())
    unflipped = theirs.weight.detach().numpy().transpose(2, 3, 0, 1)
    assert not np.allclose(model.kernel[...], unflipped, atol=1e-2)


def test_each_array_of_a_mixed_file_keeps_its_dtype():
    file = {"weight": np.full((4, 4), 3, ml_dtypes.bfloat16), "bias": np.full(4, 3, np.float16)}
    model = js.load_state_dict(_linear(4, 4), file)
    assert (model.kernel[...] == 3).all() and (model.bias[...] == 3).all()


def test_a_scale_that_nobody_reads_is_reported():
    file = {**nn.Linear(4, 4).state_dict(), "weight_scale_inv": torch.ones(1)}
    with pytest.raises(js.StateDictError, match='Unexpected key.*"weight_scale_inv"'):
        js.load_state_dict(_linear(4, 4), file)


@pytest.mark.parametrize("width, heads", [(8, 2), (4, 2), (4, 4)])
def test_the_queries_of_attention_are_split_head_by_head(width, heads):
    theirs = randomized(nn.MultiheadAttention(width, heads))
    model = built(lambda: nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs()))
    model = js.load_state_dict(model, theirs.state_dict())
    query = theirs.in_proj_weight[:width].detach().numpy()
    for head, rows in enumerate(np.split(query, heads)):
        assert np.array_equal(model.query.kernel[...][:, head], rows.T)


def test_missing_parameters_do_not_stay_abstract():
    abstract = nnx.eval_shape(lambda: _linear(4, 4))
    with pytest.raises(js.StateDictError, match='Missing key.*"bias"'):
        js.load_state_dict(abstract, {"weight": np.zeros((4, 4), "float32")})


@pytest.mark.parametrize("shape", [(7,), (4,), (16,), (4, 1), (2, 8), (4, 4, 1), ()])
@pytest.mark.parametrize("strict", [True, False])
def test_a_leaf_takes_an_array_of_its_shape_only(shape, strict):
    file = {"weight": np.zeros(shape, "float32"), "bias": np.zeros(4, "float32")}
    with pytest.raises(js.StateDictError, match=r"size mismatch for weight: copying a param with shape"):
        js.load_state_dict(_linear(4, 4), file, strict=strict)


def test_counters_beyond_two_to_the_31_survive():
    theirs = randomized(nn.BatchNorm1d(4))
    theirs.num_batches_tracked.fill_(2**40 + 1)
    model = nnx.BatchNorm(4, rngs=rngs())
    binding = js.bind(model, like=theirs.state_dict())
    sd = js.state_dict(js.load_state_dict(model, theirs.state_dict(), binding), binding)
    assert sd["num_batches_tracked"] == 2**40 + 1 and sd["num_batches_tracked"].dtype == np.int64


def test_integers_that_jax_would_wrap_are_refused():
    class Table(nnx.Module):
        def __init__(self):
            self.table = nnx.BatchStat(jnp.zeros(2, "int32"))

    with pytest.raises(js.StateDictError, match='"table" is int64 and leaf table of the model is int32'):
        js.load_state_dict(Table(), {"table": np.int64([2**40, 1])})


def test_bfloat16_passes_by_its_bits():
    weight = torch.randn(4, 4).to(torch.bfloat16)
    model = nnx.Linear(4, 4, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs())
    sd = js.state_dict(js.load_state_dict(model, {"weight": weight}))
    assert sd["weight"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(sd["weight"].view(np.int16), weight.view(torch.int16).numpy())


def test_no_argument_is_changed_and_no_view_is_handed_out():
    model, file = _linear(3, 4), {k: v.numpy() for k, v in nn.Linear(3, 4).state_dict().items()}
    before = {key: array.copy() for key, array in file.items()}
    new = js.load_state_dict(model, file)
    sd = js.state_dict(new)
    assert list(file) == list(before) and all(np.array_equal(file[key], before[key]) for key in file)
    assert all(array.flags.c_contiguous and array.base is None for array in sd.values())
    assert not any(np.shares_memory(sd[key], np.asarray(leaf)) for key in sd for leaf in jax.tree.leaves(new))


def test_a_loaded_model_does_not_follow_the_file():
    file = {k: v.numpy() for k, v in nn.Linear(4, 4).state_dict().items()}
    model = js.load_state_dict(_linear(4, 4), file)
    kernel = np.array(model.kernel[...])
    file["weight"][...] = 7
    assert np.array_equal(model.kernel[...], kernel)


def test_indices_of_layers_stay_in_place_when_one_holds_nothing():
    theirs = randomized(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2)))
    drop = nnx.Dropout(0.1, deterministic=True)
    model = nnx.Sequential(_linear(3, 4), nnx.relu, drop, _linear(4, 2))
    assert list(js.bind(model).keys) == list(theirs.state_dict())
    x = noise(5, 3)
    assert_close(js.load_state_dict(model, theirs.state_dict())(as_jax(x)), theirs(x).detach())
