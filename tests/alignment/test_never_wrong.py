"""Whatever the names and the order: each pair of an alignment is the true one, or there is none."""

from collections import OrderedDict

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.alignment import align

# One thing, as a model calls it and as files call it.
THINGS = {
    "q": ("query", "q_proj", "wq", "self.query"),
    "k": ("key", "k_proj", "wk", "self.key"),
    "v": ("value", "v_proj", "wv", "self.value"),
    "out": ("output.dense", "o_proj", "wo"),
    "enc": ("encoder",),
    "dec": ("decoder",),
    "pos": ("position_embeddings", "wpe"),
    "tok": ("word_embeddings", "wte"),
    "conv1": ("layer.0.conv", "conv_1", "0"),
    "conv2": ("layer.1.conv", "conv_2", "3"),
    "norm1": ("layer.0.norm", "ln_1", "1"),
    "norm2": ("layer.1.norm", "ln_2", "4"),
    # words that nobody knows
    "alfa": ("kilo", "lima.mike"),
    "bravo": ("november", "oscar"),
    "charlie": ("papa.quebec", "romeo"),
    "delta": ("sierra", "tango"),
}
SHAPES = st.sampled_from([(4, 4), (4, 4), (4, 5), (4,)])
LAYER = st.builds(lambda w, bias: {"weight": w, **({"bias": (4,)} if bias else {})}, SHAPES, st.booleans())


@st.composite
def layers(draw, depth):
    """`(model's name, file's name, entries)` of the layers of a module, in the order of registration."""
    found = []
    for thing in draw(st.lists(st.sampled_from(list(THINGS)), min_size=1, max_size=5, unique=True)):
        one = (thing, draw(st.sampled_from(THINGS[thing])))
        for ours, theirs in draw(st.sampled_from([[one], _listed(*one)])):
            inner = draw(layers(depth - 1)) if depth and draw(st.booleans()) else None
            same = [("", "", draw(LAYER))] if inner is None else inner
            found += [(_join(ours, a), _join(theirs, b), entries) for a, b, entries in same]
    return found


def _listed(ours, theirs):
    return [(f"{ours}.stack_{n}", f"{theirs}.h.{n + 1}") for n in range(3)]


def _join(*parts):
    return ".".join(part for part in parts if part)


def _binding(shapes):
    axes = {key: " ".join("ab"[: len(shape)]) for key, shape in shapes.items()}
    return js.Binding(tuple(js.Rule(k, k, f"{axes[k]} -> {axes[k]}", shape=s) for k, s in shapes.items()))


def _entries(found):
    keys = [(_join(ours, e), _join(theirs, e), s) for ours, theirs, d in found for e, s in d.items()]
    unique = len({theirs for _, theirs, _ in keys}) == len(keys)
    return keys if unique else []


def _check(keys, file):
    alignment = align(_binding({ours: shape for ours, _, shape in keys}), file)
    truth = {ours: theirs for ours, theirs, _ in keys}
    wrong = {p.key: p.file_key for p in alignment.pairs if truth[p.key] != p.file_key}
    assert not wrong, f"{alignment}"
    if alignment:
        renamed = _binding({ours: shape for ours, _, shape in keys}).renamed(alignment.rename)
        assert list(renamed.keys) == list(truth.values())


@settings(max_examples=60, deadline=None)
@given(layers(2))
def test_in_the_order_of_registration(found):
    keys = _entries(found)
    _check(keys, OrderedDict((theirs, np.empty(s)) for _, theirs, s in keys))


@settings(max_examples=60, deadline=None)
@given(layers(2), st.randoms(), st.booleans())
def test_in_another_order(found, random, known):
    keys = _entries(found)
    items = [(theirs, np.empty(shape)) for _, theirs, shape in keys]
    random.shuffle(items)
    file = OrderedDict(items)
    if known:
        file.__metadata__ = {}  # as of a safetensors file
    _check(keys, file)


@settings(max_examples=60, deadline=None)
@given(layers(1), st.randoms(), st.booleans())
def test_a_layer_that_is_another_one_elsewhere_is_not_taken_for_it(found, random, known):
    """The file lacks one layer of the model, and has one of the same shapes in another place."""
    lost, place = random.randrange(len(found)), random.randrange(len(found))
    rest = [(theirs, entries) for n, (_, theirs, entries) in enumerate(found) if n != lost]
    assume(place != lost and _entries(found))
    rest.insert(place, ("zulu", found[lost][2]))
    file = OrderedDict((_join(name, e), np.empty(shape)) for name, d in rest for e, shape in d.items())
    if known:
        file.__metadata__ = {}
    assert not align(_binding({ours: shape for ours, _, shape in _entries(found)}), file)
