"""What a Linen model does not tell: users' arrays, layers without a twin, inputs that do not run."""

import jax
import jax.numpy as jnp
import linen_twins as t
import numpy as np
import pytest
import torch
from flax import linen as nn
from linen_twins import DIFFERENT, Twins

import jaxstate as js
from jaxstate.adapters import _linen
from jaxstate.adapters._options import Options
from jaxstate.tree import flat

T = torch.nn


class Mixer(nn.Module):
    """A class of the user's, with a matrix of its own, in which a Dense stands too."""

    @nn.compact
    def __call__(self, x):
        mix = self.param("mix", nn.initializers.ones, (x.shape[-1], 5))
        shift = self.param("shift", nn.initializers.zeros, (5,))
        return nn.Dense(4, name="fc")(x @ mix + shift)


class Two(nn.Module):
    def setup(self):
        self.first, self.second = Mixer(), Mixer()

    def __call__(self, x):
        return self.second(self.first(x))


class TorchMixer(T.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.shift = T.Parameter(torch.ones(5, 4)), T.Parameter(torch.ones(5))
        self.fc = T.Linear(5, 4)

    def forward(self, x):
        return self.fc(x @ self.mix.T + self.shift)


class TorchTwo(T.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = TorchMixer(), TorchMixer()

    def forward(self, x):
        return self.second(self.first(x))


def mixer_rules(module):
    return [
        js.Rule("mix", "mix", "i o -> o i"),
        js.Rule("shift", "shift", "o -> o"),
        js.Rule("fc.weight", "fc.kernel", "i o -> o i"),
        js.Rule("fc.bias", "fc.bias", "o -> o"),
    ]


SINGLE = [js.Rule(f"{name}.mix", f"params.{name}.mix", "i o -> o i") for name in ("first", "second")]


@pytest.mark.parametrize(
    "options", [{"rules": SINGLE}, {"layers": {Mixer: mixer_rules}}], ids=["rules", "layers"]
)
def test_arrays_of_users_modules_have_the_rules_that_users_give(options):
    twins = Twins("", lambda s: TorchTwo(), lambda s: Two(), lambda s: (2, 4), options=options)
    t.check_twins(twins, DIFFERENT, t.randomized(TorchTwo()))


def test_an_array_of_unknown_layout_is_asked_for_with_the_rule_to_paste():
    with pytest.raises(js.BindingError) as caught:
        js.bind(Two(), jnp.ones((2, 4)))
    text = str(caught.value)
    assert "params.first.mix of shape (4, 5) in Mixer: its layout is not known" in text
    assert 'Rule("first.mix", "params.first.mix", "a b -> a b")  # JAX -> torch' in text
    assert "shift" not in text


class MyDense(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", self.kernel_init, (4, self.features))


def test_a_subclass_with_a_call_of_its_own_is_not_known():
    with pytest.raises(js.BindingError, match=r"kernel of shape \(4, 3\) in MyDense"):
        js.bind(MyDense(3), jnp.ones((2, 4)))


def test_a_subclass_that_only_configures_is_what_it_configures():
    class Small(nn.Dense):
        features: int = 3

    assert js.bind(Small(), jnp.ones((2, 4))).keys == ("weight", "bias")


class Called(nn.Module):
    """A kernel that two equations read in two ways."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Einsum((4, 4), use_bias=False)
        return layer(layer(x, "ni,io->no"), "ni,oi->no")


class Batch(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral(4, batch_dims=(0,), name="dense")(x)


image = jnp.ones((2, 8, 8, 3))
vector = jnp.ones((2, 4))
REFUSED = {
    "ConvLocal": (nn.ConvLocal(6, (3, 3)), (image,), {}, "a kernel for each place"),
    "four axes": (nn.Conv(6, (1, 1, 1, 1)), (jnp.ones((1, 2, 2, 2, 2, 3)),), {}, "more than three axes"),
    "MGUCell": (nn.MGUCell(4), (vector, vector), {}, "minimal gated unit"),
    "ConvLSTMCell": (nn.ConvLSTMCell(4, (3, 3)), ((jnp.ones((2, 8, 8, 4)),) * 2, image), {}, "convolutional"),
    "residual": (nn.SimpleCell(4, residual=True), (vector, vector), {}, "is no cell of a torch.nn.LSTM"),
    "batch_dims": (Batch(), (vector,), {}, 'DenseGeneral "dense" has batch_dims'),
    "Einsum": (nn.Einsum((2, 4, 4), "nbi,nio->nbo"), (jnp.ones((2, 3, 4)),), {}, "batch of matrices"),
    "two equations": (Called(), (vector,), {}, "called with several equations"),
    "LayerNorm": (nn.LayerNorm(feature_axes=(1, 2, 3)), (image,), {}, "three or more feature axes"),
    "BatchNorm": (nn.BatchNorm(True, axis=(1, 2)), (image,), {}, "over several axes"),
    "magnitudes": (nn.WeightNorm(nn.Dense(4), use_scale=False), (vector,), {}, "use_scale=False"),
    "feature_axes": (
        nn.WeightNorm(nn.Conv(4, (3, 3)), feature_axes=(0, 1)),
        (image,),
        {},
        "scales one dimension of its weight",
    ),
    "WeightNorm": (nn.WeightNorm(Two()), (vector,), {}, "around a Two, which is no layer that is known"),
    "packed": (
        nn.MultiHeadAttention(2, normalize_qk=True),
        (jnp.ones((2, 3, 4)),),
        {"attention": "packed"},
        'normalised queries and keys; bind with attention="separate"',
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_torch_has_no_twin_for_is_refused_with_the_reason(case):
    model, inputs, options, reason = case
    with pytest.raises(js.BindingError, match=reason):
        js.bind(model, *inputs, **options)


def test_a_list_of_other_layers_is_no_torch_rnn():
    with pytest.raises(js.BindingError, match=r"is no layer of a torch.nn.LSTM, GRU or RNN"):
        js.bind(nn.Sequential([nn.Dense(4)]), vector, multilayer="")


def test_grouped_transposed_convolutions_do_not_fit():
    module, model = T.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose(6, (3, 3))
    x = jnp.ones((2, 8, 8, 4))
    binding = js.bind(model, x)
    with pytest.raises(js.StateDictError, match=r"size mismatch for weight: .*\[4, 3, 3, 3\]"):
        js.load_state_dict(t.variables_of(model, x), module.state_dict(), binding)


class Moody(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))


@pytest.mark.parametrize("inputs", [(), (vector,)], ids=["no inputs", "no flag"])
def test_a_model_that_does_not_run_says_what_to_give(inputs):
    with pytest.raises(js.BindingError, match=r"Moody.init does not run .* missing 1 required") as caught:
        js.bind(Moody(), *inputs)
    assert 'kwargs={"train": False}' in str(caught.value)


@pytest.mark.parametrize("train", [True, False])
def test_flags_stay_flags_and_random_numbers_are_there(train):
    binding = js.bind(Moody(), vector, kwargs={"train": train})
    assert binding.keys == ("Dense_0.weight", "Dense_0.bias")


def test_a_module_holds_no_arrays():
    for ask in (lambda: js.state_dict(nn.Dense(3)), lambda: js.load_state_dict(nn.Dense(3), {})):
        with pytest.raises(js.BindingError, match=r"Dense is a module of Flax Linen and holds no arrays"):
            ask()


def test_variables_without_a_binding_say_where_one_comes_from():
    variables = nn.Dense(3).init(jax.random.key(0), vector)
    with pytest.raises(js.BindingError, match=r"binding = js.bind\(module, \*example_inputs\)"):
        js.state_dict(variables)


def test_a_stack_that_is_stacked_again_is_refused():
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "in_axes": None}
    twice = nn.vmap(nn.vmap(nn.Dense, axis_size=2, **options), axis_size=3, **options)
    with pytest.raises(js.BindingError, match=r"one more axis would be a stack of layers"):
        js.bind(twice(5), vector)


def test_the_call_of_a_reading_is_the_model():
    model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)])
    reading = _linen.read(model, Options(inputs=(vector,)))
    variables = model.init(jax.random.key(0), vector)
    expected, _ = model.apply(variables, vector, mutable=["batch_stats"])
    np.testing.assert_array_equal(reading.call(flat(variables), vector), expected)
    assert jax.make_jaxpr(reading.call)(reading.leaves, vector).out_avals[0].shape == expected.shape


class Twice(nn.Module):
    """One name in two collections."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("w", nn.initializers.ones, (4,)) + self.variable("s", "w", jnp.ones, (4,)).value


def test_of_two_leaves_with_one_name_a_rule_means_the_parameter():
    with pytest.raises(js.BindingError, match=r"s\.w") as caught:
        js.bind(Twice(), vector, layers={Twice: lambda module: [js.Rule("w", "w", "a -> a")]})
    assert "params.w" not in str(caught.value)


def test_a_rule_for_a_leaf_that_is_not_there_says_which_there_are():
    with pytest.raises(js.BindingError, match=r'names the leaf "v", and the layer has \[\'w\'\]'):
        js.bind(Twice(), vector, layers={Twice: lambda module: [js.Rule("w", "v", "a -> a")]})
