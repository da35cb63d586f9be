"""A Binding is a bijection of keys and of paths, in torch's order; what does not fit is named, all of it."""

import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxstate.binding import Binding
from jaxstate.errors import BindingError, StateDictError
from jaxstate.rules.declared import JaxOnly, Sum, Tied, TorchOnly
from jaxstate.rules.rule import Entry, Rule
from jaxstate.rules.spectral import Spectral

RULES = (
    Rule("wte.weight", "wte.embedding", "v d -> v d"),
    Rule("h.{l}.fc.weight", "h.fc.kernel", "l i o -> o i", l=range(3)),
    Rule("h.{l}.fc.bias", "h.fc.bias", "l o -> o", l=range(3)),
    Rule("bn.running_mean", "bn.mean", "c -> c", buffer=True),
    TorchOnly("bn.num_batches_tracked", np.int64(0), counter=True),
    TorchOnly("rope.inv_freq", np.float32([1.0, 0.5])),
    Sum((Rule("rnn.bias_ih", "rnn.bias", "k -> k"), Rule("rnn.bias_hh", "rnn.bias", "k -> k"))),
    JaxOnly("rnn.extra", 0.0),
    Tied("lm_head.weight", "wte.weight"),
)


def random_leaves():
    shapes = {
        "wte.embedding": (7, 4),
        "h.fc.kernel": (3, 4, 5),
        "h.fc.bias": (3, 5),
        "bn.mean": (5,),
        "rnn.bias": (6,),
        "rnn.extra": (2,),
    }
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype("float32") for path, shape in shapes.items()}
    return {**leaves, "rnn.extra": np.zeros(2, "float32")}


@pytest.fixture
def leaves():
    return random_leaves()


@pytest.fixture
def binding(leaves):
    return Binding(RULES).of(leaves)


def test_keys_come_in_torchs_order_of_registration(binding):
    assert binding.keys == (
        "wte.weight",
        *(f"h.{n}.fc.{name}" for n in range(3) for name in ("weight", "bias")),
        *("bn.running_mean", "bn.num_batches_tracked", "rope.inv_freq"),
        *("rnn.bias_ih", "rnn.bias_hh", "lm_head.weight"),
    )


def test_parameters_are_what_an_optimizer_numbers(binding):
    stack = [f"h.{n}.fc.{name}" for n in range(3) for name in ("weight", "bias")]
    assert binding.parameters == ("wte.weight", *stack, "rnn.bias_ih", "rnn.bias_hh")


def test_a_tied_parameter_goes_by_the_key_that_is_registered_first():
    rules = (Tied("head.weight", "wte.weight"), Rule("wte.weight", "wte", "v d -> v d"))
    assert Binding(rules).parameters == ("head.weight",)


def test_there_and_back(binding, leaves):
    arrays = binding.state_dict(leaves)
    assert list(arrays) == list(binding.keys)
    assert {key: array.shape for key, array in arrays.items()} == binding.shapes
    assert arrays["lm_head.weight"] is arrays["wte.weight"]
    back = binding.leaves(arrays)
    assert {path: leaf.tobytes() for path, leaf in back.items()} == {
        p: v.tobytes() for p, v in leaves.items()
    }


def test_moves_traced_arrays_too(leaves):
    binding = Binding(RULES[:4]).of({path: leaves[path] for rule in RULES[:4] for path in rule.paths})
    there = jax.jit(binding.state_dict)({path: jnp.asarray(leaves[path]) for path in binding.paths})
    for key, array in binding.state_dict({path: leaves[path] for path in binding.paths}).items():
        np.testing.assert_array_equal(there[key], array)


def test_json_and_back_is_the_same_binding(binding, leaves):
    filled = binding.like(OrderedDict(binding.state_dict(leaves)))
    for one in (binding, filled, Binding(RULES)):
        text = one.to_json()
        assert Binding.from_json(text) == one
        assert json.loads(text)["rules"][0]["kind"] == "Rule"
    assert filled != binding


def test_json_keeps_arrays_of_every_dtype():
    value = np.arange(3).astype(ml_dtypes.bfloat16)
    binding = Binding((TorchOnly("x", value),))
    again = Binding.from_json(binding.to_json()).rules[0].value
    assert again.dtype == value.dtype and again.tobytes() == value.tobytes()


def test_spectral_rules_go_to_json():
    weight, u = Rule("w", "kernel", "i o -> o i"), Rule("u", "u", "1 o -> o", buffer=True)
    binding = Binding((Spectral(weight, u, "v", "sigma"),))
    assert Binding.from_json(binding.to_json()) == binding


NO_BINDINGS = ["", "[]", "{}", "null", '{"rules": 3, "order": [], "metadata": null}']


@pytest.mark.parametrize("text", NO_BINDINGS)
def test_other_texts_are_no_binding(text):
    with pytest.raises(BindingError, match="this is not the JSON of a Binding: "):
        Binding.from_json(text)


NO_RULES = [
    '{"kind": "Rul", "key": "w"}',
    '{"kind": ["Rule"], "key": "w"}',
    '{"kind": "Rule", "key": "w", "path": "w", "pattern": 3}',
    '{"kind": "Tied", "key": "w", "to": "v", "axes": []}',
    '{"kind": "Fused", "parts": [], "axis": 0}',
    '{"kind": "TorchOnly", "key": "w", "value": {"dtype": "float33"}}',
    "{}",
    '"w"',
    "3",
]


@pytest.mark.parametrize("text", NO_RULES)
def test_other_values_are_no_rule(text):
    with pytest.raises(BindingError, match="this is not the JSON of a rule: .* in "):
        Binding.from_json(f'{{"rules": [{text}], "order": [], "metadata": null}}')


def test_a_kind_of_rule_without_json_is_not_written_as_nothing():
    with pytest.raises(BindingError, match="is no rule that JSON has a form for"):
        Binding((Entry(),)).to_json()


@pytest.mark.parametrize("rules", [Rule("w", "w", "a -> a"), "w", None, 3], ids=str)
def test_rules_come_in_a_list(rules):
    with pytest.raises(BindingError, match=r"Binding: rules come in a list, such as \[Rule\(...\)\], and "):
        Binding(rules)


def test_what_is_no_rule_is_named():
    with pytest.raises(BindingError, match=r"Binding: 'fc.weight' is no rule; write Rule\("):
        Binding((Rule("w", "w", "a -> a"), "fc.weight"))


def test_prints_as_a_table(binding):
    lines = str(binding).splitlines()
    assert lines[0].split() == ["torch", "key", "path", "layout", "shape", "dtype"]
    assert "h.{l}.fc.weight" in lines[3] and "l i o -> o i" in lines[3] and "(3, 4, 5)" in lines[3]
    assert any("sum (lossy)" in line for line in lines) and any(
        "tied to wte.weight" in line for line in lines
    )


def test_like_keeps_what_no_leaf_can_hold(binding, leaves):
    file = OrderedDict(reversed(binding.state_dict(leaves).items()))
    file["bn.num_batches_tracked"] = np.int64(17)
    file["rnn.bias_ih"], file["rnn.bias_hh"] = np.float32([0.5] * 6), np.float32([0.25] * 6)
    file._metadata = {"": {"version": 1}, "pool": {"version": 1}}
    filled = binding.like(file)
    written = filled.state_dict(filled.leaves(file))
    assert list(written) == list(file)
    for key, array in file.items():
        assert np.asarray(written[key]).tobytes() == np.asarray(array).tobytes(), key
    assert filled.versions == file._metadata
    moved = {**filled.leaves(file), "rnn.bias": np.float32([9.0] * 6)}
    assert filled.state_dict(moved)["rnn.bias_ih"].tolist() == [9.0] * 6
    assert filled.state_dict(moved)["rnn.bias_hh"].tolist() == [0.0] * 6


def test_a_file_that_keeps_no_order_gives_none(binding, leaves):
    file = OrderedDict(reversed(binding.state_dict(leaves).items()))
    file.__metadata__ = {}
    assert binding.like(file).keys == binding.keys


def test_versions_say_which_modules_count_batches(binding):
    assert binding.versions[""] == {"version": 1} and binding.versions["bn"] == {"version": 2}
    assert binding.versions["h.0.fc"] == {"version": 1}


def entries(binding, leaves, **changes):
    arrays = {**binding.state_dict(leaves), **changes}
    return {key: array for key, array in arrays.items() if array is not None}


def test_compare_lists_everything_at_once(binding, leaves):
    changes = {
        "h.1.fc.bias": None,
        "wte.weight": np.zeros((4, 7)),
        "rnn.bias_ih": np.zeros(7),
        "h.1.fc.bais": np.zeros(5),
    }
    comparison = binding.compare(entries(binding, leaves, **changes))
    assert not comparison
    assert comparison.missing_keys == ("h.1.fc.bias",)
    assert comparison.unexpected_keys == ("h.1.fc.bais",)
    assert [m.key for m in comparison.mismatched] == ["wte.weight", "rnn.bias_ih"]
    text = str(comparison)
    assert 'Missing key(s) in state_dict: "h.1.fc.bias". ' in text
    assert 'Unexpected key(s) in state_dict: "h.1.fc.bais". ' in text
    assert (
        "size mismatch for wte.weight: copying a param with shape torch.Size([4, 7]) from checkpoint, "
        "the shape in current model is torch.Size([7, 4])."
    ) in text
    assert 'Did you mean "h.1.fc.bais" for "h.1.fc.bias"?' in text


def test_a_match_says_so(binding, leaves):
    comparison = binding.compare(binding.state_dict(leaves))
    assert comparison and str(comparison) == "<All keys matched successfully>"


def test_tied_keys_must_agree_and_one_is_enough(binding, leaves):
    other = entries(binding, leaves, **{"lm_head.weight": np.ones((7, 4), "float32")})
    assert "are one array in the model, and the file has two different ones" in str(binding.compare(other))
    for key in ("wte.weight", "lm_head.weight"):
        lacking = entries(binding, leaves, **{key: None})
        np.testing.assert_array_equal(binding.leaves(lacking)["wte.embedding"], leaves["wte.embedding"])
    neither = entries(binding, leaves, **{"wte.weight": None, "lm_head.weight": None})
    assert binding.compare(neither).missing_keys == ("wte.weight", "lm_head.weight")


def test_constants_must_agree_and_counters_need_not(binding, leaves):
    constant = entries(binding, leaves, **{"rope.inv_freq": np.float32([1.0, 0.25])})
    assert '"rope.inv_freq" is a constant of the model and the file has another value' in str(
        binding.compare(constant)
    )
    assert binding.compare(entries(binding, leaves, **{"bn.num_batches_tracked": np.int64(5)}))
    assert binding.compare(entries(binding, leaves, **{"bn.num_batches_tracked": None}))


def test_terms_without_a_leaf_must_be_zero():
    parts = Rule("ih", "bias", "k -> k"), Rule("hh", "bias", "k -> k")
    binding = Binding((Sum(parts, zeros=((1, 2, 3),)),)).of({"bias": np.zeros(3)})
    assert binding.compare({"ih": np.ones(3), "hh": np.array([1.0, 1.0, 0.0])})
    assert '"hh"[2:3] is not zero' in str(binding.compare({"ih": np.ones(3), "hh": np.ones(3)}))


def test_a_leaf_that_torch_has_no_place_for_must_hold_its_value():
    rule = JaxOnly("rnn.extra", 0.0)
    assert rule.refused_leaves({"rnn.extra": np.zeros(2)}) == []
    assert "torch's module has no entry for it" in rule.refused_leaves({"rnn.extra": np.ones(2)})[0]


def test_what_is_no_array_is_named(binding, leaves):
    assert '"wte.weight" is no array but str' in str(
        binding.compare(entries(binding, leaves, **{"wte.weight": "x"}))
    )


def test_leaves_raises_what_compare_lists(binding):
    with pytest.raises(StateDictError) as caught:
        binding.leaves({})
    assert caught.value.missing_keys == list(binding.compare({}).missing_keys)


def test_only_takes_a_part_and_reports_the_rest(binding, leaves):
    part = binding.only("h.*")
    assert part.keys == tuple(key for key in binding.keys if key.startswith("h."))
    comparison = binding.compare(binding.state_dict(leaves), only="h.*")
    assert comparison and set(comparison.untouched_keys) == set(comparison.ignored_keys) == set(
        binding.keys
    ) - set(part.keys)


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("x.*", "matches none of"),
        ("h.1.*", "takes a part of Rule("),
        ("lm_head.*", "without the key that it is tied to"),
    ],
)
def test_a_part_that_cannot_be_taken_is_refused(binding, pattern, words):
    with pytest.raises(BindingError, match="pattern|takes") as caught:
        binding.only(pattern)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "rules, words",
    [
        (
            (Rule("a", "p", "i -> i"), Rule("a", "q", "i -> i")),
            'key "a" is claimed by Rule("a", "p", "i -> i") and by',
        ),
        ((Rule("a", "p", "i -> i"), Rule("b", "p", "i -> i")), 'path "p" is claimed by'),
        ((Rule("a.{l}", "p", "l i -> i", l=range(2)), Rule("a.1", "q", "i -> i")), 'key "a.1" is claimed by'),
        ((Tied("a", "b"),), '"a" is tied to "b", which no rule writes'),
    ],
)
def test_collisions_are_refused(rules, words):
    with pytest.raises(BindingError) as caught:
        Binding(rules)
    assert words in str(caught.value)


def test_an_order_is_a_permutation():
    with pytest.raises(BindingError, match="permutation"):
        Binding((Rule("a", "p", "i -> i"),), order=("b",))


def test_leaves_and_rules_must_pair_up():
    with pytest.raises(BindingError) as caught:
        Binding((Rule("a", "kernel", "i -> i"),)).of({"kernal": np.zeros(3)})
    text = str(caught.value)
    assert "a rule names kernel, and there is no such leaf" in text
    assert 'leaf kernal of shape (3,) has no rule: add Rule("...", "kernal", "...")' in text
    assert "did you mean kernal for kernel?" in text
