"""state_dict and load_state_dict against torch's own methods on the same network: keys, texts, strictness."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxstate as js
from jaxstate.errors import BindingError, StateDictError


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(3, 4, rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.encoder = Encoder(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.scale = nnx.Param(jnp.full(2, 0.5))


class TorchEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(3, 4)
        self.bn = torch.nn.BatchNorm1d(4)


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = TorchEncoder()
        self.head = torch.nn.Linear(4, 2)
        self.scale = torch.nn.Parameter(torch.full((2,), 0.25))


@pytest.fixture
def net():
    return Net(nnx.Rngs(0))


@pytest.fixture
def twin():
    torch.manual_seed(0)
    twin = TorchNet()
    with torch.no_grad():
        for n, tensor in enumerate(twin.state_dict().values()):
            tensor.copy_(torch.rand(tensor.shape) + n if tensor.is_floating_point() else torch.tensor(7))
    return twin


def as_torch(state_dict):
    return OrderedDict((key, torch.from_numpy(array)) for key, array in state_dict.items())


def same(left, right):
    assert list(left) == list(right)
    for key in left:
        a, b = np.asarray(left[key]), np.asarray(right[key])
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), key


def torchs_error(twin, state_dict, strict=True):
    with pytest.raises(RuntimeError) as caught:
        twin.load_state_dict(state_dict, strict=strict)
    return str(caught.value)


def our_error(net, state_dict, **options):
    with pytest.raises(StateDictError) as caught:
        js.load_state_dict(net, state_dict, **options)
    return str(caught.value)


def test_keys_order_shapes_dtypes_and_versions_are_torchs(net, twin):
    ours, theirs = js.state_dict(net), twin.state_dict()
    assert isinstance(ours, OrderedDict) and list(ours) == list(theirs)
    assert {k: (v.shape, str(v.dtype)) for k, v in ours.items()} == {
        k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in theirs.items()
    }
    assert {m: v for m, v in ours._metadata.items()} == dict(theirs._metadata)


def test_a_torch_state_dict_comes_back_bit_for_bit(net, twin):
    theirs = twin.state_dict()
    binding = js.bind(net, like=theirs)
    same(
        js.state_dict(js.load_state_dict(net, theirs, binding), binding),
        {k: v.numpy() for k, v in theirs.items()},
    )
    assert twin.load_state_dict(as_torch(js.state_dict(net)), strict=True).missing_keys == []


def test_what_comes_out_is_owned_writable_and_contiguous(net):
    arrays = js.state_dict(net)
    before = js.state_dict(net)
    for array in arrays.values():
        assert array.flags.writeable and array.flags.c_contiguous and array.flags.owndata
        array[...] = 9
    same(js.state_dict(net), before)
    assert not any(np.shares_memory(a, b) for k, a in arrays.items() for j, b in arrays.items() if k != j)


def test_what_goes_in_is_copied(net, twin):
    arrays = {key: tensor.numpy().copy() for key, tensor in twin.state_dict().items()}
    loaded = js.load_state_dict(net, arrays)
    before = js.state_dict(loaded)
    for array in arrays.values():
        array[...] = 9
    same(js.state_dict(loaded), before)


def test_the_template_is_not_changed(net, twin):
    before = js.state_dict(net)
    loaded = js.load_state_dict(net, twin.state_dict())
    assert type(loaded) is Net and loaded is not net
    same(js.state_dict(net), before)
    nnx.update(net, nnx.state(loaded))
    same(js.state_dict(net), js.state_dict(loaded))


@pytest.mark.parametrize("kind", ["numpy", "jax", "torch", "parameters"])
def test_arrays_of_any_library_are_taken(net, twin, kind):
    theirs = twin.state_dict()
    given = {
        "numpy": {k: v.numpy() for k, v in theirs.items()},
        "jax": {k: jnp.asarray(v.numpy()) for k, v in theirs.items() if v.is_floating_point()},
        "torch": theirs,
        "parameters": {**theirs, **dict(twin.named_parameters())},
    }[kind]
    loaded = js.state_dict(js.load_state_dict(net, given))
    for key, tensor in theirs.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(loaded[key], tensor.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_widen_exactly(net, twin, dtype):
    twin = twin.to(dtype)
    loaded = js.state_dict(js.load_state_dict(net, twin.state_dict()))
    np.testing.assert_array_equal(loaded["head.weight"], twin.head.weight.detach().float().numpy())


def test_missing_unexpected_and_misshapen_read_as_torch_says_it(net, twin):
    broken = twin.state_dict()
    del broken["head.bias"], broken["scale"]
    broken["tail.weight"] = torch.zeros(2)
    broken["head.weight"] = torch.zeros(4, 2)
    theirs, ours = torchs_error(twin, broken).splitlines(), our_error(net, broken).splitlines()
    assert theirs[0].replace("TorchNet", "Net") == ours[0]
    assert theirs[1:] == ours[1 : len(theirs)]


def test_shapes_must_fit_even_if_not_strict(net, twin):
    broken = {**twin.state_dict(), "head.weight": torch.zeros(4, 2)}
    assert "size mismatch for head.weight" in torchs_error(twin, broken, strict=False)
    assert "size mismatch for head.weight" in our_error(net, broken, strict=False)


def test_not_strict_keeps_the_models_own_values(net, twin):
    given = {key: tensor for key, tensor in twin.state_dict().items() if key != "head.bias"}
    loaded = js.load_state_dict(net, {**given, "extra": torch.zeros(3)}, strict=False)
    assert np.array_equal(loaded.head.bias[...], net.head.bias[...])
    assert np.array_equal(loaded.scale[...], twin.scale.detach())


def test_not_strict_cannot_keep_what_is_abstract(twin):
    template = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    given = {key: tensor for key, tensor in twin.state_dict().items() if key != "head.bias"}
    assert "is abstract and has none" in our_error(template, given, strict=False)


def test_the_one_forgotten_letter_is_found(net, twin):
    given = {key.replace("head", "haed"): tensor for key, tensor in twin.state_dict().items()}
    assert 'Did you mean "haed.weight" for "head.weight"?' in our_error(net, given)


def test_a_rounding_is_refused_and_may_be_asked_for(net, twin):
    given = twin.double().state_dict()
    text = our_error(net, given)
    assert '"head.weight" is float64 and leaf head.kernel of the model is float32' in text
    assert "pass cast=True to round" in text
    loaded = js.load_state_dict(net, given, cast=True)
    np.testing.assert_array_equal(loaded.head.kernel[...], given["head.weight"].numpy().T.astype("float32"))


def test_an_abstract_int64_leaf_is_refused_without_x64():
    template = {"count": jax.ShapeDtypeStruct((2,), np.int64)}
    binding = js.Binding((js.Rule("count", "count", "a -> a"),))
    with pytest.raises(StateDictError, match="jax_enable_x64"):
        js.load_state_dict(template, {"count": np.array([2**40, 1])}, binding)


@pytest.mark.parametrize("value", [[], "x", None, 3])
def test_what_is_no_mapping_is_refused_in_torchs_words(net, twin, value):
    with pytest.raises(TypeError) as theirs:
        twin.load_state_dict(value)
    with pytest.raises(TypeError) as ours:
        js.load_state_dict(net, value)
    assert str(ours.value) == str(theirs.value)


def test_an_entry_that_is_no_array_is_named(net, twin):
    assert '"scale" is no array but str' in our_error(net, {**twin.state_dict(), "scale": "x"})


def test_prefix_and_destination(net, twin):
    before = OrderedDict(first=np.zeros(1))
    ours = js.state_dict(net, prefix="model.", destination=before)
    theirs = twin.state_dict(prefix="model.", destination=OrderedDict(first=torch.zeros(1), _metadata=None))
    assert list(before) == ["first"]
    assert list(ours) == [key for key in theirs if key != "_metadata"]
    assert set(ours._metadata) == {
        "model",
        "model.encoder",
        "model.encoder.fc1",
        "model.encoder.bn",
        "model.head",
    }
    assert dict(twin.state_dict(prefix="model.")._metadata) == dict(ours._metadata)
    with pytest.raises(BindingError, match="destination has these keys already"):
        js.state_dict(net, destination=ours, prefix="model.")


def test_recurse_gives_a_modules_own_entries(net, twin):
    assert list(js.state_dict(net, recurse=False)) == [n for n, _ in twin.named_parameters(recurse=False)]


def test_a_submodule_has_a_state_dict_of_its_own(net, twin):
    assert list(js.state_dict(net.encoder)) == list(twin.encoder.state_dict())
    loaded = js.load_state_dict(net.encoder, twin.state_dict(), prefix="encoder.")
    np.testing.assert_array_equal(loaded.fc1.bias[...], twin.encoder.fc1.bias.detach())


def test_a_part_of_a_file_into_a_part_of_a_model(net, twin):
    given = {**twin.state_dict(), "head.weight": torch.zeros(1000, 4), "other": torch.zeros(1)}
    loaded = js.load_state_dict(net, given, only="encoder.*")
    np.testing.assert_array_equal(loaded.encoder.fc1.bias[...], twin.encoder.fc1.bias.detach())
    np.testing.assert_array_equal(loaded.head.kernel[...], net.head.kernel[...])
    report = js.bind(net).compare(given, only="encoder.*")
    assert report.untouched_keys == ("scale", "head.weight", "head.bias")
    assert set(report.ignored_keys) == {"scale", "head.weight", "head.bias", "other"}
    del given["encoder.fc1.bias"]
    assert 'Missing key(s) in state_dict: "encoder.fc1.bias". ' in our_error(net, given, only="encoder.*")


def test_a_part_cannot_fill_an_abstract_model(twin):
    template = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    with pytest.raises(BindingError, match="would stay without values: .*head.kernel"):
        js.load_state_dict(template, twin.state_dict(), only="encoder.*")


def test_gradients_move_with_the_same_binding(net):
    graphdef, parameters, rest = nnx.split(net, nnx.Param, ...)
    arrays = js.state_dict(jax.tree.map(lambda x: 2 * x, parameters), js.bind(net))
    assert list(arrays) == list(js.bind(net).parameters)
    np.testing.assert_array_equal(arrays["head.weight"], 2 * np.asarray(net.head.kernel[...]).T)


def test_a_tree_of_arrays_asks_for_a_binding(net):
    with pytest.raises(BindingError, match=r"js.bind\(module, \*example_inputs\)"):
        js.state_dict({"kernel": np.zeros((2, 3))})


def test_plain_trees_keep_their_kind():
    binding = js.Binding((js.Rule("w", "layers.0.kernel", "i o -> o i"),))
    tree = {"layers": [{"kernel": np.zeros((2, 3))}], "step": 3}
    loaded = js.load_state_dict(tree, {"w": np.ones((3, 2))}, binding)
    assert loaded["step"] == 3 and isinstance(loaded["layers"][0]["kernel"], np.ndarray)
    assert loaded["layers"][0]["kernel"].shape == (2, 3) and tree["layers"][0]["kernel"].sum() == 0


def test_a_module_that_was_pickled_whole_is_no_state_dict_and_the_error_says_how_to_have_it(tmp_path):
    theirs = torch.nn.Linear(3, 4)
    torch.save(theirs, tmp_path / "whole.pt")
    record, model = js.load(tmp_path / "whole.pt"), nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    for call in (lambda sd: js.load_state_dict(model, sd), lambda sd: js.bind(model, like=sd)):
        with pytest.raises(
            TypeError, match=r"Expected state_dict to be dict-like, .*js.io.state_dict_of\(record\)"
        ):
            call(record)
    loaded = js.load_state_dict(model, js.io.state_dict_of(record))
    np.testing.assert_array_equal(loaded.kernel[...], theirs.weight.detach().numpy().T)


@pytest.mark.parametrize("strict, looks", [(True, 1), (False, 2)])
def test_a_tied_array_is_looked_at_no_more_than_needed(strict, looks):
    """Once for what is wrong; and if not strict once before, for what is to be left out or kept."""
    read, wte = [], np.arange(6, dtype="float32").reshape(3, 2)
    head = js.LazyArray(wte.shape, wte.dtype, lambda: read.append("head") or wte.copy())
    binding = js.Binding((js.Rule("wte", "wte", "v d -> v d"), js.Tied("head", "wte")))
    given = {"wte": wte, "head": head, **({} if strict else {"extra": wte})}
    loaded = js.load_state_dict({"wte": jnp.zeros((3, 2))}, given, binding, strict=strict)
    assert loaded["wte"].tolist() == wte.tolist() and len(read) == looks
