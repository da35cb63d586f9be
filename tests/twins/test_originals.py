"""bind(original=...) with models of transformers: nothing is claimed of a right twin, any other eps is."""

import copy
import importlib

import equinox as eqx
import jax
import pytest
import torch
from flax import nnx

pytest.importorskip("transformers")

from twin import built  # noqa: E402

import jaxstate as js  # noqa: E402

NORMS = (nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm)


def original(twin):
    """Without any weights in memory."""
    with torch.device("meta"):
        return twin.theirs().eval()


def warnings(twin, template, *inputs, of):
    found = js.bind(template, *inputs, original=of, **twin.options).warnings
    return [line for line in found if ": momentum " not in line]  # which the twins leave as Flax has it


def norms(model):
    return {".".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, NORMS)}


def count(line):
    """How many layers a sentence names."""
    first, _, more = line.partition(":")[0].partition(" and ")
    return len(first.split(", ")) + int(more.split()[0] if more else 0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "convnext"])
def test_of_a_right_twin_nothing_and_of_another_eps_each(name):
    twin = importlib.import_module(f"{name}_twin").TWIN
    theirs, template = original(twin), built(twin.ours)
    assert warnings(twin, template, of=theirs) == []
    found = norms(template)
    last = list(found)[-1]
    found[last].epsilon = 0.125
    (line,) = warnings(twin, template, of=theirs)
    assert line.startswith(f"{last}: eps 0.125 against ") and "(..., epsilon=" in line
    for norm in found.values():
        norm.epsilon = 0.125
    lines = warnings(twin, template, of=theirs)
    assert all(": eps 0.125 against" in line for line in lines)
    assert sum(map(count, lines)) == len(found)


KEYS = {"gpt2": "layer_norm_epsilon=1e-05", "llama": "rms_norm_eps=", "t5": "layer_norm_epsilon="}


@pytest.mark.parametrize("name", KEYS)
def test_a_config_knows_what_no_norm_has(name):
    twin = importlib.import_module(f"{name}_twin").TWIN
    config, template = original(twin).config, built(twin.ours)
    for known in (config, config.to_dict()):
        assert warnings(twin, template, of=known) == []
    for norm in norms(template).values():
        norm.epsilon = 0.125
    (line,) = warnings(twin, template, of=config)
    assert f": eps 0.125 against {KEYS[name]}" in line and "epsilon=" in line


def test_a_config_makes_no_claim_of_norms_that_it_does_not_configure():
    """ConvNext's own norms have an eps that no config names; the last one's is configured."""
    twin = importlib.import_module("convnext_twin").TWIN
    (line,) = warnings(twin, built(twin.ours), of=original(twin).config)
    assert line.startswith("not compared: convnext.embeddings.layernorm, ")


def test_a_twin_in_linen():
    twin = importlib.import_module("bert_in_linen").TWIN
    inputs = tuple(map(jax.numpy.asarray, twin.inputs.values()))
    theirs = original(twin)
    assert warnings(twin, twin.ours(), *inputs, of=theirs) == []
    other = copy.deepcopy(theirs.config)
    other.hidden_act, other.layer_norm_eps = "gelu_new", 1e-3
    (line,) = warnings(twin, twin.ours(), *inputs, of=other)  # a tanh of its own hides which GELU it has not
    assert "eps 1e-12 against layer_norm_eps=0.001; mend: LayerNorm(..., epsilon=0.001)" in line


@pytest.mark.parametrize(("name", "mode"), [("vit_in_equinox", False), ("resnet_in_equinox", True)])
def test_twins_in_equinox(name, mode):
    twin = importlib.import_module(name).TWIN
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(twin.ours), jax.random.key(0))
    pair = lambda model: (model, state) if jax.tree.leaves(state) else model  # noqa: E731
    assert warnings(twin, pair(eqx.nn.inference_mode(model)), of=original(twin)) == []
    assert bool(warnings(twin, pair(model), of=original(twin))) == mode
