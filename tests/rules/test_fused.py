"""Fused: numpy's and torch's concatenate say what the joined array is; parts of it are parts of the same."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import BindingError
from jaxstate.rules.rule_json import rule_from_json, rule_to_json


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def gqa():
    return js.Fused([js.Rule("qkv.weight", f"{p}.kernel", "d n k -> (n k) d") for p in "qkv"], "n")


def test_grouped_queries_are_what_torch_concatenates():
    leaves = {f"{p}.kernel": numbers(8, n, 3, seed=n) for p, n in [("q", 4), ("k", 2), ("v", 2)]}
    theirs = torch.cat([torch.from_numpy(x.reshape(8, -1).T.copy()) for x in leaves.values()])
    found = gqa().state_dict(leaves)
    assert found["qkv.weight"].tobytes() == theirs.numpy().tobytes()
    back = gqa().of(leaves).leaves({"qkv.weight": theirs.numpy()})
    assert list(back) == list(leaves) and all(np.array_equal(back[p], leaves[p]) for p in leaves)


@pytest.mark.parametrize("new", [True, False], ids=["groups", "one key for all"])
def test_heads_alternate_as_falcon_reads_them(new):
    falcon = pytest.importorskip("transformers.models.falcon.modeling_falcon")
    groups, heads, depth, width = 3 if new else 1, 6, 4, 24
    options = dict(num_kv_heads=groups, new_decoder_architecture=new, multi_query=True, bias=False)
    theirs = falcon.FalconAttention(
        falcon.FalconConfig(hidden_size=width, num_attention_heads=heads, **options), layer_idx=0
    )
    lengths = {"q": heads // groups, "k": 1, "v": 1}
    rule = js.Fused(
        [js.Rule("qkv", p, "i (g n d) -> (g n d) i", g=groups, n=n) for p, n in lengths.items()], "n"
    )
    leaves = {p: numbers(width, groups * n * depth, seed=ord(p)) for p, n in lengths.items()}
    x, theirs.query_key_value.weight.data = (
        numbers(2, 7, width),
        torch.from_numpy(rule.state_dict(leaves)["qkv"]),
    )
    with torch.no_grad():
        parts = theirs._split_heads(theirs.query_key_value(torch.from_numpy(x)))
    for p, part in zip("qkv", parts, strict=True):
        ours = (x @ leaves[p]).reshape(2, 7, -1, depth)
        repeated = np.repeat(ours, part.shape[2] // ours.shape[2], axis=2)
        np.testing.assert_allclose(part.numpy(), repeated, rtol=1e-5, atol=1e-5)


def falcon():
    lengths = {"q": 3, "k": 1, "v": 2}
    parts = [
        js.Rule("h.{l}.qkv", f"h.{p}", "l i (g n d) -> (g n d) i", l=range(2), g=2, n=n)
        for p, n in lengths.items()
    ]
    return js.Fused(parts, "n"), {f"h.{p}": numbers(2, 5, 2 * n * 4, seed=n) for p, n in lengths.items()}


def one_leaf():
    """A leaf for all, torch's arrays apart, and along the leaf's last axis, which is torch's first."""
    parts = [js.Rule(f"{p}.weight", "qkv.kernel", "i (n k) -> (n k) i", n=n) for p, n in [("q", 4), ("k", 2)]]
    return js.Fused(parts, "n"), {"qkv.kernel": numbers(3, 18)}


def layers():
    parts = [js.Rule("h.{l}.up", f"{{l}}.{p}.kernel", "i o -> o i", l=range(2)) for p in ("gate", "up")]
    sizes = {"gate": 4, "up": 3}
    return js.Fused(parts, "o"), {
        f"{n}.{p}.kernel": numbers(5, size, seed=n) for n in range(2) for p, size in sizes.items()
    }


def backwards():
    parts = [js.Rule("w", p, "o h -> ~h o") for p in "ab"]
    return js.Fused(parts, "h"), {"a": numbers(4, 3), "b": numbers(4, 2)}


CASES = {
    "grouped": lambda: (
        gqa(),
        {f"{p}.kernel": numbers(6, n, 3, seed=n) for p, n in zip("qkv", (4, 2, 2), strict=True)},
    ),
    "falcon": falcon,
    "one leaf": one_leaf,
    "layers": layers,
    "backwards": backwards,
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_lazy_is_the_eager_one_and_reads_parts_of_parts(name):
    rule, leaves = CASES[name]()
    rule = rule.of(leaves)
    arrays = rule.state_dict(leaves)
    assert tuple(arrays) == rule.keys and sorted(leaves) == sorted(rule.paths)
    assert {key: x.shape for key, x in arrays.items()} == dict(rule.shapes)
    back = rule.leaves(arrays)
    assert all(np.array_equal(back[path], leaf) for path, leaf in leaves.items())
    rng = np.random.default_rng(1)
    for found, wanted in [(rule.lazy_state_dict(leaves), arrays), (rule.lazy_leaves(lazy(arrays)), leaves)]:
        assert sorted(found) == sorted(wanted)
        for key, x in wanted.items():
            assert np.asarray(found[key]).tobytes() == x.tobytes() and found[key].dtype == x.dtype
            for _ in range(20):
                box = tuple(slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in x.shape)
                np.testing.assert_array_equal(found[key][box], x[box])


@pytest.mark.parametrize("name", CASES)
def test_places_are_where_the_elements_are(name):
    rule, leaves = CASES[name]()
    rule = rule.of(leaves)
    arrays = rule.state_dict(leaves)
    for path, leaf in leaves.items():
        box = tuple(slice(n // 3, n - n // 4) for n in leaf.shape)
        found = [arrays[key][there].ravel() for key, there in rule.places(path, box)]
        assert sorted(np.concatenate(found)) == sorted(leaf[box].ravel())


def lazy(arrays):
    """The same, whole ones refused."""
    return {k: LazyArray(x.shape, x.dtype, _never, lambda box, x=x: x[box]) for k, x in arrays.items()}


def _never():
    raise AssertionError("the whole array was made")


def test_a_part_of_a_leaf_reads_no_more_of_the_file():
    rule, leaves = CASES["grouped"]()
    whole, read = rule.state_dict(leaves)["qkv.weight"], []

    def part(box):
        read.append(whole[box].size)
        return whole[box]

    file = {"qkv.weight": LazyArray(whole.shape, whole.dtype, _never, part)}
    found = rule.of(leaves).lazy_leaves(file)["v.kernel"][2:4, 1:]
    assert np.array_equal(found, leaves["v.kernel"][2:4, 1:]) and sum(read) == found.size


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.permutations("abc"),
    st.booleans(),
    st.integers(0, 2),
)
def test_joined_along_any_axis_of_any_merge(lengths, order, merged, position):
    sizes, order = {"a": 2, "b": 3, "c": 1}, [*order]
    order.insert(position, "x")
    right = f"({' '.join(order)})" if merged else " ".join(order)
    parts = [js.Rule("k", f"p{n}", f"a x b c -> {right}") for n in range(len(lengths))]
    leaves = {f"p{n}": numbers(2, length, 3, 1, seed=n) for n, length in enumerate(lengths)}
    rule = js.Fused(parts, "x").of(leaves)
    whole = np.concatenate([np.einsum(f"axbc->{''.join(order)}", x) for x in leaves.values()], position)
    expected = whole.reshape(-1) if merged else whole
    assert (
        np.array_equal(rule.state_dict(leaves)["k"], expected)
        and expected.size == 6 * sum(lengths) * sizes["c"]
    )
    assert all(np.array_equal(x, leaves[path]) for path, x in rule.leaves({"k": expected}).items())


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.q, self.k, self.v = (nnx.Linear(6, n, use_bias=False, rngs=rngs) for n in (8, 4, 4))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.attn = nnx.RMSNorm(6, rngs=rngs), Attention(rngs)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.h = nnx.List([Block(rngs) for _ in range(2)])


def of_attention(module):
    return [js.Fused([js.Rule("qkv.weight", f"{p}.kernel", "i o -> o i") for p in "qkv"], "o")]


def test_a_class_may_have_it_and_its_keys_come_in_torchs_order():
    net = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    binding = js.bind(net, layers={Attention: of_attention})
    assert binding.keys == (
        "h.0.norm.weight",
        "h.0.attn.qkv.weight",
        "h.1.norm.weight",
        "h.1.attn.qkv.weight",
    )
    assert binding.shapes["h.1.attn.qkv.weight"] == (16, 6)
    assert js.Binding.from_json(binding.to_json()) == binding
    assert binding.rows[1][2] == "i o -> o i, o 0:8 of 16" and binding.rows[3][2].endswith("o 12:16 of 16")
    renamed = binding.renamed({"h.{i}.attn": "layers.{i}.self_attn", "h.{i}.norm": "layers.{i}.norm"})
    file = {key: np.zeros(shape, "float32") for key, shape in renamed.shapes.items()}
    assert "layers.1.self_attn.qkv.weight" in file
    assert js.bind(net, layers={Attention: of_attention}, like=file).keys == renamed.keys


def test_stacked_layers_have_it_too():
    rule = of_attention(None)[0].stacked("h.{l}.", "h.", "l", range(3), 0)
    leaves = {f"h.{p}.kernel": numbers(3, 6, n, seed=n) for p, n in zip("qkv", (8, 4, 4), strict=True)}
    arrays = rule.state_dict(leaves)
    assert list(arrays) == [f"h.{n}.qkv.weight" for n in range(3)]
    expected = np.concatenate([x[2].T for x in leaves.values()])
    np.testing.assert_array_equal(arrays["h.2.qkv.weight"], expected)


def test_json_keeps_all_of_it():
    for make in CASES.values():
        rule, leaves = make()
        assert rule_from_json(rule_to_json(rule.of(leaves))) == rule.of(leaves)


def test_moments_and_gradients_go_the_same_way():
    """torch's AdamW on the fused parameter takes the step that ours takes on the parts."""
    leaves = {f"{p}.kernel": numbers(6, n, 3, seed=n) for p, n in zip("qkv", (4, 2, 1), strict=True)}
    grads = {path: numbers(*x.shape, seed=9 + n) for n, (path, x) in enumerate(leaves.items())}
    binding = js.Binding((gqa(),))
    p = torch.nn.Parameter(torch.from_numpy(binding.state_dict(leaves)["qkv.weight"].copy()))
    theirs = torch.optim.AdamW([p], lr=0.1)
    tx = js.optim.adamw(lr=0.1)
    opt, update = tx.init(leaves), jax.jit(tx.update)
    for _ in range(2):
        p.grad = torch.from_numpy(binding.state_dict(grads)["qkv.weight"].copy())
        theirs.step()
        updates, opt = update(grads, opt, leaves)
        leaves = {path: x + np.asarray(updates[path]) for path, x in leaves.items()}
    osd, expected = js.optim.state_dict(opt, binding), theirs.state_dict()["state"][0]
    for name in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(osd["state"][0][name], expected[name].numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        binding.of(leaves).state_dict(leaves)["qkv.weight"], p.detach().numpy(), rtol=1e-5
    )
    again = js.optim.load_state_dict(tx.init(leaves), theirs.state_dict(), binding)
    back = js.optim.state_dict(again, binding)["state"][0]
    assert all(back[name].tobytes() == expected[name].numpy().tobytes() for name in ("exp_avg", "exp_avg_sq"))


def rules(*patterns, **axes):
    return [js.Rule("w", f"p{n}", pattern, **axes) for n, pattern in enumerate(patterns)]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: js.Fused([], "o"), "a Fused is made of Rules"),
        (lambda: js.Fused([js.Tied("a", "b")], "o"), "a Fused is made of Rules"),
        (
            lambda: js.Fused([js.Rule("a", "x", "o -> o"), js.Rule("b", "y", "o -> o")], "o"),
            "one key and different",
        ),
        (
            lambda: js.Fused([js.Rule("a", "x", "o -> o"), js.Rule("a", "x", "o -> o")], "o"),
            "one key and different",
        ),
        (lambda: js.Fused(rules("i o -> o i", "i p -> p i"), "o"), 'has no axis "o" in an array of torch\'s'),
        (lambda: js.Fused([js.Rule(k, "x", "o -> o") for k in "ab"], "o"), "say how long, o=..."),
        (
            lambda: js.Fused([js.Rule(k, "x", "o -> o", o=2) for k in "ab"], "o").of({"x": np.zeros(5)}),
            "the parts of x have 2 + 2 = 4 of axis o",
        ),
        (
            lambda: js.Fused(rules("i o -> o i", "i o -> o i"), "o").of(
                {"p0": np.zeros((3, 2)), "p1": np.zeros((4, 2))}
            ),
            "writes (2, 4), which cannot be joined along o with the (2, 3)",
        ),
        (
            lambda: js.Fused(
                rules("i (g o) -> (g o) i", g=2)[:1] + [js.Rule("w", "p1", "i o -> o i")], "o"
            ).of({"p0": np.zeros((3, 4)), "p1": np.zeros((3, 4))}),
            "cannot be joined",
        ),
        (
            lambda: js.Fused([*rules("o -> o"), js.Rule("w", "p1", "o -> o", buffer=True)], "o"),
            "not all buffers",
        ),
    ],
)
def test_what_is_no_whole_is_refused(make, words):
    with pytest.raises(BindingError) as caught:
        make()
    assert words in str(caught.value)


def test_a_file_of_another_length_is_told_of_the_parts():
    leaves = {f"{p}.kernel": numbers(8, n, 3) for p, n in [("q", 4), ("k", 2), ("v", 2)]}
    binding = js.Binding((gqa(),)).of(leaves)
    with pytest.raises(js.StateDictError) as caught:
        binding.leaves({"qkv.weight": numbers(27, 8)})
    assert "size mismatch for qkv.weight" in str(caught.value)
    assert 'The parts of "qkv.weight" are q.kernel 4 + k.kernel 2 + v.kernel 2 = 8 of axis n' in str(
        caught.value
    )


def test_a_leaf_that_a_file_has_in_parts_is_proposed_as_such():
    """The model joins what the file has apart; pasted, the rule reads it."""

    class Joined(nnx.Module):
        def __init__(self, rngs):
            self.h = nnx.List([nnx.Dict(attn=nnx.Dict(qkv=nnx.Linear(6, 16, rngs=rngs))) for _ in range(2)])

    template = nnx.eval_shape(lambda: Joined(nnx.Rngs(0)))
    shapes = {"q": 8, "k": 4, "v": 4}
    file = {f"h.{i}.attn.{p}.weight": numbers(n, 6, seed=n + i) for i in range(2) for p, n in shapes.items()}
    file |= {f"h.{i}.attn.{p}.bias": numbers(n, seed=n + i) for i in range(2) for p, n in shapes.items()}
    with pytest.raises(js.StateDictError, match="one behind the other and not in turns") as caught:
        js.load_state_dict(template, file)
    said = [line.split("say rules=")[1] for line in str(caught.value).splitlines() if "say rules=" in line]
    rules = [rule for line in said for rule in eval(line, vars(js))]
    model = js.load_state_dict(template, file, js.bind(template, rules=rules))
    whole = np.concatenate([file[f"h.1.attn.{p}.weight"] for p in "qkv"])
    np.testing.assert_array_equal(model.h[1]["attn"]["qkv"].kernel[...], whole.T)
    assert len(rules) == 2 and "(and 1 more like it)" in str(caught.value)


def test_what_does_not_fit_together_is_no_proposal():
    leaves = {f"{p}.kernel": numbers(6, 4) for p in "qkv"}
    binding = js.Binding([js.Rule(f"attn.{p}.weight", f"{p}.kernel", "i o -> o i") for p in "qkv"]).of(leaves)
    for key, shape in [
        ("attn.qkv.weight", (11, 6)),
        ("mlp.qkv.weight", (12, 6)),
        ("attn.qkv.weight", (12, 5)),
    ]:
        assert "Fused" not in str(binding.compare({key: np.zeros(shape)}))
    assert "Fused" in str(binding.compare({"attn.qkv.weight": np.zeros((12, 6))}))
