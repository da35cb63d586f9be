"""Padded: what both sides have goes over, what one has alone is what was declared, and else refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import BindingError, OptimizerError, StateDictError
from jaxstate.rules.rule_json import rule_from_json, rule_to_json


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def vocabulary(length, **options):
    return js.Padded(js.Rule("wte.weight", "wte", "v d -> v d"), "v", length, **options)


def bound(rule, leaf):
    return js.Binding((rule,)).of({"wte": leaf})


def rows(array, count, value=0.0):
    """The array with so many rows of one value behind it, as torch's pad makes them."""
    return torch.nn.functional.pad(torch.from_numpy(array), (0, 0, 0, count), value=value).numpy()


def test_a_longer_leaf_is_padded_on_the_way_in_and_cut_on_the_way_out():
    file = {"wte.weight": numbers(5, 3)}
    model = js.load_state_dict({"wte": jnp.ones((8, 3))}, file, js.Binding((vocabulary(5, value=-2.0),)))
    np.testing.assert_array_equal(model["wte"], rows(file["wte.weight"], 3, -2.0))
    found = js.state_dict(model, js.Binding((vocabulary(5, value=-2.0),)))
    assert found["wte.weight"].tobytes() == file["wte.weight"].tobytes()


def test_trained_padding_is_refused_unless_it_may_be_dropped():
    trained = {"wte": jnp.asarray(numbers(8, 3))}
    with pytest.raises(BindingError) as caught:
        js.state_dict(trained, js.Binding((vocabulary(5),)))
    call = 'Padded(Rule("wte.weight", "wte", "v d -> v d"), "v", 5, drop=True)'
    assert (
        f"the padding of leaf wte, v 5:8, is not 0.0 everywhere; if it may be left out, bind with {call}"
        in str(caught.value)
    )
    found = js.state_dict(trained, js.Binding((eval(call, vars(js)),)))
    np.testing.assert_array_equal(found["wte.weight"], trained["wte"][:5])


def test_a_longer_file_must_hold_what_was_declared():
    file = {"wte.weight": rows(numbers(5, 3), 3, 0.5)}
    leaf = {"wte": np.zeros((5, 3), "float32")}
    model = js.load_state_dict(leaf, file, js.Binding((vocabulary(8, value=0.5),)))
    np.testing.assert_array_equal(model["wte"], file["wte.weight"][:5])
    assert (
        js.state_dict(model, js.Binding((vocabulary(8, value=0.5),)))["wte.weight"].tobytes()
        == file["wte.weight"].tobytes()
    )
    with pytest.raises(StateDictError, match='the padding of "wte.weight", v 5:8, is not 0.0 everywhere'):
        js.load_state_dict(leaf, file, js.Binding((vocabulary(8),)))


@pytest.mark.parametrize("options", [{"drop": True}, {"value": None}])
def test_a_file_comes_back_with_its_own_padding(options):
    file = {"wte.weight": numbers(8, 3).astype(ml_dtypes.bfloat16)}
    binding = js.Binding((vocabulary(8, **options),)).of({"wte": file["wte.weight"][:5]}).like(file)
    model = js.load_state_dict({"wte": np.zeros((5, 3), ml_dtypes.bfloat16)}, file, binding)
    again = js.Binding.from_json(binding.to_json())
    assert js.state_dict(model, again)["wte.weight"].tobytes() == file["wte.weight"].tobytes()
    assert again == binding and again != bound(vocabulary(8, **options), file["wte.weight"][:5])


def test_a_files_padding_that_is_not_known_is_not_made_up():
    with pytest.raises(BindingError, match="bind with like=state_dict"):
        js.state_dict({"wte": numbers(5, 3)}, js.Binding((vocabulary(8, value=None),)))


def test_the_models_own_padding_stays():
    file = {"wte.weight": numbers(5, 3).astype(ml_dtypes.bfloat16)}
    own = numbers(8, 3, seed=1).astype("float16")
    binding = js.Binding((vocabulary(5, value=None),))
    model = js.load_state_dict({"wte": own}, file, binding, cast=True)
    assert np.asarray(model["wte"][5:]).tobytes() == own[5:].tobytes()
    np.testing.assert_array_equal(model["wte"][:5], file["wte.weight"].astype("float16"))
    with pytest.raises(BindingError, match="its own, and the model is abstract: say value="):
        js.load_state_dict({"wte": jax.ShapeDtypeStruct((8, 3), "float16")}, file, binding, cast=True)


def test_nothing_is_padded_where_the_lengths_agree():
    binding = bound(vocabulary(5), np.zeros((5, 3), "float32"))
    file = {"wte.weight": numbers(5, 3)}
    assert np.array_equal(binding.leaves(file)["wte"], file["wte.weight"])
    assert np.array_equal(binding.state_dict({"wte": file["wte.weight"]})["wte.weight"], file["wte.weight"])


CASES = {
    "rows": (js.Rule("w", "p", "v d -> v d"), "v", (4, 3)),
    "a head": (js.Rule("w", "p", "d v -> v d"), "v", (3, 4)),
    "a bias": (js.Rule("w", "p", "v -> v"), "v", (4,)),
    "heads in a dimension": (js.Rule("w", "p", "i (g n k) -> (g n k) i", g=2, k=3), "n", (5, 24)),
    "stacked": (js.Rule("{l}.w", "p", "l v d -> d v", l=range(2)), "v", (2, 4, 3)),
    "backwards": (js.Rule("w", "p", "v d -> ~v d"), "v", (4, 3)),
}


@pytest.mark.parametrize("longer", ["file", "model"])
@pytest.mark.parametrize("name", CASES)
def test_along_any_axis_whole_and_in_parts(name, longer):
    rule, axis, shape = CASES[name]
    other = 6 if longer == "file" else 3
    padded = js.Padded(rule, axis, other, value=0.25).of({"p": numbers(*shape)})
    plain = {"p": numbers(*padded.rule.shape)}
    core = padded.rule.state_dict(plain)
    leaves = plain if longer == "file" else padded.leaves(core)
    arrays = padded.state_dict(leaves)
    assert leaves["p"].shape == shape and {k: x.shape for k, x in arrays.items()} == dict(padded.shapes)
    one, other = (arrays, core) if longer == "file" else (leaves, plain)
    for key, x in one.items():
        assert (x == 0.25).sum() == x.size - other[key].size > 0
        assert sorted(x[x != 0.25]) == sorted(other[key].ravel())
    back = padded.leaves(arrays)["p"]
    assert back.tobytes() == leaves["p"].tobytes()
    rng = np.random.default_rng(1)
    for found, wanted in [(padded.lazy_state_dict(leaves), arrays), (padded.lazy_leaves(arrays), leaves)]:
        for key, x in wanted.items():
            assert np.asarray(found[key]).tobytes() == x.tobytes()
            for _ in range(10):
                box = tuple(slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in x.shape)
                np.testing.assert_array_equal(found[key][box], x[box])
    again = rule_from_json(rule_to_json(padded))
    assert np.array_equal(again.leaves(arrays)["p"], leaves["p"]) and repr(again) == repr(padded)


def test_only_the_padding_is_read_to_look_at_it():
    whole, read = rows(numbers(5, 3), 3), []

    def part(box):
        read.append(whole[box].size)
        return whole[box]

    file = {"wte.weight": LazyArray(whole.shape, whole.dtype, lambda: 1 / 0, part)}
    assert bound(vocabulary(8), np.zeros((5, 3), "float32")).compare(file)
    assert sum(read) == 9


class Tied(nnx.Module):
    """A language model whose head is its embedding, both rounded up to 16."""

    def __init__(self, size=16):
        self.wte = nnx.Embed(size, 4, rngs=nnx.Rngs(0))
        self.lm_head = self.wte


def said(error):
    """The rules that an error says to bind with."""
    return eval(str(error.value).split("say so: rules=")[1], vars(js))


def test_a_tied_head_is_cut_as_well_and_the_error_says_how():
    file = {"wte.weight": numbers(11, 4)}
    file["lm_head.weight"] = file["wte.weight"]
    template = nnx.eval_shape(Tied)
    with pytest.raises(StateDictError, match="If the model is padded along v from 11 on, say so: ") as error:
        js.load_state_dict(template, file)
    binding = js.bind(template, rules=said(error), like=file)
    model = js.load_state_dict(template, file, binding)
    np.testing.assert_array_equal(model.lm_head.embedding[...], rows(file["wte.weight"], 5))
    assert binding.rows[0][2] == "v d -> v d, v: 16 here, 11 in torch, padded with 0.0"
    found = js.state_dict(model, binding)
    assert found["lm_head.weight"] is found["wte.weight"] and found["wte.weight"].shape == (11, 4)
    assert list(found) == list(file)


def test_a_tied_file_that_has_the_head_alone_keeps_its_padding():
    file, template = {"lm_head.weight": numbers(16, 4)}, nnx.eval_shape(lambda: Tied(11))
    with pytest.raises(StateDictError, match="If the file is padded along v from 11 on") as error:
        js.bind(template, like={"wte.weight": file["lm_head.weight"], **file})
    rule = replace(said(error)[0], drop=True)
    binding = js.bind(template, rules=[rule], like=file)
    model = js.load_state_dict(template, file, binding)
    assert js.state_dict(model, binding)["wte.weight"].tobytes() == file["lm_head.weight"].tobytes()


def test_a_leaf_that_layers_share_keeps_its_second_name():
    def make():
        net = Tied()
        net.lm_head = nnx.Embed(16, 4, rngs=nnx.Rngs(0))
        net.lm_head.embedding = net.wte.embedding
        return net

    template = nnx.eval_shape(make)
    (path,) = js.bind(template).paths
    rule = js.Padded(js.Rule("wte.weight", path, "v d -> v d"), "v", 11)
    assert js.bind(template, rules=[rule]).shapes == {"wte.weight": (11, 4), "lm_head.weight": (11, 4)}
    other = js.Rule("other.weight", path, "v d -> v d")
    assert js.bind(template, rules=[other]).keys == ("other.weight",)
    told = [rule, js.Tied("lm_head.weight", "wte.weight")]
    assert len(js.bind(template, rules=told).rules) == 2


def test_other_sizes_are_no_padding():
    class Net(nnx.Module):
        def __init__(self, width):
            self.wte, self.norm = (
                nnx.Embed(7, width, rngs=nnx.Rngs(0)),
                nnx.LayerNorm(width, rngs=nnx.Rngs(0)),
            )
            self.fc = nnx.Linear(width, width, rngs=nnx.Rngs(0))

    small, large = (nnx.eval_shape(lambda n=n: Net(n)) for n in (4, 6))
    file = {key: np.zeros(shape, "float32") for key, shape in js.bind(large).shapes.items()}
    with pytest.raises(StateDictError) as caught:
        js.load_state_dict(small, file)
    assert "size mismatch" in str(caught.value) and "padded" not in str(caught.value)


def stepped(tx, params, grads, steps=2):
    opt, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, opt = update(grads, opt, params)
        params = jax.tree.map(np.add, params, updates)
    return params, opt


@pytest.mark.parametrize("make", [js.optim.adam, js.optim.rprop], ids=["adam", "rprop"])
@pytest.mark.parametrize("here, there", [(8, 5), (5, 8)])
def test_moments_of_a_padding_are_those_of_rows_that_met_no_gradient(make, here, there):
    """torch trains its own length, JAX its own, and each reads in the other's state what it has itself."""
    core, slope = numbers(5, 3), numbers(5, 3, seed=1)
    of = lambda x, length: rows(x, length - 5)  # noqa: E731
    binding = js.Binding((vocabulary(there),))
    p = torch.nn.Parameter(torch.from_numpy(of(core, there)))
    theirs = {"adam": torch.optim.Adam, "rprop": torch.optim.Rprop}[make.__name__]([p], lr=0.5)
    for _ in range(2):
        p.grad = torch.from_numpy(of(slope, there))
        theirs.step()
    tx = make(lr=0.5)
    params, opt = stepped(tx, {"wte": jnp.asarray(of(core, here))}, {"wte": jnp.asarray(of(slope, here))})
    loaded = js.optim.load_state_dict(tx.init(params), theirs.state_dict(), binding)
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(opt), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    found, expected = (osd["state"][0] for osd in (js.optim.state_dict(opt, binding), theirs.state_dict()))
    assert list(found) == list(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x.numpy(), rtol=1e-6)


def test_moments_of_a_trained_padding_are_refused_unless_dropped():
    params = {"wte": jnp.asarray(numbers(8, 3))}
    _, opt = stepped(js.optim.adam(), params, params, 1)
    with pytest.raises(
        OptimizerError, match="exp_avg of wte is not 0 everywhere in its padding; if it may be"
    ):
        js.optim.state_dict(opt, js.Binding((vocabulary(5),)))
    found = js.optim.state_dict(opt, js.Binding((vocabulary(5, drop=True),)))["state"][0]
    np.testing.assert_allclose(found["exp_avg"], 0.1 * params["wte"][:5], rtol=1e-6)
    longer = js.optim.state_dict(opt, js.bind(params, as_is="wte"))
    short = {"wte": params["wte"][:5]}
    rule = js.Padded(js.Rule("wte", "wte", "v d -> v d"), "v", 8)
    with pytest.raises(OptimizerError, match='exp_avg of "wte" is not 0 everywhere in its padding'):
        js.optim.load_state_dict(js.optim.adam().init(short), longer, js.Binding((rule,)))


def test_an_optimizer_of_whole_arrays_refuses_a_padding():
    with pytest.raises(OptimizerError, match="are of another size than torch's"):
        js.optim.adafactor(binding=bound(vocabulary(5), numbers(8, 3))).init({"wte": numbers(8, 3)})


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: js.Padded(js.Rule("w", "p", "v -> v"), "x", 3),
            'has no axis "x" in the arrays of both sides',
        ),
        (lambda: js.Padded(js.Rule("{v}", "p", "v -> ", v=range(2)), "v", 3), "in the arrays of both sides"),
        (lambda: vocabulary(-1), "is a number, not -1"),
        (lambda: vocabulary(2.5), "is a number, not 2.5"),
        (lambda: vocabulary(5, value="mean"), "is one number, or None, not 'mean'"),
        (lambda: vocabulary(5).shapes, "does not know its shape"),
        (lambda: vocabulary(5).of({"wte": np.zeros(3)}), "does not fit its leaf"),
    ],
)
def test_what_is_no_padding_is_refused(make, words):
    with pytest.raises(BindingError) as caught:
        make()
    assert words in str(caught.value)


REFUSED = {
    "a fraction of an int": ("int8", 0.5),
    "beyond an int": ("int8", 128),
    "below an unsigned int": ("uint8", -1),
    "nan of an int": ("int32", float("nan")),
    "more than a bool": ("bool", 2),
    "inf of an int": ("int32", np.float32("inf")),
    "float16 at infinity": ("float16", 1e9),
    "float16 at zero": ("float16", 1e-9),
    "a float8 without infinity": (ml_dtypes.float8_e4m3fn, float("inf")),
    "a float4 that saturates": (ml_dtypes.float4_e2m1fn, 100.0),
    "complex in a float": ("float32", np.complex64(1 + 2j)),
    "an int beyond floats": ("float64", 10**400),
}


@pytest.mark.parametrize("dtype, value", REFUSED.values(), ids=REFUSED)
def test_a_value_that_a_dtype_does_not_hold_is_refused(dtype, value):
    whole, core = np.zeros((8, 3), dtype), np.zeros((5, 3), dtype)
    words = f"{vocabulary(5, value=value)!r}: no {whole.dtype} is {value!r}; say a value= that"
    with pytest.raises(BindingError) as caught:
        bound(vocabulary(5, value=value), whole)
    assert words in str(caught.value)
    longer = bound(vocabulary(8, value=value), core)
    for way in (longer.state_dict, longer.rules[0].lazy_state_dict):
        with pytest.raises(BindingError, match="; say a value= that"):
            way({"wte": core})


def test_a_dtype_that_only_the_leaf_has_is_looked_at_before_a_cast():
    file, padded = {"wte.weight": numbers(5, 3)}, bound(vocabulary(5), np.zeros((8, 3), "float16")).rules[0]
    for way in (replace(padded, value=1e9).leaves, replace(padded, value=1e9).lazy_leaves):
        with pytest.raises(BindingError, match="no float16 is 1000000000.0"):
            way(file)


@pytest.mark.parametrize(
    "dtype, value, cast", [("int8", 0.5, 0), ("float16", 1e9, np.inf), ("int8", 300, 44)]
)
def test_a_file_does_not_hold_what_a_value_would_be_cut_to(dtype, value, cast):
    file = np.full((8, 3), cast, dtype)
    (rule,) = bound(vocabulary(8, value=value), np.zeros((5, 3), "float32")).rules
    assert rule.odd_arrays({"wte.weight": file}) == ["wte.weight"]
    kept = rule.like({"wte.weight": file}).kept["wte.weight"]
    assert kept.tobytes() == file[5:].tobytes()


@pytest.mark.parametrize(
    "dtype, value",
    [
        ("float32", 0.1),
        ("float16", 65510.0),
        ("float32", 3.4028235e38),
        ("float16", float("nan")),
        ("float32", -float("inf")),
        ("float64", 2**53 + 1),
        (ml_dtypes.bfloat16, 1e9),
        ("int64", 1e9),
        ("uint64", 2**64 - 1),
        ("bool", True),
        (ml_dtypes.int4, -8),
        ("complex64", np.complex64(1 + 2j)),
    ],
)
def test_a_value_is_rounded_as_its_dtype_does(dtype, value):
    core, expected = np.ones((5, 3), dtype), np.array(value).astype(dtype)
    padding = bound(vocabulary(8, value=value), core).state_dict({"wte": core})["wte.weight"][5:]
    assert padding.dtype == core.dtype and padding.tobytes() == expected.tobytes() * 9
    leaf = bound(vocabulary(5, value=value), np.ones((8, 3), dtype)).leaves({"wte.weight": core})["wte"]
    assert leaf[5:].tobytes() == padding.tobytes()
