"""The same architectures in Flax Linen and in Equinox, against the same modules of transformers."""

import importlib

import jax
import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
eqx = pytest.importorskip("equinox")

from twin import randomized  # noqa: E402

import jaxstate as js  # noqa: E402


def of_linen(twin, sd):
    """The binding, the variables with torch's weights, and what they compute."""
    model, inputs = twin.ours(), tuple(map(jax.numpy.asarray, twin.inputs.values()))
    binding = js.bind(model, *inputs, like=sd, **twin.options)
    template = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    variables = js.load_state_dict(template, sd, binding)
    return binding, variables, jax.jit(model.apply)(variables, *inputs)


def of_equinox(twin, sd):
    """The same of a model, or of a model with its State, that takes one of the batch at a time."""
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(twin.ours), jax.random.key(0))
    template = (model, state) if jax.tree.leaves(state) else model
    binding = js.bind(template, like=sd, **twin.options)
    loaded = js.load_state_dict(template, sd, binding)
    (x,) = twin.inputs.values()
    if not isinstance(loaded, tuple):
        return binding, loaded, eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(loaded, x)
    model, state = eqx.nn.inference_mode(loaded[0]), loaded[1]
    return binding, loaded, eqx.filter_jit(_batched)(model, x, state)


def _batched(model, x, state):
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)[0]


@pytest.mark.parametrize(
    ("name", "rules", "make"),
    [
        ("bert_in_linen", 0, of_linen),
        ("resnet_in_linen", 0, of_linen),
        ("vit_in_equinox", 2, of_equinox),
        ("resnet_in_equinox", 0, of_equinox),
    ],
)
def test_a_twin_of_another_library_is_torchs(name, rules, make):
    twin = importlib.import_module(name).TWIN
    theirs = randomized(twin.theirs())
    sd = theirs.state_dict()
    binding, model, found = make(twin, sd)
    with torch.no_grad():
        expected = twin.reference(theirs, **{k: torch.from_numpy(v) for k, v in twin.inputs.items()}).numpy()
    assert sum(map(len, twin.options.values())) == rules <= 5
    assert found.shape == expected.shape and expected.std() > 0.02
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()
    written = js.state_dict(model, binding)
    assert list(written) == list(sd)
    assert all(written[key].tobytes() == tensor.numpy().tobytes() for key, tensor in sd.items())
