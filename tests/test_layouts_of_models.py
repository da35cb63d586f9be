"""How well-known models keep their weights, each as a Rule, and torch computing the same with the file."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import jaxstate as js


def rngs():
    return nnx.Rngs(0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def close(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def loaded(model, sd, **options):
    """The model with these weights, and the file again bit for bit."""
    binding = js.bind(model, like=sd, **options)
    model = js.load_state_dict(model, sd, binding)
    written = js.state_dict(model, binding)
    assert list(written) == list(sd)
    assert all(written[key].tobytes() == np.asarray(sd[key]).tobytes() for key in sd)
    return model


class Projections(nnx.Module):
    """Queries, keys and values by a layer each; `groups` heads for the last two."""

    def __init__(self, i, o, kv=None):
        self.q, self.k, self.v = (nnx.Linear(i, n, rngs=rngs()) for n in (o, kv or o, kv or o))

    def __call__(self, x):
        return jnp.concatenate([self.q(x), self.k(x), self.v(x)], -1)


@pytest.mark.parametrize("i, o", [(3, 4), (4, 4)])
def test_one_matrix_of_the_file_is_three_layers(i, o):
    x, file = noise(2, i), {"c_attn.weight": noise(i, 3 * o), "c_attn.bias": noise(3 * o)}
    rules = [
        js.Rule("c_attn.weight", "{p}.kernel", "i o -> i (p o)", p="qkv"),  # as GPT-2 has it
        js.Rule("c_attn.bias", "{p}.bias", "o -> (p o)", p="qkv"),
    ]
    close(loaded(Projections(i, o), file, rules=rules)(x), x @ file["c_attn.weight"] + file["c_attn.bias"])


@pytest.mark.parametrize("i, o", [(3, 4), (4, 4)])
def test_three_layers_of_the_file_are_one_matrix(i, o):
    theirs = nn.ModuleDict({name: nn.Linear(i, o) for name in ("query", "key", "value")})
    names = dict(p=("query", "key", "value"))
    rules = [
        js.Rule("{p}.weight", "kernel", "i (p o) -> o i", **names),
        js.Rule("{p}.bias", "bias", "(p o) -> o", **names),
    ]
    x = noise(2, i)
    sd = {key: array.numpy() for key, array in theirs.state_dict().items()}
    sd = {key: sd[key] for key in sorted(sd, key=lambda k: k.endswith("bias"))}
    expected = torch.cat([layer(torch.from_numpy(x)) for layer in theirs.values()], -1).detach()
    close(loaded(nnx.Linear(i, 3 * o, rngs=rngs()), sd, rules=rules)(x), expected)


def test_heads_side_by_side_or_one_matrix_for_each():
    """GPT-NeoX keeps query, key and value of one head together, then those of the next."""
    heads, depth, i = 2, 3, 4
    x, weight = noise(5, i), noise(heads * 3 * depth, i)
    rules = [js.Rule("qkv.weight", "{p}.kernel", "i (n d) -> (n p d) i", p="qkv", n=heads)]
    rules += [js.Rule("qkv.bias", "{p}.bias", "(n d) -> (n p d)", p="qkv", n=heads)]
    file = {"qkv.weight": weight, "qkv.bias": noise(heads * 3 * depth)}
    expected = (x @ weight.T + file["qkv.bias"]).reshape(5, heads, 3, depth).transpose(0, 2, 1, 3)
    close(loaded(Projections(i, heads * depth), file, rules=rules)(x), expected.reshape(5, -1))


def test_fewer_heads_for_keys_and_values_need_no_rule():
    theirs = nn.ModuleDict({"q": nn.Linear(6, 8), "k": nn.Linear(6, 4), "v": nn.Linear(6, 4)})
    x = noise(2, 6)
    expected = torch.cat([layer(torch.from_numpy(x)) for layer in theirs.values()], -1).detach()
    close(loaded(Projections(6, 8, kv=4), theirs.state_dict())(x), expected)


class Experts(nnx.Module):
    """All experts in one array: (layer, expert, in, out)."""

    def __init__(self, layers, experts, i, o):
        self.w1 = nnx.Param(jnp.zeros((layers, experts, i, o)))

    def torch_rules(self):
        layers, experts = self.w1.shape[:2]
        axes = {"l": range(layers), "e": range(experts)}
        return [js.Rule("layers.{l}.experts.{e}.w1.weight", "w1", "l e i o -> o i", **axes)]

    def __call__(self, x):
        return jnp.einsum("i,leio->leo", x, self.w1[...])


@pytest.mark.parametrize("i, o", [(3, 4), (3, 3)])
def test_a_matrix_for_each_expert_is_one_array(i, o):
    file = {
        f"moe.layers.{n}.experts.{e}.w1.weight": noise(o, i, seed=7 * n + e)
        for n in (0, 1)
        for e in (0, 1, 2)
    }
    x = noise(i)
    expected = np.stack([weight @ x for weight in file.values()]).reshape(2, 3, o)
    model = nnx.Dict({"moe": Experts(2, 3, i, o)})
    close(loaded(model, file)["moe"](x), expected)


def test_rotary_positions_in_pairs_are_those_in_halves_by_another_order_of_rows():
    """Meta's files turn features 0 and 1, 2 and 3; transformers' turn the first half with the second."""
    heads, pairs, i, time = 2, 3, 5, 4
    angles = np.arange(time)[:, None] * 10.0 ** -np.arange(pairs)  # (time, pair)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x = noise(time, i)

    def scores(a, b):  # the two features of each pair: (which projection, time, head, pair)
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        return np.einsum("thd,shd->hts", *turned)

    file = {f"{p}.weight": noise(heads * pairs * 2, i, seed=n) for n, p in enumerate("qk")}
    in_pairs = np.stack([x @ file[f"{p}.weight"].T for p in "qk"]).reshape(2, time, heads, pairs, 2)
    rules = [js.Rule(f"{p}.weight", f"{p}.kernel", "i (n ab k) -> (n k ab) i", n=heads, ab=2) for p in "qk"]
    make = lambda: nnx.Linear(i, heads * pairs * 2, use_bias=False, rngs=rngs())  # noqa: E731
    model = loaded(nnx.Dict({p: make() for p in "qk"}), file, rules=rules)
    in_halves = np.stack([model[p](x) for p in "qk"]).reshape(2, time, heads, 2, pairs)
    close(scores(in_halves[..., 0, :], in_halves[..., 1, :]), scores(in_pairs[..., 0], in_pairs[..., 1]))


class Language(nnx.Module):
    def __init__(self, vocabulary, tied=True):
        self.wte = nnx.Embed(vocabulary, 4, rngs=rngs())
        self.lm_head = self.wte if tied else nnx.Linear(4, vocabulary, use_bias=False, rngs=rngs())


@pytest.mark.parametrize("key", ["wte.weight", "lm_head.weight"])
def test_a_tied_head_may_stand_in_the_file_once_or_twice(key):
    weight = noise(7, 4)
    for file in ({key: weight}, {"wte.weight": weight, "lm_head.weight": weight}):
        model = js.load_state_dict(Language(7), file)
        assert np.array_equal(model.wte.embedding[...], weight)
        assert js.state_dict(model)["lm_head.weight"].tobytes() == weight.tobytes()


def test_a_head_that_is_not_tied_is_not_made_up():
    with pytest.raises(js.StateDictError, match='Missing key.*"lm_head.weight"'):
        js.load_state_dict(Language(7, tied=False), {"wte.weight": noise(7, 4)})
    with pytest.raises(js.StateDictError, match="are one array in the model"):
        js.load_state_dict(Language(7), {"wte.weight": noise(7, 4), "lm_head.weight": noise(7, 4, seed=1)})


@pytest.mark.parametrize("key", ["wte.weight", "lm_head.weight"])
def test_rows_that_pad_a_vocabulary_are_refused_with_what_to_do(key):
    file = {key: noise(16, 4)}
    with pytest.raises(js.StateDictError) as error:
        js.load_state_dict(Language(11), file)
    assert f"size mismatch for {key}: copying a param with shape torch.Size([16, 4])" in str(error.value)
    (padded,) = eval(str(error.value).split("padded along v from 11 on, say so: rules=")[1], vars(js))
    file[key][11:] = 0
    model = js.load_state_dict(Language(11), file, js.bind(Language(11), rules=[padded]))
    assert np.array_equal(model.wte.embedding[...], file[key][:11])


def test_frequencies_and_positions_of_older_files_are_declared():
    frequencies, positions = np.float32([1.0, 0.1]), np.arange(6)[None]
    layers = {"l": range(2)}
    rules = [
        js.TorchOnly("layers.{l}.rotary_emb.inv_freq", frequencies, axes=layers),
        js.TorchOnly("position_ids", positions),
    ]
    layer = lambda: nnx.Dict({"q": nnx.Linear(3, 4, rngs=rngs())})  # noqa: E731
    make = lambda: nnx.Dict({"layers": nnx.List([layer(), layer()])})  # noqa: E731
    sd = {
        f"layers.{n}.q.{name}": noise(*shape)
        for n in "01"
        for name, shape in (("weight", (4, 3)), ("bias", (4,)))
    }
    sd |= {f"layers.{n}.rotary_emb.inv_freq": frequencies for n in "01"} | {"position_ids": positions}
    loaded(make(), sd, rules=rules)
    without = {key: array for key, array in sd.items() if "inv_freq" not in key}
    loaded_without = js.load_state_dict(make(), without, js.bind(make(), rules=rules))
    assert np.array_equal(
        js.state_dict(loaded_without, js.bind(make(), rules=rules))["position_ids"], positions
    )
    with pytest.raises(js.StateDictError, match="layers.1.rotary_emb.inv_freq.*has another value"):
        js.bind(make(), like={**sd, "layers.1.rotary_emb.inv_freq": frequencies * 2}, rules=rules)
    with pytest.raises(js.StateDictError, match='Unexpected key.*"position_ids"'):
        js.bind(make(), like=sd)


def test_rules_beside_the_class_or_at_the_call_are_the_same():
    class Scale(nnx.Module):
        def __init__(self):
            self.matrix = nnx.Param(jnp.zeros((3, 4)))

    class Knowing(Scale):
        def torch_rules(self):
            return [js.Rule("weight", "matrix", "i o -> o i")]

    rule = lambda module: [js.Rule("weight", "matrix", "i o -> o i")]  # noqa: E731
    at_the_call = js.bind(nnx.Dict({"a": Scale()}), layers={Scale: rule})
    assert js.bind(nnx.Dict({"a": Knowing()})) == at_the_call
    other = {Knowing: lambda module: [js.Rule("w", "matrix", "i o -> i o")]}
    assert js.bind(nnx.Dict({"a": Knowing()}), layers=other).keys == ("a.w",)
    with pytest.raises(js.BindingError, match=r"(?s)a.matrix of shape \(3, 4\) in Scale.*torch_rules"):
        js.bind(nnx.Dict({"a": Scale()}))
