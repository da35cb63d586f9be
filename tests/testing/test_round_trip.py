"""assert_round_trip passes for bijections and finds what is none."""

import jax.numpy as jnp
import pytest
from flax import nnx
from twins import TWINS, make

import jaxstate as js
from jaxstate.rules.rule import Rule
from jaxstate.testing import assert_round_trip


@pytest.mark.parametrize("name", TWINS)
def test_right_bindings_pass(name):
    made = make(name)
    model = made.loaded()
    assert_round_trip(model.unbind()[1] if name.startswith("linen") else model, made.binding)
    if name == "mlp":
        assert_round_trip(model)


def test_a_rule_that_loses_elements_is_named_where_weights_hide_it(monkeypatch):
    """All ones come back as ones, whatever a Rule does with them; numbered elements do not."""
    model = nnx.Linear(4, 4, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    right = Rule.leaves
    monkeypatch.setattr(Rule, "leaves", lambda rule, sd: {p: a[::-1] for p, a in right(rule, sd).items()})
    with pytest.raises(js.ParityError) as caught:
        assert_round_trip(model)
    assert 'Rule("weight", "kernel", "i o -> o i") does not undo itself' in str(caught.value)
    assert "leaf kernel" not in str(caught.value)
    model.kernel[...] = jnp.arange(16.0).reshape(4, 4)
    with pytest.raises(js.ParityError, match='leaf kernel came back otherwise\n\t"weight" came back'):
        assert_round_trip(model)
