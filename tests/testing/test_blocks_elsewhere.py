"""A transformer's block in Equinox and in Haiku: masks, heads, activations and residuals of another kind."""

import equinox as eqx
import haiku as hk
import jax
import numpy as np
import pytest
from twins import CAUSAL, TOKENS, TorchBlock, exact_gelu, masked, randomized, residual

import jaxstate as js

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)


class Block(eqx.Module):
    embed: eqx.nn.Embedding
    norm1: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    parts: tuple = eqx.field(static=True)

    def __init__(self, mask, gelu, add, heads):
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.embed = eqx.nn.Embedding(11, 8, key=KEY)
        self.attn = eqx.nn.MultiheadAttention(heads, 8, key=KEY, **biases)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(8)
        self.up, self.down = eqx.nn.Linear(8, 8, key=KEY), eqx.nn.Linear(8, 8, key=KEY)
        self.parts = mask, gelu, add

    def __call__(self, tokens, mask):
        changed, gelu, add = self.parts
        x = jax.vmap(self.embed)(tokens) * 0.1
        y = jax.vmap(self.norm1)(x)
        x = add(x, self.attn(y, y, y, mask=changed(mask)))
        return x + jax.vmap(self.down)(gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x))))


def block(mask, gelu, add, heads):
    def run(tokens, allowed):
        x = hk.Embed(11, 8, name="embed")(tokens) * 0.1
        y = hk.LayerNorm(-1, True, True, name="norm1")(x)
        start = hk.initializers.VarianceScaling()
        attn = hk.MultiHeadAttention(heads, 8 // heads, w_init=start, name="attn")
        allowed = mask(allowed)
        x = add(x, attn(y, y, y, mask=None if allowed is None else allowed[None, None]))
        y = hk.Linear(8, name="up")(hk.LayerNorm(-1, True, True, name="norm2")(x))
        return x + hk.Linear(8, name="down")(gelu(y))

    return hk.transform(run)


RIGHT = dict(mask=masked, gelu=exact_gelu, add=residual, heads=2)


def loaded(library, theirs, **changes):
    options = {**RIGHT, **changes}
    if library == "equinox":
        return js.load_state_dict(Block(**options), theirs.state_dict())
    made = block(**options)
    template = jax.eval_shape(made.init, KEY, TOKENS, CAUSAL)
    return made, js.load_state_dict(template, theirs.state_dict(), js.bind(made, TOKENS, CAUSAL))


def report_of(library, **changes):
    """The report, "" if the port is believed to be right."""
    theirs = randomized(TorchBlock()).eval()
    call = (lambda m, x, mask: jax.vmap(m, (0, None))(x, mask)) if library == "equinox" else None
    try:
        js.testing.assert_same_outputs(theirs, loaded(library, theirs, **changes), TOKENS, CAUSAL, call=call)
    except js.ParityError as error:
        return str(error)
    return ""


MISTAKES = {
    "another mask": (dict(mask=lambda m: m), '"attn"', "attn_mask the other way"),
    "no mask": (dict(mask=lambda m: None), '"attn"', "attends to everything"),
    "heads": (dict(heads=4), '"attn"', "num_heads 4, and torch 2"),
    "gelu": (dict(gelu=jax.nn.gelu), '"down"', "gelu, approximated by tanh"),
    "residual": (dict(add=lambda x, y: y), '"norm2"', 'JAX reads what "attn" returns, and torch what'),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("library", ["equinox", "haiku"])
def test_the_report_names_place_and_cause(library, name):
    changes, place, cause = MISTAKES[name]
    report = report_of(library, **changes)
    lines = [line for line in report.splitlines() if "first layer that" in line or "reads differs" in line]
    assert place in lines[0].partition("in JAX")[0] and cause in report.partition("cause:")[2], report


@pytest.mark.parametrize("library", ["equinox", "haiku"])
def test_a_right_block_is_right(library):
    assert report_of(library) == "" and np.unique(CAUSAL).size == 2
