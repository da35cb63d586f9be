"""Names of a model and of a file are paired where something says so, and refused where nothing does."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import jaxstate as js
from jaxstate.alignment import align, aligned


def binding(shapes):
    """A model with these keys, laid out as torch has them."""
    axes = {key: " ".join("abcd"[: len(shape)]) for key, shape in shapes.items()}
    return js.Binding(tuple(js.Rule(k, k, f"{axes[k]} -> {axes[k]}", shape=s) for k, s in shapes.items()))


def shapes(*names, **named):
    """Linear layers of one shape; or of the shape said."""
    return {f"{n}.weight": named.get(n.split(".")[-1], (4, 4)) for n in names}


def file(entries, ordered=True):
    result = OrderedDict((key, np.zeros(shape, "float32")) for key, shape in entries.items())
    if not ordered:
        result.__metadata__ = {}
    return result


def pairs(ours, theirs, ordered=True):
    alignment = align(binding(ours), file(theirs, ordered))
    return {p.key: p.file_key for p in alignment.pairs} if alignment else None


def test_names_that_tell_nothing_are_refused_with_what_to_paste():
    alignment = align(binding(shapes("a", "b")), file(shapes("x", "y")))
    assert not alignment and not alignment.pairs
    assert alignment.missing_keys == ("a.weight", "b.weight")
    assert alignment.problems == [
        '"a", "b" may be "x", "y": nothing in their names tells which is which. '
        'Paste what is right, here one way of them: rename={"a": "x", "b": "y"}'
    ]
    assert "missing in the file" in str(alignment) and "<p>" in alignment._repr_html_()


def test_what_is_pasted_is_believed():
    model = nnx.Dict({name: nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(0)) for name in "ab"})
    sd = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "xy"}).state_dict()
    with pytest.raises(
        js.StateDictError, match=r'(?s)Missing key.*"a.weight".*rename=\{"a": "x", "b": "y"\}'
    ):
        js.bind(model, like=sd)
    model = js.load_state_dict(model, sd, js.bind(model, rename={"a": "y", "b": "x"}, like=sd))
    np.testing.assert_array_equal(model["a"].kernel[...].T, sd["y.weight"])
    # one name said leaves one way for the other
    assert js.bind(nnx.clone(model), rename={"a": "x"}, like=sd).keys == ("x.weight", "y.weight")


NAMES = [
    {"q": "query", "k": "key", "v": "value", "out": "output.dense"},
    {"conv1": "0", "conv2": "3"},
    {"encoder": "enc", "decoder": "dec"},
    {"attn_norm": "attention.LayerNorm", "mlp_norm": "ffn.LayerNorm"},
    {"ln_pre": "norm_before", "ln_post": "norm_after"},
    {f"layers_{n}": f"h.{n}" for n in range(12)},
    {f"layers_{n}": f"h.{n + 1}" for n in range(12)},
    {f"{n}": f"{2 * n}" for n in range(3)},
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: next(iter(names)))
@pytest.mark.parametrize("ordered", [True, False])
def test_equal_shapes_are_told_apart_by_names(names, ordered):
    found = pairs(shapes(*names), shapes(*(names.values() if ordered else sorted(names.values()))), ordered)
    assert found == {f"{a}.weight": f"{b}.weight" for a, b in names.items()}


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (["encoder", "decoder"], ["net1", "net2"]),  # one side counts, the other does not
        (["ln_pre", "q"], ["ln_post", "query"]),  # what excludes each other
        (["norm", "q"], ["query", "final_thing"]),  # one is left, and stands elsewhere
        (["h.0", "h.1", "q"], ["h.6", "h.7", "query"]),  # a part of a longer list
        (["a.q", "a.k", "b.q", "b.k"], ["x.q", "x.k", "y.q", "y.k"]),  # modules that nothing tells apart
        ([f"h.{n}" for n in range(4)], ["x.0", "x.1", "y.0", "y.1"]),  # a list, and two lists
        (["key", "query"], ["query", "value"]),  # query is there, key is not
        (["a", "b", "c"], ["x", "y"]),
        (["text.q", "text.k"], ["vision.q", "vision.k"]),  # two towers that are built alike
        (["conv", "adapter1"], ["conv", "adapter2"]),  # a number that is a part of a name
        (["adapter1", "adapter2"], ["adapter2", "adapter3"]),
        (["input_norm", "post_attention_norm"], ["attention_norm", "ffn_norm"]),
        (["cls_token", "q"], ["q", "mask_token"]),  # one word of two, and in another place
        (["cls_token", "dist_token", "q"], ["cls_token", "q", "mask_token"]),
        (["a"], ["x", "y"]),
    ],
)
def test_what_nothing_tells_is_refused(ours, theirs):
    assert pairs(shapes(*ours), shapes(*theirs)) is None


def test_a_shape_alone_tells_nothing_without_an_order():
    ours, theirs = shapes("alfa", "bravo", alfa=(4, 5)), shapes("x", "y", x=(4, 5))
    assert pairs(ours, theirs) == {"alfa.weight": "x.weight", "bravo.weight": "y.weight"}
    assert pairs(ours, theirs, ordered=False) is None
    assert pairs(ours, dict(reversed(theirs.items()))) is None


def test_where_neighbours_have_one_name_another_name_is_another_thing():
    ours, theirs = shapes("body", "score", score=(2, 4)), shapes("body", "value", value=(2, 4))
    alignment = align(binding(ours), file(theirs))
    assert [p.key for p in alignment.pairs] == ["body.weight"]
    assert "their neighbours go by one name where these do not" in alignment.problems[0]


def test_a_name_that_both_have_is_not_given_to_another():
    ours, theirs = shapes("fc1", "fc2", fc1=(8, 4), fc2=(4, 8)), shapes("fc1", "fc2", fc1=(4, 8), fc2=(8, 4))
    assert pairs(ours, theirs) is None
    with pytest.raises(js.StateDictError, match="size mismatch for fc1.weight"):
        binding(ours).like(file(theirs))


def test_modules_that_their_layers_tell_take_their_equal_parts_along():
    ours = {"a.p.weight": (4, 4), "a.q.weight": (9, 4), "b.p.weight": (4, 4), "b.q.weight": (4, 7)}
    theirs = {key.replace("a.", "x.m.").replace("b.", "y."): shape for key, shape in ours.items()}
    found = pairs(ours, theirs)
    assert found == dict(zip(ours, theirs, strict=True))


def test_evidence_is_said_for_each_pair():
    ours = {**shapes("emb", emb=(9, 4)), **shapes(*(f"l_{n}.{x}" for n in range(2) for x in "qk"))}
    theirs = {
        **shapes("wte", wte=(9, 4)),
        **shapes(*(f"h.{n}.{x}" for n in range(2) for x in ("key", "query"))),
    }
    alignment = align(binding(ours), file(theirs))
    assert [p.evidence for p in alignment.pairs][:2] == [("order",), ("numbers", "words: query")]
    assert alignment.rename == {"emb": "wte", "l_{i}.q": "h.{i}.query", "l_{i}.k": "h.{i}.key"}
    assert "l_1.k.weight  h.1.key.weight" in str(alignment)
    assert "<td><code>l_1.k.weight</code></td>" in alignment._repr_html_()


def test_layers_of_one_list_share_one_sentence():
    ours, theirs = ([f"h.{n}.{x}" for n in range(3) for x in names] for names in ("ab", "xy"))
    alignment = align(binding(shapes(*ours)), file(shapes(*theirs)))
    (problem,) = alignment.problems
    assert '"h.0.a", "h.0.b" may be "h.0.x", "h.0.y" (and 2 more like it)' in problem
    assert 'rename={"h.{i}.a": "h.{i}.x", "h.{i}.b": "h.{i}.y"}' in problem


def test_counters_and_ties_go_along_and_may_be_missing():
    rules = [js.Rule(f"bn.{a}", b, "c -> c", shape=(4,)) for a, b in (("weight", "s"), ("running_mean", "m"))]
    rules += [js.TorchOnly("bn.num_batches_tracked", np.int64(0), counter=True)]
    rules += [js.Rule("tok.weight", "tok", "v d -> v d", shape=(9, 4)), js.Tied("head.weight", "tok.weight")]
    theirs = {
        "norm.weight": (4,),
        "norm.running_mean": (4,),
        "norm.num_batches_tracked": (),
        "wte.weight": (9, 4),
    }
    for lacking in ((), ("norm.num_batches_tracked",)):
        found = {key: shape for key, shape in theirs.items() if key not in lacking}
        expected = [key for key in ("norm.weight", "norm.running_mean", *theirs) if key in found]
        assert list(pairs_of(rules, found).values()) == list(dict.fromkeys(expected))
    tied = {**theirs, "lm_head.weight": (9, 4)}
    assert pairs_of(rules, tied)["head.weight"] == "lm_head.weight"


def pairs_of(rules, theirs):
    alignment = align(js.Binding(tuple(rules)), file(theirs))
    assert alignment, alignment
    return {p.key: p.file_key for p in alignment.pairs}


def test_old_names_of_one_kind_of_entry_are_one():
    theirs = {"LayerNorm.gamma": (4,), "LayerNorm.beta": (4,), "lin.weight_g": (3, 1), "lin.weight_v": (3, 4)}
    ours = {"norm.weight": (4,), "norm.bias": (4,)}
    ours |= {f"fc.parametrizations.weight.original{n}": s for n, s in enumerate([(3, 1), (3, 4)])}
    assert pairs(ours, theirs) == dict(zip(ours, theirs, strict=True))


def test_a_file_of_the_same_names_needs_no_alignment():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    sd = nn.Linear(3, 4).state_dict()
    assert js.bind(model, like=sd).keys == tuple(sd)
    assert [p.evidence for p in js.align(model, sd).pairs] == [("name",)] * 2
    with pytest.raises(js.StateDictError, match='Unexpected key.*"scale"'):
        js.bind(model, like={**sd, "scale": torch.ones(1)})


def test_entries_that_are_no_arrays_are_unexpected():
    alignment = align(binding(shapes("a")), {**file(shapes("a")), "config": "adam"})
    assert alignment.unexpected_keys == ("config",) and not alignment


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.transformer."])
def test_a_wrapper_is_looked_through(prefix):
    ours = shapes("a", "b", "d.a", "d.b")
    assert pairs(ours, {prefix + key: shape for key, shape in ours.items()}, ordered=False)
    assert pairs({prefix + key: shape for key, shape in ours.items()}, ours, ordered=False)
    head = {"lm_head.weight": (4, 4)}
    found = pairs({**ours, **head}, {**{prefix + key: shape for key, shape in ours.items()}, **head}, False)
    assert found == {**{key: prefix + key for key in ours}, "lm_head.weight": "lm_head.weight"}


def test_an_error_says_what_could_not_be_paired_and_no_more():
    ours = {**shapes("q", "k", "head", "a", "b", head=(5, 4))}
    theirs = {**shapes("query", "key", "head", "x", "y", head=(6, 4))}
    with pytest.raises(js.StateDictError) as error:
        aligned(binding(ours), file(theirs))
    assert error.value.missing_keys == ["a.weight", "b.weight"]
    assert error.value.unexpected_keys == ["x.weight", "y.weight"]
    text = str(error.value)
    assert "size mismatch for head.weight" in text and "from 5 on, say so: rules=[Padded(" in text
    assert 'rename={"a": "x", "b": "y"}' in text and "2 others are paired" in text
