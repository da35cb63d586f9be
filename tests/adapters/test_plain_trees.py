"""Trees of arrays without types: bound by Rules or as they are, and by nothing else."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    kernel: Any
    bias: Any


class Net(NamedTuple):
    layers: list
    heads: dict
    scale: Any


def net():
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape).astype("float32"))  # noqa: E731
    layers = [Layer(array(3, 5), array(5)), Layer(array(5, 5), array(5))]
    return Net(layers, {2: Layer(array(5, 2), None), 1: Layer(array(5, 4), array(4))}, array())


RULES = [
    js.Rule("layers.{n}.weight", "layers.{n}.kernel", "i o -> o i", n=(0,)),
    js.Rule("layers.1.weight", "layers.1.kernel", "i o -> o i"),
    js.Rule("heads.{n}.weight", "heads.{n}.kernel", "i o -> o i", n=(2,)),
    js.Rule("heads.1.weight", "heads.1.kernel", "i o -> o i"),
]


def test_rules_say_what_a_matrix_is_and_vectors_are_themselves():
    binding = js.bind(net(), rules=RULES)
    assert binding.keys == (
        *("scale", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"),
        *("heads.2.weight", "heads.1.weight", "heads.1.bias"),
    )
    sd = js.state_dict(net(), binding)
    linear = torch.nn.Linear(3, 5)
    linear.load_state_dict({name: torch.from_numpy(sd[f"layers.0.{name}"]) for name in ("weight", "bias")})
    found = net().layers[0].kernel.T @ jnp.arange(3.0) + net().layers[0].bias
    np.testing.assert_allclose(linear(torch.arange(3.0)).detach().numpy(), found, rtol=1e-6)
    again = js.load_state_dict(jax.eval_shape(net), sd, binding)
    assert type(again) is Net and type(again.heads[2]) is Layer
    jax.tree.map(np.testing.assert_array_equal, again, net())


def test_rules_for_every_leaf_are_taken_in_their_order():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 2))}
    rules = [js.Rule("second", "b", "i o -> o i"), js.Rule("first", "a", "i o -> i o")]
    assert js.bind(tree, rules=rules).keys == ("second", "first")


def test_as_it_is_has_to_be_said():
    tree = OrderedDict(z=jnp.ones((2, 3)), a={"w": jnp.ones((3, 3)), "steps": jnp.ones(2, int)})
    with pytest.raises(js.BindingError, match=r'say js.bind\(tree, rules=\[...\]\), or as_is="\*"'):
        js.bind(tree)
    with pytest.raises(js.BindingError, match=r'a.w of shape \(3, 3\) in dict.*\n.*Rule\("a.w", "a.w", "a b'):
        js.bind(tree, as_is="z")
    binding = js.bind(tree, as_is="*")
    assert binding.keys == ("z", "a.w", "a.steps") and binding.parameters == ("z", "a.w")
    assert js.state_dict(tree, binding)["z"].shape == (2, 3)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": jnp.ones(2)}, "a.b": jnp.ones(2)}, r"same path \['a.b'\]"),
        ({1: jnp.ones(2), "1": jnp.ones(3)}, "JAX cannot flatten this tree"),
        ({"{l}": jnp.ones(2)}, "has no values"),
        (jnp.ones(2), "as_is"),
    ],
)
def test_names_that_cannot_be_keys_are_refused(tree, message):
    with pytest.raises(js.BindingError, match=message):
        js.bind(tree, as_is="*", rules=[js.TorchOnly("other", 0)])


def test_what_only_a_model_can_be_asked_is_refused():
    with pytest.raises(js.BindingError, match="inputs, multilayer: a dict of arrays has no layers"):
        js.bind({"w": jnp.ones((2, 2))}, jnp.ones(2), as_is="*", multilayer="rnn")


NAMES = st.text("abc", min_size=1, max_size=2)
ARRAYS = st.lists(st.integers(1, 3), max_size=3).map(
    lambda shape: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype("float32")
)
TREES = st.recursive(
    ARRAYS,
    lambda below: (
        st.dictionaries(NAMES, below, min_size=1, max_size=3) | st.lists(below, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, TREES, min_size=1, max_size=3))
def test_any_tree_as_it_is_comes_back(tree):
    matrices = [path for path, leaf in js.tree.flat(tree).items() if leaf.ndim > 1]
    binding = js.bind(tree, as_is=matrices, rules=[js.TorchOnly("of.torch", np.int64(3))])
    sd = js.state_dict(tree, binding)
    assert set(sd) == set(js.tree.flat(tree)) | {"of.torch"}
    again = js.load_state_dict(jax.tree.map(np.zeros_like, tree), sd, binding)
    jax.tree.map(np.testing.assert_array_equal, again, tree)
