"""Renaming: patterns with named holes, the most specific one taken, and nothing renamed by accident."""

import jax
import numpy as np
import pytest
import torch
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.renaming import Renaming
from jaxstate.rules.spectral import Spectral

RULES = (
    js.Rule("emb.weight", "emb", "v d -> v d"),
    js.Rule("h.{l}.fc.weight", "h.fc", "l i o -> o i", l=range(3)),
    js.Sum((js.Rule("rnn.b_ih", "rnn.b", "k -> k"), js.Rule("rnn.b_hh", "rnn.b", "k -> k"))),
    js.TorchOnly("h.{l}.rope.freq", np.float32([1.0, 0.5]), axes={"l": range(3)}),
    js.JaxOnly("extra", 0.0),
    Spectral(js.Rule("s.w", "s.kernel", "i o -> o i"), js.Rule("s.u", "s.u", "1 o -> o"), "s.v", "s.sigma"),
    js.Tied("head.weight", "emb.weight"),
)
PATTERNS = {
    "": "model",
    "emb": "wte",
    "h.{i}": "model.layers.{i}",
    "h.{i}.fc": "model.layers.{i}.mlp",
    "s": "spec.norm",
}


def test_every_kind_of_rule_takes_its_new_names():
    keys = js.Binding(RULES).renamed(PATTERNS).keys
    layers = (
        [f"model.layers.{n}.mlp.weight" for n in range(3)],
        [f"model.layers.{n}.rope.freq" for n in range(3)],
    )
    assert keys == (
        *("wte.weight", *layers[0], "model.rnn.b_ih", "model.rnn.b_hh", *layers[1]),
        *("spec.norm.w", "spec.norm.u", "spec.norm.v", "model.head.weight"),
    )


def test_only_the_names_change():
    rng = np.random.default_rng(0)
    shapes = {
        "emb": (7, 4),
        "h.fc": (3, 4, 5),
        "rnn.b": (6,),
        "extra": (2,),
        "s.kernel": (3, 2),
        "s.u": (1, 2),
    }
    leaves = {path: rng.normal(size=shape).astype("float32") for path, shape in shapes.items()}
    leaves |= {"extra": np.zeros(2, "float32"), "s.sigma": np.float32(2)}
    binding = js.Binding(RULES).of(leaves)
    old, new = binding.state_dict(leaves), binding.renamed(PATTERNS).state_dict(leaves)
    rename = Renaming(PATTERNS)
    assert {rename(key): array.tobytes() for key, array in old.items()} == {
        k: a.tobytes() for k, a in new.items()
    }


def test_what_a_file_told_is_kept_under_the_new_names():
    binding = js.Binding(RULES[2:4])
    arrays = {"rnn.b_ih": np.float32([1, 2]), "rnn.b_hh": np.float32([3, 4])}
    arrays |= {f"h.{n}.rope.freq": np.float32([1.0, 0.5]) for n in range(3)}
    binding = (
        binding.of({"rnn.b": np.float32([4, 6])}).like(arrays).renamed({"rnn": "lstm", "h.{l}": "g.{l}"})
    )
    written = binding.state_dict({"rnn.b": np.float32([4, 6])})
    assert written["lstm.b_ih"].tolist() == [1, 2] and written["lstm.b_hh"].tolist() == [3, 4]
    assert list(binding.order) == list(written)


def test_the_most_specific_pattern_is_taken_whatever_the_order():
    patterns = {"a": "x", "a.{i}": "y.{i}", "a.b": "z", "": "root", "a.b.c": "w"}
    for order in (list(patterns), list(reversed(patterns))):
        rename = Renaming({old: patterns[old] for old in order})
        assert [rename(k) for k in ("a.b.c", "a.b.d", "a.q.r", "a", "b")] == [
            "w",
            "z.d",
            "y.q.r",
            "x",
            "root.b",
        ]


def test_a_pattern_ends_where_a_name_ends():
    assert Renaming({"fc": "dense"})("fc1.weight") == "fc1.weight"
    assert Renaming({"layers_{i}": "h.{i}"})("layers.1.weight") == "layers.1.weight"
    assert Renaming({"a.b": "c"})("aXb.weight") == "aXb.weight"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(0, 30))
def test_a_prefix_is_put_there_and_taken_away_again(parts, number):
    key = ".".join([*parts, str(number), "weight"])
    assert Renaming({"model": ""})(Renaming({"": "model"})(key)) == key
    there, back = {"a.{i}.{j}": "t{j}.{i}"}, {"t{j}.{i}": "a.{i}.{j}"}
    assert Renaming(back)(Renaming(there)(key)) == key


@pytest.mark.parametrize(
    "patterns, message",
    [
        ({"encoder": "e", "decoder": "d"}, '"decoder" fits no name of the model; it has "encoder.weight"'),
        ({"encoder.weight": "w", "encoder.bias": "w"}, 'key "w" is claimed by'),
        ({"encoder": "e.{i}"}, 'each {hole} stands on both sides, unlike in "encoder": "e.{i}"'),
        ({"{i}.weight": "{i}.w", "{j}.weight": "{j}.v"}, 'fit "encoder.weight" equally well'),
        ({"{a.b}": "{a.b}"}, "each {axis} is a name of its own"),
    ],
)
def test_what_is_no_renaming_is_refused(patterns, message):
    model = nnx.Dict({"encoder": nnx.Linear(3, 4, rngs=nnx.Rngs(0))})
    with pytest.raises(js.BindingError) as error:
        js.bind(model, rename=patterns)
    assert message in str(error.value)


def test_a_stack_is_renamed_as_a_whole():
    rule = js.Rule("h.{l}.weight", "h", "l i o -> o i", l=range(2))
    assert js.Binding((rule,)).renamed({"h.{n}": "{n}.mlp"}).keys == ("0.mlp.weight", "1.mlp.weight")
    with pytest.raises(js.BindingError, match='"h.{l}.weight" is one leaf for all its layers'):
        js.Binding((rule,)).renamed({"h.0": "first"})


def test_a_model_takes_a_file_whose_names_are_others():
    theirs = torch.nn.ModuleDict({"enc": torch.nn.Linear(3, 4), "dec": torch.nn.Linear(4, 3)})
    linear = lambda i, o: nnx.Linear(i, o, rngs=nnx.Rngs(0))  # noqa: E731
    model, sd = nnx.Dict({"a": linear(3, 4), "b": linear(4, 3)}), theirs.state_dict()
    binding = js.bind(model, rename={"a": "enc", "b": "dec"}, like=sd)
    assert "enc.weight  a.kernel" in str(binding)
    model = js.load_state_dict(model, sd, binding)
    x = np.float32([[1, -2, 3]])
    expected = theirs["dec"](theirs["enc"](torch.from_numpy(x))).detach().numpy()
    np.testing.assert_allclose(model["b"](model["a"](x)), expected, rtol=1e-5)
    assert list(js.state_dict(model, binding)) == list(sd)
    assert jax.tree.all(jax.tree.map(lambda a: a.dtype == "float32", js.state_dict(model, binding)))


def test_a_linen_model_is_renamed_by_its_own_names():
    model = linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(2)])
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    sd = torch.nn.ModuleDict({"body": theirs}).state_dict()
    x = np.float32([[1, -2, 3]])
    binding = js.bind(model, x, rename={"{i}": "body.{i}"}, like=sd)
    assert js.bind(model, x, like=sd) == binding  # a wrapper is looked through
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    found = model.apply(js.load_state_dict(variables, sd, binding), x)
    np.testing.assert_allclose(found, theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_cells_of_equinox_and_running_statistics_are_renamed():
    import equinox as eqx

    class Net(eqx.Module):
        gru: eqx.nn.GRUCell
        norm: eqx.nn.BatchNorm

    def make(key):
        return Net(eqx.nn.GRUCell(3, 4, key=key), eqx.nn.BatchNorm(4, "batch", mode="ema"))

    net, state = eqx.nn.make_with_state(make)(jax.random.key(1))
    theirs = torch.nn.ModuleDict({"cell": torch.nn.GRUCell(3, 4), "stats": torch.nn.BatchNorm1d(4)})
    theirs.stats.running_mean += 0.3
    theirs.stats.running_var *= 1.7
    binding = js.bind((net, state), rename={"gru": "cell", "norm": "stats"})
    moved = js.load_state_dict((net, state), theirs.state_dict(), binding)
    renamed = binding.like(theirs.state_dict()).renamed({"cell": "rnn"})
    back = js.state_dict(moved, renamed)
    expected = {key.replace("cell.", "rnn."): tensor for key, tensor in theirs.state_dict().items()}
    assert list(back) == list(expected)
    assert all(np.array_equal(back[key], tensor.numpy()) for key, tensor in expected.items())
