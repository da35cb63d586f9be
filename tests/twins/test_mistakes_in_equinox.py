"""Mistakes in a ResNet and a vision transformer in Equinox: the report names the layer and the cause."""

import functools
import importlib
import re

import jax
import numpy as np
import pytest

pytest.importorskip("transformers")
eqx = pytest.importorskip("equinox")

from twin import randomized  # noqa: E402

import jaxstate as js  # noqa: E402

BATCH = dict(axis_name="batch", in_axes=(0, None), out_axes=(0, None))
ONE, SHORT = "resnet.encoder.stages.1.layers.0.layer.1", "resnet.encoder.stages.1.layers.0.shortcut"
QUERY, AFTER = "vit.layers.1.attention.q_proj", "vit.layers.0.layernorm_after"


@functools.cache
def made(name):
    """A right twin: torch's module, the model with its weights, its binding, and how both are called."""
    twin = importlib.import_module(name).TWIN
    theirs = randomized(twin.theirs())
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(twin.ours), jax.random.key(0))
    template = (model, state) if jax.tree.leaves(state) else model
    binding = js.bind(template, **twin.options)
    (x,) = twin.inputs.values()
    options = dict(binding=binding, call=evaluated, torch_call=lambda m, x: m(x).logits)
    return theirs, js.load_state_dict(template, theirs.state_dict(), binding), x, options


def evaluated(model, x):
    if not isinstance(model, tuple):
        return jax.vmap(model)(x)
    return jax.vmap(eqx.nn.inference_mode(model[0]), **BATCH)(x, model[1])[0]


def at(model, name):
    """The module of a name."""
    node = model[0] if isinstance(model, tuple) else model
    for part in name.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    return node


def set_to(name, **attributes):
    """A layer that is set otherwise; settings are static, so on a copy."""

    def make(model, entries, binding):
        copy = jax.tree.map(lambda leaf: leaf, model)
        for attribute, value in attributes.items():
            object.__setattr__(at(copy, name), attribute, value)
        return copy

    return make


def holding(key, change):
    """Other weights under one key."""

    def make(model, entries, binding):
        return js.load_state_dict(model, {**entries, key: change(entries[key])}, binding)

    return make


RESNET = [
    ("eps", set_to(f"{ONE}.normalization", eps=1e-3), f"{ONE}.normalization", "eps 0.001"),
    ("padding", set_to(f"{ONE}.convolution", padding=((2, 0), (0, 2))), f"{ONE}.convolution", "padding"),
    ("SAME", set_to("resnet.embedder.embedder.convolution", padding="SAME"), "convolution", "padding SAME"),
    ("mode", set_to(f"{ONE}.convolution", padding_mode="CIRCULAR"), f"{ONE}.convolution", "mode circular"),
    ("flipped", holding(f"{ONE}.convolution.weight", lambda a: a[..., ::-1, ::-1]), ONE, "flipped"),
    ("swapped", holding(f"{ONE}.convolution.weight", lambda a: np.swapaxes(a, 0, 1)), ONE, "inputs and out"),
    (
        "variance",
        holding(f"{SHORT}.normalization.running_var", lambda a: a[::-1]),
        f"{SHORT}.normalization",
        "running_var",
    ),
]
VIT = [
    ("eps", set_to(AFTER, eps=1e-3), AFTER, "eps 0.001"),
    ("transposed", holding(f"{QUERY}.weight", lambda a: a.T), QUERY, "transposed"),
    ("no bias", set_to(QUERY, bias=None), QUERY, "zero everywhere"),
    ("zero bias", holding(f"{QUERY}.bias", np.zeros_like), QUERY, "zero everywhere"),
    ("the last", holding("classifier.bias", np.zeros_like), "classifier", "classifier.bias"),
]
CASES = [
    *(("resnet_in_equinox", *case) for case in RESNET),
    *(pytest.param("vit_in_equinox", *case, marks=pytest.mark.slow) for case in VIT),
]


def report_of(name, change=None, **options):
    theirs, model, x, known = made(name)
    entries = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    spoiled = model if change is None else change(model, entries, known["binding"])
    with pytest.raises(js.ParityError) as caught:
        js.testing.assert_same_outputs(theirs, spoiled, x, **{**known, **options})
    return str(caught.value)


@pytest.mark.parametrize(("name", "what", "change", "place", "cause"), CASES, ids=lambda c: str(c)[:24])
def test_the_report_names_layer_and_cause(name, what, change, place, cause):
    report = report_of(name, change)
    first = next(line for line in report.splitlines() if "first layer that differs" in line)
    assert place in first.partition("in JAX")[0], report
    assert re.search(f"cause: JAX .*{re.escape(cause)}", report), report
    assert "mend:" in report


@pytest.mark.slow
def test_the_other_gelu(monkeypatch):
    exact = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate=True: exact(x, approximate=True))
    report = report_of("vit_in_equinox")
    assert 'after "vit.layers.0.mlp.fc1", which agrees, what "vit.layers.0.mlp.fc2"' in report
    assert "gelu, approximated by tanh where torch" in report
    assert "nnx.gelu" not in report and "mend:  jax.nn.gelu(x, approximate=False)" in report


@pytest.mark.parametrize(
    ("name", "place"),
    [("resnet_in_equinox", ONE), pytest.param("vit_in_equinox", QUERY, marks=pytest.mark.slow)],
)
def test_right_twins_agree_layer_by_layer_also_where_they_are_jitted(name, place):
    theirs, model, x, known = made(name)
    jitted = eqx.filter_jit(known["call"])
    js.testing.assert_same_outputs(theirs, model, x, **known | {"call": jitted})
    table = js.testing.compare(theirs, model, x, **known | {"call": jitted})
    assert len(table.rows) > 20 and not table.unpaired
    assert max(row.distance.relative for row in table.rows) < 2e-6
    assert "noted" not in f"{eqx.nn.Linear.__call__} {type(at(model, place)).__call__}"
