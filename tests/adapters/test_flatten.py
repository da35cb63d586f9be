"""Flattens are found where torch has another order, and the permutations found give torch's outputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flattening import (
    LinenNet,
    Net,
    chw,
    conv,
    find,
    flat,
    leaves_of,
    leaves_of_linen,
    linear,
    rngs,
    shaped,
)
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxstate.adapters._flatten import find_flattens
from jaxstate.adapters._merged import Merged
from jaxstate.errors import BindingError
from jaxstate.layout import Layout

HWC = "(h w c) -> (c h w)"
IMAGE = (2, 4, 5, 2)
SPATIAL = st.lists(st.integers(1, 4), min_size=1, max_size=3)
NORMS = {
    "none": None,
    "batch": partial(nnx.BatchNorm, use_running_average=True),
    "layer": partial(nnx.LayerNorm, epsilon=1e-5),
}
TORCH_NORMS = {"none": None, "batch": torch.nn.BatchNorm1d, "layer": torch.nn.LayerNorm}
CONVS = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
TRANSPOSED = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}


# The oracle: torch's weights, permuted by hand as the answer says, give torch's outputs.


def permuted(array, dims):
    """A torch array with the dimensions of the answer brought from torch's order to JAX's."""
    for i, merged in dims.items():
        before, after = array.shape[:i], array.shape[i + 1 :]
        parts = array.reshape(*before, *(merged.sizes[name] for name in merged.torch), *after)
        order = [i + merged.torch.index(name) for name, _ in merged.axes]
        rest = range(i + len(order), parts.ndim)
        array = parts.transpose(*range(i), *order, *rest).reshape(array.shape)
    return array


def kernel(weight):
    """A torch weight of a Linear or Conv with its axes as Flax has them."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def kernel_of_transposed(weight):
    return np.flip(weight.transpose(*range(2, weight.ndim), 0, 1), range(weight.ndim - 2))


def torch_leaves(layers, prefix="{}.{}"):
    """Flax's leaves of torch layers, by name; nothing is permuted yet."""
    found = {}
    for name, layer in layers.items():
        arrays = {key: value.detach().numpy() for key, value in layer.state_dict().items()}
        normed = arrays["weight"].ndim == 1
        move = kernel_of_transposed if name == "up" else (lambda x: x) if normed else kernel
        found[prefix.format("params", name, "scale" if normed else "kernel")] = move(arrays["weight"])
        found[prefix.format("params", name, "bias")] = arrays["bias"]
        for leaf, key in (("mean", "running_mean"), ("var", "running_var")):
            if key in arrays:
                found[prefix.format("batch_stats", name, leaf)] = arrays[key]
    return found


def randomised(net):
    """Norms start at one and zero, where no permutation shows."""
    torch.manual_seed(0)
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.ndim == 1:
            tensor.data.uniform_(0.5, 1.5)
    return net.eval()


def assert_same_outputs(function, shapes, leaves, net, x):
    """The function of the permuted leaves gives what the torch net gives."""
    channels_last = x if x.ndim == 2 else np.moveaxis(x, 1, -1)
    found = find_flattens(function, shapes, *shaped(channels_last.shape))
    leaves = {path: permuted(array, found.get(path, {})) for path, array in leaves.items()}
    assert {path: leaf.shape for path, leaf in leaves.items()} == {p: s.shape for p, s in shapes.items()}
    got = np.asarray(function(leaves, channels_last))
    want = net(torch.tensor(x)).detach().numpy()
    want = want if want.ndim == 2 else np.moveaxis(want, 1, -1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    return found


def classifier(channels, spatial, norm, flatten=flat):
    """conv, relu, flatten, norm, two linear layers: the NNX model and its torch twin."""
    size = channels * int(np.prod(spatial))

    def call(net, x):
        x = flatten(nnx.relu(net.conv(x)))
        x = net.norm(x) if norm != "none" else x
        return net.head(nnx.gelu(net.fc(x), approximate=False))

    def make():
        first = conv(2, channels, (3,) * len(spatial))
        norms = {} if norm == "none" else {"norm": NORMS[norm](size, rngs=rngs())}
        return Net(call, conv=first, **norms, fc=linear(size, 5), head=linear(5, 3))

    layers = {"conv": CONVS[len(spatial)](2, channels, 3, padding=1)}
    layers |= {} if norm == "none" else {"norm": TORCH_NORMS[norm](size)}
    layers |= {"fc": torch.nn.Linear(size, 5), "head": torch.nn.Linear(5, 3)}
    first, *middle = layers.values()
    tail = [*middle[:-1], torch.nn.GELU(), middle[-1]]
    return make, layers, randomised(torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Flatten(), *tail))


def generator(channels, spatial, norm):
    """linear, norm, relu, unflatten, transposed conv: the NNX model and its torch twin."""
    size = channels * int(np.prod(spatial))

    def call(net, z):
        x = net.norm(net.fc(z)) if norm != "none" else net.fc(z)
        return net.up(nnx.relu(x).reshape(-1, *spatial, channels))

    def make():
        up = nnx.ConvTranspose(channels, 2, (3,) * len(spatial), rngs=rngs())
        norms = {} if norm == "none" else {"norm": NORMS[norm](size, rngs=rngs())}
        return Net(call, fc=linear(7, size), **norms, up=up)

    layers = {"fc": torch.nn.Linear(7, size)}
    layers |= {} if norm == "none" else {"norm": TORCH_NORMS[norm](size)}
    up = TRANSPOSED[len(spatial)](channels, 2, 3, padding=1)
    unflatten = torch.nn.Unflatten(1, (channels, *spatial))
    net = torch.nn.Sequential(*layers.values(), torch.nn.ReLU(), unflatten, up)
    return make, layers | {"up": up}, randomised(net)


def images(channels, spatial, batch=3):
    return np.random.default_rng(0).standard_normal((batch, channels, *spatial)).astype("float32")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels, spatial", [(3, (4, 5)), (4, (4, 4)), (3, (5,)), (2, (3, 4, 5))])
def test_a_classifier_with_the_permutations_found_gives_torchs_outputs(channels, spatial, norm):
    make, layers, net = classifier(channels, spatial, norm)
    found = assert_same_outputs(*leaves_of(make), torch_leaves(layers, "{1}.{2}"), net, images(2, spatial))
    expected = {"none": [], "batch": ["scale", "bias", "mean", "var"], "layer": ["scale", "bias"]}[norm]
    assert set(found) == {"fc.kernel", *(f"norm.{leaf}" for leaf in expected)}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels, spatial", [(3, (4, 5)), (4, (4, 4)), (3, (5,))])
def test_a_generator_with_the_permutations_found_gives_torchs_outputs(channels, spatial, norm):
    make, layers, net = generator(channels, spatial, norm)
    z = np.random.default_rng(0).standard_normal((3, 7)).astype("float32")
    found = assert_same_outputs(*leaves_of(make), torch_leaves(layers, "{1}.{2}"), net, z)
    assert list(found["fc.kernel"]) == [1] and list(found["fc.bias"]) == [0]


@pytest.mark.parametrize("channels, spatial", [(3, (8, 10)), (4, (8, 8))])
def test_a_linen_model_with_the_permutations_found_gives_torchs_outputs(channels, spatial):
    size = channels * spatial[0] * spatial[1] // 4
    layers = {"conv": torch.nn.Conv2d(2, channels, 3, padding=1), "norm": torch.nn.BatchNorm1d(size)}
    layers |= {"fc": torch.nn.Linear(size, 5), "head": torch.nn.Linear(5, 3)}
    first, norm, fc, head = layers.values()
    pool = (torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten())
    net = randomised(torch.nn.Sequential(first, *pool, norm, fc, torch.nn.GELU(), head))
    function, shapes = leaves_of_linen(LinenNet(channels), *shaped((3, *spatial, 2)))
    leaves = torch_leaves(layers, "{}.{}.{}")
    found = assert_same_outputs(function, shapes, leaves, net, images(2, spatial))
    assert list(found) == [f"batch_stats.norm.{leaf}" for leaf in ("mean", "var")] + [
        f"params.{leaf}" for leaf in ("fc.kernel", "norm.bias", "norm.scale")
    ]


def test_a_model_that_moves_channels_first_gives_torchs_outputs_with_nothing_permuted():
    make, layers, net = classifier(3, (4, 5), "batch", chw)
    assert (
        assert_same_outputs(*leaves_of(make), torch_leaves(layers, "{1}.{2}"), net, images(2, (4, 5))) == {}
    )


def test_without_the_permutation_the_outputs_differ():
    make, layers, net = classifier(3, (4, 5), "none")
    function, _ = leaves_of(make)
    x = images(2, (4, 5))
    got = np.asarray(function(torch_leaves(layers, "{1}.{2}"), np.moveaxis(x, 1, -1)))
    want = net(torch.tensor(x)).detach().numpy()
    assert np.abs(got - want).max() > 1e-2 * np.abs(want).max()


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(["none", "batch"])
)
@example(3, [1, 1], "batch")
def test_any_shape_gives_torchs_outputs(channels, spatial, norm):
    make, layers, net = classifier(channels, tuple(spatial), norm)
    assert_same_outputs(*leaves_of(make), torch_leaves(layers, "{1}.{2}"), net, images(2, spatial))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), SPATIAL, st.integers(1, 2))
def test_the_layout_of_any_answer_is_torchs_flatten(channels, spatial, batch):
    make, _, _ = classifier(channels, tuple(spatial), "none")
    function, leaves = leaves_of(make)
    found = find_flattens(function, leaves, *shaped((batch, *spatial, 2)))
    torch_image = np.arange(channels * int(np.prod(spatial))).reshape(channels, *spatial)
    rows = np.moveaxis(torch_image, 0, -1).reshape(-1)
    if (rows == torch_image.reshape(-1)).all():
        assert found == {}
    else:
        merged = found["fc.kernel"][0]
        assert (
            Layout(f"{merged.left} -> {merged.right}", **merged.sizes)(rows) == torch_image.reshape(-1)
        ).all()


# What is found, by the way that a model flattens.


def head(flatten, size=60, channels=3):
    """conv -> flatten -> linear."""
    return lambda: Net(
        lambda net, x: net.fc(flatten(net.conv(x))), conv=conv(2, channels), fc=linear(size, 5)
    )


SAME_ANSWER = {
    "batch kept": lambda x: x.reshape(x.shape[0], -1),
    "length given": lambda x: x.reshape(-1, 60),
    "ravel under vmap": jax.vmap(jnp.ravel),
    "in two steps": lambda x: x.reshape(2, 4, 15).reshape(2, 60),
    "through float16": lambda x: flat(x.astype("float16")).astype("float32"),
    "remat": jax.remat(flat),
    "jit": jax.jit(flat),
    "after a softmax over pixels": lambda x: flat(jax.nn.softmax(x, (1, 2))),
    "after standardising": lambda x: flat(jax.nn.standardize(x)),
    "after a roll": lambda x: flat(jnp.roll(x, 1, 1)),
    "after the largest of each": lambda x: flat(jax.lax.top_k(x.swapaxes(1, 3), 4)[0].swapaxes(1, 3)),
    "through models side by side": lambda x: flat(jnp.unstack(jnp.stack([x, 2 * x], 1), axis=1)[0]),
    "after a flip": lambda x: flat(jnp.flip(x, 2)),
    "after a sort": lambda x: flat(jnp.sort(x, 1)),
    "after a crop and a pad": lambda x: flat(jnp.pad(x[:, 1:-1], ((0, 0), (1, 1), (0, 0), (0, 0)))),
    "after a nearest resize": lambda x: flat(jax.image.resize(x[:, :2], (2, 4, 5, 3), "nearest")),
    "after a bilinear resize": lambda x: flat(jax.image.resize(x[:, :, :2], (2, 4, 5, 3), "bilinear")),
    "channels cut and joined": lambda x: flat(jnp.concatenate([x[..., :1], x[..., 1:]], -1)),
    "through cond": lambda x: jax.lax.cond(x.sum() > 0, flat, lambda y: 2 * flat(y), x),
    "through scan": lambda x: jax.lax.scan(lambda y, _: (2 * y, None), flat(x), None, 3)[0],
    "through scan over rows": lambda x: flat(jax.lax.scan(lambda c, y: (c, 2 * y), 0, x)[1]),
    "through while": lambda x: jax.lax.while_loop(lambda y: y.sum() < 3, lambda y: y + 1, flat(x)),
    "scaled by pooled channels": lambda x: flat(x * x.mean((1, 2), keepdims=True)),
}


@pytest.mark.parametrize("way", SAME_ANSWER)
def test_every_way_to_flatten_has_the_same_answer(way):
    assert find(head(SAME_ANSWER[way]), IMAGE) == {"fc.kernel": {0: HWC}}


NOTHING = {
    "channels first": chw,
    "channels first as tokens": lambda x: flat(x.reshape(2, 20, 3).swapaxes(1, 2)),
    "pooled": lambda x: jnp.tile(x.mean((1, 2)), (1, 20)),
    "channels with channels": lambda x: jnp.tile(flat(jnp.einsum("nhwc,nhwd->ncd", x, x))[:, :6], (1, 10)),
    "channels first, joined with others": lambda x: jnp.concatenate([chw(x)[:, :50], jnp.ones((2, 10))], 1),
}


@pytest.mark.parametrize("way", NOTHING)
def test_what_torch_orders_alike_has_no_entry(way):
    assert find(head(NOTHING[way]), IMAGE) == {}


REFUSED = {
    "an unknown primitive": (lambda x: flat(jnp.linalg.qr(x)[0]), "lost in `qr`"),
    "a callback": (lambda x: flat(jax.pure_callback(np.sin, x, x)), "lost in `pure_callback`"),
    "a callback on the vector": (
        lambda x: jax.pure_callback(np.sin, flat(x), flat(x)),
        "through `pure_callback`",
    ),
    "a slice of the vector": (lambda x: jnp.tile(flat(x)[:, :30], (1, 2)), "through `slice`"),
    "a joined vector": (lambda x: jnp.concatenate([flat(x)[:, :30], jnp.ones((2, 30))], 1), "slice"),
    "branches that differ": (lambda x: jax.lax.cond(x.sum() > 0, flat, chw, x), "through `cond`"),
    "width before height": (lambda x: flat(x.swapaxes(1, 2)), "spatial axes in another order"),
    "tokens": (lambda x: flat(x.reshape(2, 20, 3)), "sequence"),
    "parts": (lambda x: flat(x.reshape(2, 2, 2, 5, 3).swapaxes(1, 2)), "parts of image axes"),
    "repeated rows": (lambda x: flat(jnp.repeat(x[:, :2], 2, 1)), "no known kind"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_be_told_is_refused_with_the_leaf_the_reason_and_the_remedy(way):
    flatten, reason = REFUSED[way]
    with pytest.raises(BindingError) as refusal:
        find(head(flatten), IMAGE)
    message = str(refusal.value)
    assert message.startswith('cannot tell torch\'s order of dimension 0 of "fc.kernel": ')
    assert reason in message and message.endswith('flatten={"fc": (C, H, W)}') and "\n" not in message


def test_a_leaf_that_the_caller_settles_is_neither_refused_nor_answered():
    assert find(head(REFUSED["tokens"][0]), IMAGE, settled={"fc.kernel"}) == {}


def test_axes_of_length_one_are_left_out():
    assert find(head(flat, 3), (2, 1, 1, 2)) == {}
    assert find(head(flat, 20, channels=1), IMAGE) == {}
    assert find(head(flat, 15), (2, 1, 5, 2)) == {"fc.kernel": {0: "(w c) -> (c w)"}}
    assert find(head(flat, 60), (1, 4, 5, 2)) == {"fc.kernel": {0: HWC}}


def test_the_sizes_are_those_of_the_axes():
    function, leaves = leaves_of(head(flat))
    merged = find_flattens(function, leaves, *shaped(IMAGE))["fc.kernel"][0]
    assert merged == Merged((("h", 4), ("w", 5), ("c", 3)), ("c", "h", "w"))
    assert merged.prefixed("in_").left == "(in_h in_w in_c)" and merged.sizes == {"h": 4, "w": 5, "c": 3}
