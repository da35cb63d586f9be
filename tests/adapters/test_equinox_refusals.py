"""What an Equinox model cannot be asked: refused, with the words that help."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equinox_twins import KEY, built

import jaxstate as js


class Own(eqx.Module):
    matrix: jax.Array
    key: jax.Array

    def __init__(self, k):
        self.matrix, self.key = jnp.ones((3, 4)), k


class Halved(eqx.nn.Linear, strict=False):
    def __call__(self, x, *, key=None):
        return super().__call__(x) / 2


REFUSED = {
    "an array of one's own": (Own, {}, r'Rule\("matrix", "matrix", "a b -> a b"\)'),
    "a call of one's own": (lambda k: Halved(3, 4, key=k), {}, r"Halved \(a Linear with a __call__"),
    "four axes": (lambda k: eqx.nn.Conv(4, 2, 3, 1, key=k), {}, "runs over 4 axes"),
    "packed attention": (
        lambda k: eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=k),
        {"attention": "packed"},
        "biases everywhere or nowhere",
    ),
    "slopes of an image": (lambda k: eqx.nn.PReLU(jnp.ones((2, 3))), {}, "PReLU with slopes of shape"),
    "groups of another matrix": (
        lambda k: eqx.nn.SpectralNorm(eqx.nn.ConvTranspose2d(4, 4, 2, groups=2, key=k), "weight", key=k),
        {},
        "or of groups",
    ),
    "no such cell": (
        lambda k: eqx.nn.Linear(3, 4, key=k),
        {"multilayer": "rnn"},
        r"multilayer=\['rnn'\]: no cell and no list of cells has such a name",
    ),
    "no cell": (
        lambda k: [eqx.nn.Linear(3, 4, key=k)],
        {"multilayer": "0"},
        "is no layer of a torch.nn.LSTM",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name):
    make, options, message = REFUSED[name]
    with pytest.raises(js.BindingError, match=message):
        js.bind(built(make), **options)


def test_a_model_without_its_state_is_refused():
    model, state = built(lambda k: {"bn": eqx.nn.BatchNorm(3, "batch", mode="ema")})
    with pytest.raises(js.BindingError, match=r"bn.ema_first_time_index.*js.bind\(\(model, state\)\)"):
        js.bind(model)
    with pytest.raises(js.BindingError, match="the State holds 3 arrays, and the model has indices for 0"):
        js.bind((eqx.nn.Linear(2, 3, key=KEY), state))


def test_statistics_of_no_batch_are_refused():
    pair = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="ema")
    with pytest.raises(js.BindingError, match="ema_first_time_index says that there was no batch yet"):
        js.state_dict(pair)


def test_a_bias_that_torch_has_not_is_zero_or_refused():
    norm = eqx.tree_at(lambda m: m.bias, eqx.nn.RMSNorm(3), jnp.float32([0, 1, 0]))
    with pytest.raises(js.BindingError, match="leaf bias is not 0.0 everywhere"):
        js.state_dict(norm)
    assert not js.load_state_dict(norm, {"weight": np.ones(3, "float32")}).bias.any()


def test_what_torch_has_in_the_same_axes_is_bound_as_it_is():
    binding = js.bind(Own(KEY), as_is="matrix")
    assert binding.keys == ("matrix",)  # a random key is no part of a state_dict
    with pytest.raises(
        js.BindingError, match=r"as_is=\['other'\]: no array outside of .* has such a path; there are"
    ):
        js.bind(Own(KEY), as_is=("matrix", "other"))
    abstract = eqx.filter_eval_shape(Own, KEY)
    with pytest.raises(js.BindingError, match="random state has no value"):
        js.load_state_dict(abstract, {"matrix": np.ones((3, 4), "float32")}, binding)
