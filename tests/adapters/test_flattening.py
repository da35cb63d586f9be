"""bind on models that flatten images: traced, said, or refused; and the outputs are torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxstate as js
from jaxstate.errors import BindingError


class Net(nnx.Module):
    def __init__(self, rngs, norm=False, general=False):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(60, use_running_average=True, rngs=rngs) if norm else None
        self.fc = (
            nnx.LinearGeneral((4, 5, 3), 7, axis=(-3, -2, -1), rngs=rngs)
            if general
            else nnx.Linear(60, 7, rngs=rngs)
        )

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        x = x if isinstance(self.fc, nnx.LinearGeneral) else x.reshape(x.shape[0], -1)
        return self.fc(self.norm(x) if self.norm else x)


def twin(norm=False):
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(2, 3, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(60, 7),
    ]
    net = torch.nn.Sequential(*layers)
    names = {"conv": net[0], "fc": net[3]}
    if norm:
        net.insert(3, torch.nn.BatchNorm1d(60))
        for tensor in net[3].state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) + 0.5) if tensor.is_floating_point() else None
        names = {"conv": net[0], "norm": net[3], "fc": net[4]}
    return net.eval(), {
        f"{n}.{key}": value for n, module in names.items() for key, value in module.state_dict().items()
    }


IMAGE = jax.ShapeDtypeStruct((1, 4, 5, 2), "float32")


def same_outputs(net, model):
    x = np.random.default_rng(0).normal(size=(6, 4, 5, 2)).astype("float32")
    theirs = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    return np.abs(theirs - model(jnp.asarray(x))).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("abstract", [False, True])
def test_a_traced_flatten_gives_torchs_outputs(norm, abstract):
    net, weights = twin(norm)
    make = lambda: Net(nnx.Rngs(0), norm)  # noqa: E731
    model = nnx.eval_shape(make) if abstract else make()
    binding = js.bind(model, IMAGE)
    loaded = js.load_state_dict(model, weights, binding)
    assert same_outputs(net, loaded)
    back = js.state_dict(loaded, js.bind(model, IMAGE, like=weights))
    assert all(back[key].tobytes() == tensor.numpy().tobytes() for key, tensor in weights.items())
    assert "(h w c) o -> o (c h w)" in str(binding)


def test_without_the_permutation_outputs_differ():
    net, weights = twin()
    model = Net(nnx.Rngs(0))
    assert not same_outputs(net, js.load_state_dict(model, weights, js.bind(model, flatten={})))


def test_an_image_that_is_read_axis_by_axis():
    net, weights = twin()
    model = Net(nnx.Rngs(0), general=True)
    assert same_outputs(net, js.load_state_dict(model, weights, js.bind(model, IMAGE)))


@pytest.mark.parametrize("norm", [False, True])
def test_a_flatten_may_be_said(norm):
    net, weights = twin(norm)
    model = Net(nnx.Rngs(0), norm)
    said = {"fc": (3, 4, 5), "norm": (3, 4, 5)} if norm else {"fc": (3, 4, 5)}
    assert same_outputs(net, js.load_state_dict(model, weights, js.bind(model, flatten=said)))


def test_a_flatten_may_be_a_rule():
    net, weights = twin()
    model = Net(nnx.Rngs(0))
    rule = js.Rule("fc.weight", "fc.kernel", "(h w c) o -> o (c h w)", h=4, w=5)
    for binding in (js.bind(model, rules=[rule]), js.bind(model, IMAGE, rules=[rule])):
        assert same_outputs(net, js.load_state_dict(model, weights, binding))


def test_what_is_said_wins_over_what_is_traced():
    model = Net(nnx.Rngs(0))
    assert js.bind(model, IMAGE, flatten={"fc": None}) == js.bind(model, flatten={})


def test_a_suspected_flatten_is_refused_with_the_remedies():
    with pytest.raises(BindingError) as caught:
        js.bind(Net(nnx.Rngs(0)))
    text = str(caught.value)
    assert "fc may read or make the flattened image of conv: 3 channels of 20 positions each" in text
    assert (
        "js.bind(model, example_input)" in text
        and 'flatten={"fc": (C, H, W)}' in text
        and "flatten={}" in text
    )
    with pytest.raises(BindingError, match="may read or make"):
        js.state_dict(Net(nnx.Rngs(0)))


@pytest.mark.parametrize(
    "said, words",
    [
        ({"head": (9, 9)}, "there is no such layer; there are ['conv', 'fc']"),
        ({"fcc": (9, 9)}, 'there is no such layer; say flatten={"fc": (9, 9)}'),
        ({"head": (3, 4, 5)}, 'there is no such layer; say flatten={"fc": (3, 4, 5)}'),
        ({"head": None}, "there is no such layer; there are ['conv', 'fc']"),
        ({"fc": (3, 4, 6)}, 'reads 72 features; say flatten={"fc": (C, H, W)} with C * H * W = 60'),
        ({"conv": (3, 4, 5)}, 'reads 60 features; fc does: say flatten={"fc": (3, 4, 5)}'),
        ({"conv": (1, 2)}, 'no leaf of conv reads 2 features; say flatten={"conv": None}'),
        ({"fc": (60,)}, "(60,) is no image: say torch's (C, W), (C, H, W) or (C, D, H, W)"),
        ({"fc": 60}, "60 is no image: say torch's"),
        ((3, 4, 5), 'does not say which layer reads the image: flatten={"fc": (3, 4, 5)}'),
    ],
)
def test_what_is_said_must_be_so(said, words):
    with pytest.raises(BindingError) as caught:
        js.bind(Net(nnx.Rngs(0)), flatten=said)
    assert words in str(caught.value)


def test_an_example_that_the_model_does_not_take_is_named():
    with pytest.raises(BindingError, match="cannot be called with these example inputs: .*kwargs="):
        js.bind(Net(nnx.Rngs(0)), jax.ShapeDtypeStruct((1, 4, 5, 3), "float32"))


class Pooled(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(3, 7, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.conv(x).mean((1, 2)))


def test_a_model_that_pools_globally_binds_without_a_word():
    assert js.bind(Pooled(nnx.Rngs(0))) == js.bind(Pooled(nnx.Rngs(0)), IMAGE)
