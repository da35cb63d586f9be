"""A model of two thousand leaves is read and written in the time of a walk, not of a search."""

import time

import jax
import jax.numpy as jnp
from _nnx_oracle import built, rngs
from flax import nnx

import jaxstate as js


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
