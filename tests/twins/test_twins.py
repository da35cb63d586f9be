"""Real architectures, small: torch's file in, torch's outputs out, and the file back bit for bit."""

import importlib
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from flax import nnx
from twin import built, randomized

import jaxstate as js

PLAIN = ["tagger", "unet"]
OF_TRANSFORMERS = [
    "gpt2",
    "llama",
    "bert",
    "vit",
    "resnet",
    "convnext",
    "t5",
    "whisper",
    "bloom",
    "phi3",
    "wav2vec2",
]


def rules_by_hand(twin):
    return len(twin.options.get("rules", ())) + len(twin.options.get("rename", ()))


@pytest.mark.parametrize("name", [*PLAIN, *OF_TRANSFORMERS])
def test_a_twin_is_torchs(name):
    if name in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    twin = importlib.import_module(f"{name}_twin").TWIN
    theirs = randomized(twin.theirs())
    sd = theirs.state_dict()
    template = built(twin.ours)
    binding = js.bind(template, like=sd, **twin.options)
    model = js.load_state_dict(template, sd, binding)
    assert rules_by_hand(twin) <= 5
    written = js.state_dict(model, binding)  # a WeightNorm that is called forgets how long its directions are
    _assert_same_outputs(twin, theirs, model)
    _assert_same_file(written, theirs)


def test_a_rule_for_all_layers_leaves_each_in_its_place():
    """The order of the keys is that of an optimizer's ids."""
    pytest.importorskip("transformers")
    twin = importlib.import_module("phi3_twin").TWIN
    keys = [key for key in js.bind(built(twin.ours), **twin.options).keys if ".layers." in key]
    assert keys == sorted(keys, key=lambda key: key.split(".")[2])
    own = [key.split(".", 3)[3] for key in keys[:6]]
    assert own[:2] == ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"]
    assert own[2:4] == ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]


def test_the_error_without_rules_says_those_that_the_twin_has():
    pytest.importorskip("transformers")
    twin = importlib.import_module("phi3_twin").TWIN
    file, template = twin.theirs().state_dict(), built(twin.ours)
    with pytest.raises(js.StateDictError) as caught:
        js.bind(template, like=file)
    said = [line.split("rules=")[1] for line in str(caught.value).splitlines() if "rules=" in line]
    rules = [rule for line in said for rule in eval(line, vars(js))]
    found, expected = js.bind(template, like=file, rules=rules), js.bind(template, like=file, **twin.options)
    assert len(rules) == 4 and found.keys == expected.keys and found.shapes == expected.shapes
    leaves = expected.leaves(file)
    assert all(np.array_equal(x, leaves[path]) for path, x in found.leaves(file).items())


def test_a_vocabulary_that_transformers_has_padded():
    """Its new rows hold numbers, and the head is tied to them."""
    pytest.importorskip("transformers")
    twin = importlib.import_module("gpt2_twin").TWIN
    shared, template = twin.theirs(), built(twin.ours)
    theirs = randomized(type(shared)(deepcopy(shared.config)))  # transformers writes into the config
    theirs.resize_token_embeddings(pad_to_multiple_of=16, mean_resizing=False)
    sd = theirs.state_dict()
    with pytest.raises(js.StateDictError, match="If the file is padded along v from 11 on") as caught:
        js.bind(template, like=sd)
    (rule,) = eval(str(caught.value).split("rules=")[1], vars(js))
    with pytest.raises(
        js.StateDictError, match="v 11:16, is not 0.0 everywhere; if it may be left out, bind"
    ):
        js.bind(template, rules=[rule], like=sd)
    binding = js.bind(template, rules=[replace(rule, drop=True)], like=sd)
    model = js.load_state_dict(template, sd, binding)
    twin = replace(twin, reference=lambda model, **inputs: model(**inputs).logits[..., :11])
    _assert_same_outputs(twin, theirs, model)
    _assert_same_file(js.state_dict(model, binding), theirs)


def _assert_same_outputs(twin, theirs, model):
    with torch.no_grad():
        expected = twin.reference(theirs, **{k: torch.from_numpy(v) for k, v in twin.inputs.items()}).numpy()
    found = np.asarray(nnx.jit(twin.call)(model, *twin.inputs.values()))
    scale = np.abs(expected).max()
    assert found.shape == expected.shape and expected.std() > 0.02
    assert np.abs(found - expected).max() <= 1e-5 * scale


def _assert_same_file(written, theirs):
    sd = theirs.state_dict()
    assert list(written) == list(sd) and written._metadata == sd._metadata
    assert all(written[key].tobytes() == tensor.numpy().tobytes() for key, tensor in sd.items())
    tensors = {key: torch.from_numpy(array) for key, array in written.items()}
    assert str(theirs.load_state_dict(tensors)) == "<All keys matched successfully>"
