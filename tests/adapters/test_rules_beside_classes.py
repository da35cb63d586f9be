"""torch_rules: a class of the user's in Equinox or Haiku has its rules itself, with torch as the judge."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxstate as js

RULES = [js.Rule("weight", "matrix", "i o -> o i")]
THEIRS = torch.nn.Sequential()
THEIRS.add_module("first", torch.nn.Linear(3, 4, bias=False))
THEIRS.add_module("second", torch.nn.Linear(4, 2))
X = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


class Matrix(eqx.Module):
    matrix: jax.Array

    def __call__(self, x):
        return x @ self.matrix


class Knowing(Matrix):
    def torch_rules(self):
        return [js.Rule("weight", "matrix", "i o -> o i")]


class HaikuMatrix(hk.Module):
    def __call__(self, x):
        return x @ hk.get_parameter("matrix", (3, 4), init=jnp.zeros)


class HaikuKnowing(HaikuMatrix):
    def __init__(self, name=None):
        super().__init__(name=name)
        self.pattern = "i o -> o i"

    def torch_rules(self):
        return [js.Rule("weight", "matrix", self.pattern)]


class Net(eqx.Module):
    first: Matrix
    second: eqx.nn.Linear

    def __call__(self, x):
        return self.second(self.first(x))


def of_equinox(kind):
    return Net(kind(jnp.zeros((3, 4))), eqx.nn.Linear(4, 2, key=jax.random.key(0)))


def of_haiku(kind):
    return hk.transform(lambda x: hk.Linear(2, name="second")(kind(name="first")(x)))


def expected():
    return THEIRS(torch.from_numpy(X)).detach().numpy()


def test_a_module_of_equinox():
    binding = js.bind(of_equinox(Knowing))
    assert binding == js.bind(of_equinox(Matrix), layers={Matrix: lambda module: RULES})
    model = js.load_state_dict(of_equinox(Knowing), THEIRS.state_dict())
    np.testing.assert_allclose(jax.vmap(model)(X), expected(), rtol=1e-5, atol=1e-6)
    js.testing.assert_same_outputs(THEIRS, model, X, call=lambda model, x: jax.vmap(model)(x))
    with pytest.raises(js.BindingError, match="method torch_rules"):
        js.bind(of_equinox(Matrix))


def test_a_module_of_haiku():
    binding = js.bind(of_haiku(HaikuKnowing), X)
    assert binding == js.bind(of_haiku(HaikuMatrix), X, layers={HaikuMatrix: lambda module: RULES})
    template = jax.eval_shape(of_haiku(HaikuKnowing).init, jax.random.key(0), X)
    params = js.load_state_dict(template, THEIRS.state_dict(), binding)
    found = of_haiku(HaikuKnowing).apply(params, None, X)
    np.testing.assert_allclose(found, expected(), rtol=1e-5, atol=1e-6)
    js.testing.assert_same_outputs(THEIRS, (of_haiku(HaikuKnowing), params), X)
    with pytest.raises(js.BindingError, match="method torch_rules"):
        js.bind(of_haiku(HaikuMatrix), X)


class Lone(Matrix):
    def torch_rules(self):
        return RULES[0]


def test_what_is_no_list_of_rules_is_refused_by_name():
    with pytest.raises(js.BindingError, match=r"bind: rules come in a list, .* and this is Rule\("):
        js.bind({"w": jax.numpy.ones((2, 3))}, rules=js.Rule("weight", "w", "i o -> o i"))
    with pytest.raises(
        js.BindingError, match=r"Lone.torch_rules: rules come in a list, .* and this is Rule\("
    ):
        js.bind(of_equinox(Lone))
    with pytest.raises(js.BindingError, match=r"layers=\{Matrix: ...\}: 'weight' is no rule; write Rule\("):
        js.bind(of_equinox(Matrix), layers={Matrix: lambda module: ["weight"]})
    with pytest.raises(js.BindingError, match=r"bind: 'matrix' is no rule; write Rule\("):
        js.bind(of_equinox(Matrix), rules=["matrix"])


def test_the_callers_rules_come_first():
    other = {Knowing: lambda module: [js.Rule("w", "matrix", "i o -> i o")]}
    assert js.bind(of_equinox(Knowing), layers=other).keys[0] == "first.w"
