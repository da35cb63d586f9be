"""assert_same_outputs: what it accepts and what it refuses, and that it leaves both models as they were."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx
from twins import NCHW, TWINS, built, make, noise, randomized

import jaxstate as js
from jaxstate.testing import assert_same_outputs


@pytest.mark.parametrize("name", TWINS)
def test_right_ports_pass(name):
    made = make(name)
    assert_same_outputs(made.torch, made.loaded(), *made.twin.inputs, input_layout=made.twin.layout)


def failing(theirs, ours, *inputs, **options):
    with pytest.raises(js.ParityError) as caught:
        assert_same_outputs(theirs, ours, *inputs, **options)
    return str(caught.value)


def linear(seed=1, features=5):
    theirs = randomized(torch.nn.Linear(3, features), seed)
    return theirs, js.load_state_dict(
        nnx.eval_shape(lambda: nnx.Linear(3, features, rngs=nnx.Rngs(0))), theirs.state_dict()
    )


class TorchNormed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.bn = torch.nn.BatchNorm2d(4)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return {"y": self.act(self.bn(self.conv(x))), "mean": (x.mean(),)}


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (1, 1), rngs=rngs)
        self.bn = nnx.BatchNorm(4, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        return {"y": nnx.relu(self.bn(self.conv(x))), "mean": (x.mean(),)}


class LinenNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(4, (1, 1), name="conv")(x)
        y = nn.BatchNorm(use_running_average=not train, use_fast_variance=False, name="bn")(y)
        return {"y": nn.relu(y), "mean": (x.mean(),)}


def normed(train):
    theirs = randomized(TorchNormed()).train(train)
    ours = js.load_state_dict(Normed(nnx.Rngs(0)), theirs.state_dict())
    ours.bn.use_running_average = not train
    return theirs, ours


LAYOUTS = dict(input_layout=NCHW, output_layout=NCHW)


def traits(theirs, ours):
    """All that a comparison could leave changed."""
    hooks = [(m._forward_hooks, m._forward_pre_hooks, m.training) for m in theirs.modules()]
    buffers = [id(b) for b in theirs.buffers()]
    values = {key: t.numpy().copy().tobytes() for key, t in theirs.state_dict().items()}
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(ours))]
    classes = [(k, vars(k).get("__call__")) for k in (Normed, nnx.Conv, nnx.BatchNorm)]
    grads = [p.grad for p in theirs.parameters()]
    return repr(hooks), buffers, values, leaves, classes, grads


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_both_are_run_in_their_mode_and_left_as_they_were(train, eps):
    theirs, ours = normed(train)
    ours.bn.epsilon = eps
    before = traits(theirs, ours)
    if eps == 1e-5:
        assert_same_outputs(theirs, ours, noise(2, 3, 5, 6), **LAYOUTS)
    else:
        assert "eps 0.01" in failing(theirs, ours, noise(2, 3, 5, 6), **LAYOUTS)
    assert traits(theirs, ours) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("train", [False, True])
def test_a_linen_module_is_bound_to_its_variables(train):
    theirs, x = randomized(TorchNormed()).train(train), noise(2, 3, 5, 6)
    module, image = LinenNormed(), jnp.zeros((2, 5, 6, 3))
    template = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=True))
    variables = js.load_state_dict(
        template, theirs.state_dict(), js.bind(module, image, kwargs={"train": True})
    )
    options = dict(kwargs={"train": train}, **LAYOUTS)
    assert_same_outputs(theirs, module.bind(variables), x, **options)
    other = failing(theirs, module.bind(variables), x, **{**options, "kwargs": {"train": not train}})
    assert f"batch statistics {not train}" in other
    with pytest.raises(TypeError, match=re.escape("pass LinenNormed(...).bind(variables)")):
        assert_same_outputs(theirs, module, x, **options)


def test_outputs_are_compared_by_name():
    theirs, ours = normed(False)
    x = noise(2, 3, 5, 6)
    report = failing(theirs, ours, x, input_layout=NCHW)
    assert 'output "y" has shape (2, 4, 5, 6) in torch and (2, 5, 6, 4) in JAX' in report
    assert 'output_layout="n h w c -> n c h w"' in report
    report = failing(theirs, ours, x, input_layout=NCHW, torch_call=lambda module, x: module(x)["y"])
    assert "torch returns {'output': (2, 4, 5, 6)} and JAX {'y': (2, 5, 6, 4), 'mean.0': ()}" in report
    assert_same_outputs(
        theirs,
        ours,
        x,
        torch_call=lambda module, x: module(x)["y"],
        call=lambda model, x: model(x)["y"],
        **LAYOUTS,
    )


def test_a_difference_of_nan_integers_or_infinities_is_one():
    theirs, ours = linear()
    x = noise(2, 3)
    nan = lambda model, x: model(x).at[0, 0].set(jnp.nan)  # noqa: E731
    assert "the output differs" in failing(theirs, ours, x, call=nan)
    index = dict(torch_call=lambda module, x: module(x).argmax(-1), call=lambda model, x: model(x).argmin(-1))
    assert "the output differs" in failing(theirs, ours, x, **index)
    both = dict(torch_call=lambda module, x: module(x).log(), call=lambda model, x: jnp.log(model(x)))
    assert_same_outputs(theirs, ours, x, **both)  # logarithms of negative numbers: NaN on both sides


def test_torch_tensors_are_inputs_too_and_are_not_changed():
    theirs, ours = linear()
    x = torch.from_numpy(noise(2, 3))
    assert_same_outputs(theirs, ours, x, torch_call=lambda module, x: module(x.mul_(2) / 2))
    assert np.array_equal(x.numpy(), noise(2, 3))


def test_the_tolerance_is_of_the_scale():
    theirs, ours = linear()
    x = noise(2, 3)
    scaled = lambda factor: dict(call=lambda model, x: model(x) * factor)  # noqa: E731
    assert_same_outputs(theirs, ours, x, rtol=1e-3, **scaled(1 + 9e-4))
    assert "1.00001 times" in failing(theirs, ours, x, rtol=1e-6, **scaled(1.00001))
    assert "1.1 times torch's values" in failing(theirs, ours, x, **scaled(1.1))


def test_rounding_by_a_device_is_told_from_a_mistake():
    """As TPUs do, and GPUs: here the call rounds, unless full precision is asked for."""
    theirs, ours = linear()

    def rounded(model, x):
        full = jax.config.jax_default_matmul_precision == "highest"
        return model(x if full else x.astype(jnp.bfloat16).astype(jnp.float32))

    assert 'jax.default_matmul_precision("highest")' in failing(theirs, ours, noise(2, 3), call=rounded)
    with jax.default_matmul_precision("highest"):
        assert_same_outputs(theirs, ours, noise(2, 3), call=rounded)


class TorchDropped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = torch.nn.Linear(3, 4), torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.fc(x))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.fc, self.drop = nnx.Linear(3, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.fc(x))


def test_models_that_draw_at_random_are_refused():
    theirs = TorchDropped()
    ours = js.load_state_dict(Dropped(nnx.Rngs(0)), theirs.state_dict())
    assert "training mode, where it draws at random: drop" in failing(theirs, ours, noise(2, 3))
    theirs.eval()
    assert "the JAX model draws at random in drop: call model.eval()" in failing(theirs, ours, noise(2, 3))
    ours.eval()
    assert_same_outputs(theirs, ours, noise(2, 3))
    with pytest.raises(TypeError, match="the first argument is a torch.nn.Module, not Dropped"):
        assert_same_outputs(ours, theirs, noise(2, 3))


class Scaled(nnx.Module):
    """A layer that no library knows: torch.nn.Linear with its weight as it is."""

    def __init__(self, rngs):
        self.weight = nnx.Param(rngs.normal((4, 4)))
        self.bias = nnx.Param(rngs.normal((4,)))

    def __call__(self, x):
        return x @ self.weight.T + self.bias


def test_layers_of_the_users_own_are_paired_by_their_rules():
    class Ours(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = Scaled(rngs), Scaled(rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    theirs = randomized(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4)))
    names = {"0": "first", "2": "second"}
    right = [js.Rule(f"{a}.weight", f"{b}.weight", "o i -> o i") for a, b in names.items()]
    wrong = [js.Rule(f"{a}.weight", f"{b}.weight", "i o -> o i") for a, b in names.items()]
    biases = [js.Rule(f"{a}.bias", f"{b}.bias", "o -> o") for a, b in names.items()]
    template = Ours(nnx.Rngs(0))
    for rules, passes in (([*right, *biases], True), ([right[0], wrong[1], *biases], False)):
        binding = js.Binding(tuple(rules)).of(dict(_leaves(template)))
        ours = js.load_state_dict(template, theirs.state_dict(), binding)
        if passes:
            assert_same_outputs(theirs, ours, noise(3, 4), binding=binding)
        else:
            report = failing(theirs, ours, noise(3, 4), binding=binding)
            assert 'first layer that differs: "2" (Linear), in JAX "second" (Scaled)' in report
            assert 'holds "2.weight" transposed' in report and "look at Rule(" in report


def _leaves(model):
    return ((".".join(map(str, path)), v.get_value()) for path, v in nnx.to_flat_state(nnx.state(model)))


def test_any_model_that_can_be_called_is_compared_by_its_outputs():
    theirs = randomized(torch.nn.Linear(3, 4))
    weights = {key: jnp.array(t.numpy()) for key, t in theirs.state_dict().items()}
    right = jax.tree_util.Partial(lambda w, x: x @ w["weight"].T + w["bias"], weights)
    wrong = jax.tree_util.Partial(lambda w, x: x @ w["weight"].T - w["bias"], weights)
    assert_same_outputs(theirs, right, noise(2, 3))
    assert "no layers could be compared" in failing(theirs, wrong, noise(2, 3))


def test_a_model_that_does_not_run_for_a_reason_of_its_own_says_so():
    theirs, ours = linear()

    def stop(model, x):
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        assert_same_outputs(theirs, ours, noise(2, 3), call=stop)


def test_layouts_that_fit_nothing_are_refused():
    theirs, ours = linear()
    with pytest.raises(js.LayoutError, match="fits none of these arrays"):
        assert_same_outputs(theirs, ours, noise(2, 3), input_layout=NCHW)
    with pytest.raises(js.LayoutError, match="2 layouts for 1 arrays"):
        assert_same_outputs(theirs, ours, noise(2, 3), input_layout=[None, None])


def test_a_module_that_is_called_twice_is_compared_at_each_call():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(torch.tanh(self.fc(x)))

    class Ours(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return self.fc(nnx.sigmoid(self.fc(x)))

    theirs = randomized(Twice())
    report = failing(theirs, js.load_state_dict(Ours(nnx.Rngs(0)), theirs.state_dict()), noise(2, 4))
    assert (
        'after "fc", which agrees, what "fc" (Linear), in JAX "fc" (Linear), call 2 reads differs' in report
    )
    assert "computes sigmoid where torch computes tanh" in report


def test_random_state_of_a_loaded_model_is_its_own():
    """A Variable that the template and the new model shared would be advanced by either."""
    template = Dropped(nnx.Rngs(0))
    new = js.load_state_dict(template, TorchDropped().state_dict())
    assert new.drop.rngs.count is not template.drop.rngs.count
    count = int(template.drop.rngs.count[...])
    new(jnp.ones((2, 3)))
    assert int(template.drop.rngs.count[...]) == count


def test_a_recurrent_model_is_bound_with_example_inputs():
    twin = TWINS["lstm"]
    assert js.bind(built(twin), *twin.in_jax()).keys == tuple(twin.theirs().state_dict())
