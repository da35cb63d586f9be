"""Real architectures, small: torch's file in, torch's outputs out, and the file back bit for bit."""

import importlib

import numpy as np
import pytest
import torch
from flax import nnx
from twin import built, randomized

import jaxstate as js

PLAIN = ["tagger", "unet"]
OF_TRANSFORMERS = ["gpt2", "llama", "bert", "vit", "resnet", "convnext", "t5", "whisper", "bloom"]


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
