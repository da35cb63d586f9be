"""A model of two thousand leaves is read and written in the time of a walk, not of a search.

What is counted here is work: time depends on what else a machine does.
"""

import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from _nnx_oracle import built, rngs
from flax import nnx

import jaxstate as js
from jaxstate import layout
from jaxstate.adapters import _nnx
from jaxstate.rules import rule


class Block(nnx.Module):
    def __init__(self):
        self.fc1 = nnx.Linear(4, 8, rngs=rngs())
        self.norm = nnx.LayerNorm(8, rngs=rngs())
        self.fc2 = nnx.Linear(8, 4, rngs=rngs())
        self.drop = nnx.Dropout(0.1, rngs=rngs())


def _model(blocks):
    model = built(lambda: nnx.List([Block() for _ in range(1)]))
    graphdef, state = nnx.split(model[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return nnx.List([nnx.merge(graphdef, zeros, copy=True) for _ in range(blocks)])


def _seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def test_two_thousand_leaves_take_no_two_seconds():
    model = _model(334)
    binding, sd = js.bind(model), js.state_dict(model)
    assert len(sd) == 2004 and list(sd)[-1] == "333.fc2.bias"
    seconds = {
        "bind": min(_seconds(lambda: js.bind(model)) for _ in range(2)),
        "state_dict": min(_seconds(lambda: js.state_dict(model, binding)) for _ in range(2)),
        "load_state_dict": min(_seconds(lambda: js.load_state_dict(model, sd, binding)) for _ in range(2)),
    }
    print({name: round(value, 2) for name, value in seconds.items()})
    assert seconds["bind"] + seconds["state_dict"] < 2


def test_reading_grows_with_the_model_and_not_with_its_square():
    small, large = _model(40), _model(320)
    js.bind(small)
    ratio = _seconds(lambda: js.bind(large)) / min(_seconds(lambda: js.bind(small)) for _ in range(3))
    assert ratio < 8 * 3


def _values(binding):
    rng = np.random.default_rng(3)
    return {key: rng.standard_normal(shape, np.float32) for key, shape in binding.shapes.items()}


def _calls(work):
    """How many functions are called."""
    count = 0

    def count_it(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_it)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _costs(blocks):
    model = _model(blocks)
    binding = js.bind(model)
    values = _values(binding)
    new = js.load_state_dict(model, values, binding)
    assert all(np.array_equal(x, values[key]) for key, x in js.state_dict(new, binding).items())
    last = new[blocks - 1].fc1.kernel.get_raw_value()
    assert np.array_equal(last, values[f"{blocks - 1}.fc1.weight"].T)
    return np.array(
        [
            _calls(lambda: js.bind(model)),
            _calls(lambda: js.load_state_dict(model, values, binding)),
            _calls(lambda: js.state_dict(model, binding)),
        ]
    )


def test_every_further_layer_costs_as_many_calls_as_the_one_before():
    few, more, most = _costs(10), _costs(20), _costs(40)
    assert ((most - more) < 2.1 * (more - few)).all(), (few, more, most)
    print(((most - more) / 120).round())  # of one leaf


def test_a_graph_is_read_once_and_a_pattern_parsed_once(monkeypatch):
    model, read, parsed = _model(60), Counter(), Counter()

    def counted(module, name, found):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: found.update([name]) or real(*a, **k))

    for name in ("split", "state", "iter_graph"):
        counted(nnx, name, read)
    counted(_nnx, "_as_tree", read)
    counted(layout, "_parse_side", parsed)
    layout._parsed.cache_clear()
    rule._whole.cache_clear()
    binding = js.bind(model)
    assert read == {"_as_tree": 1}
    js.state_dict(js.load_state_dict(model, _values(binding), binding), binding)
    assert read == {"_as_tree": 3}
    assert len(binding.rules) == 360 and parsed.total() < 20


class _Stateless(nnx.Module):
    def __call__(self, x):
        return x


class _Twice(nnx.Module):
    """A module that has nothing stands in two places."""

    def __init__(self):
        self.act = _Stateless()
        self.fc = nnx.Linear(2, 3, rngs=rngs())
        self.head = self.act


def test_what_stands_twice_still_does_and_a_tree_is_read_as_the_graph_that_it_is():
    model = _Twice()
    new = js.load_state_dict(model, {"fc.weight": np.ones((3, 2)), "fc.bias": np.full(3, 2.0)}, cast=True)
    assert new.act is new.head and new.fc.bias.get_raw_value().tolist() == [2, 2, 2]
    for model in (_Twice(), _model(2), nnx.Dict(a=nnx.Dict({"1": nnx.BatchNorm(2, rngs=rngs())}))):
        graph = nnx.state(model, nnx.Not(nnx.RngState), graph=True)
        expected = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(graph)}
        assert _nnx.leaves(model).keys() == expected


class _NoTree(nnx.Module, pytree=False):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))


def test_a_module_that_is_no_pytree_is_read_as_a_graph():
    model = nnx.List([_NoTree(), nnx.Linear(2, 3, rngs=rngs())])
    sd = {"0.w": np.float32([5, 6]), "1.weight": np.float32(np.arange(6).reshape(3, 2)), "1.bias": np.ones(3)}
    new = js.load_state_dict(model, sd, cast=True)
    assert new[0].w.get_raw_value().tolist() == [5, 6]
    assert np.array_equal(new[1].kernel.get_raw_value(), sd["1.weight"].T)
