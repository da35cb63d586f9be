"""Suspicion on the layer lists of well-known architectures."""

import pytest

from jaxstate.adapters._suspicion import Layer, Suspect, suspects


def chain(*layers):
    """Layers from (kind, in, out), named by kind and place."""
    return [Layer(f"{kind}{i}", kind, n_in, n_out) for i, (kind, n_in, n_out) in enumerate(layers)]


def names(*layers):
    return [suspect.name for suspect in suspects(chain(*layers))]


RECIPE = (("conv", 3, 6), ("conv", 6, 16), ("linear", 400, 120), ("linear", 120, 84), ("linear", 84, 10))
ATTENTION_BLOCK = (("norm", 384, 384), ("attention", 384, 384), ("norm", 384, 384))
MLP = (("linear", 384, 1536), ("linear", 1536, 384))


def test_the_recipe_cnn_is_suspected_at_its_first_linear_with_the_numbers_to_ask_for():
    assert suspects(chain(*RECIPE)) == (Suspect("linear2", "conv1", 16, 25),)


def test_vgg_is_suspected_once():
    classifier = (("linear", 512 * 49, 4096), ("linear", 4096, 4096), ("linear", 4096, 1000))
    assert names(("conv", 3, 64), ("conv", 64, 512), *classifier) == ["linear2"]


def test_every_head_that_reads_the_flattened_image_is_named():
    assert names(("conv", 3, 16), ("linear", 400, 20), ("linear", 400, 20)) == ["linear1", "linear2"]


def test_a_layer_for_other_inputs_does_not_hide_the_flatten():
    assert names(("conv", 3, 16), ("linear", 3, 64), ("linear", 400, 64)) == ["linear2"]


def test_a_norm_on_the_flattened_vector_does_not_hide_it():
    assert names(("conv", 3, 6), ("norm", 6, 6), ("conv", 6, 16), ("norm", 400, 400), ("linear", 400, 9)) == [
        "linear4"
    ]


def test_a_recurrent_reader_of_the_flattened_frequencies_is_suspected():
    assert names(("conv", 1, 64), ("conv", 64, 64), ("recurrent", 64 * 20, 256)) == ["recurrent2"]


def test_a_conv_and_transformer_speech_encoder_is_suspected_at_its_subsampling_only():
    blocks = (*ATTENTION_BLOCK, *MLP, ("conv", 384, 384), ("norm", 384, 384), *MLP) * 2
    assert names(("conv", 1, 384), ("conv", 384, 384), ("linear", 384 * 19, 384), *blocks) == ["linear2"]


def test_a_generator_is_suspected_at_the_layer_that_makes_the_image():
    layers = (("linear", 100, 256 * 49), ("norm", 256 * 49, 256 * 49), ("conv", 256, 128), ("conv", 128, 1))
    assert suspects(chain(*layers)) == (Suspect("linear0", "conv2", 256, 49),)


GLOBALLY_POOLED = {
    "resnet": (
        ("conv", 3, 64),
        ("conv", 64, 512),
        ("conv", 256, 512),
        ("norm", 512, 512),
        ("linear", 512, 1000),
    ),
    "vit": (("conv", 3, 384), *(*ATTENTION_BLOCK, *MLP) * 2, ("norm", 384, 384), ("linear", 384, 10)),
    "vit with fused qkv": (
        ("conv", 3, 384),
        *(("norm", 384, 384), ("linear", 384, 1152), ("linear", 384, 384), *MLP) * 2,
        ("linear", 384, 10),
    ),
    "gated mlp": (("conv", 3, 384), *ATTENTION_BLOCK, ("linear", 384, 3072), ("linear", 1536, 384)),
    "concatenated class token": (("conv", 3, 384), *ATTENTION_BLOCK, *MLP, ("linear", 768, 10)),
    "convnext": (
        ("conv", 3, 96),
        *(("conv", 96, 96), ("norm", 96, 96), ("linear", 96, 384), ("linear", 384, 96)) * 3,
        ("conv", 96, 192),
        *(("conv", 192, 192), ("norm", 192, 192), ("linear", 192, 768), ("linear", 768, 192)) * 3,
        ("norm", 192, 192),
        ("linear", 192, 1000),
    ),
    "unet": (("conv", 3, 64), ("conv", 64, 128), ("conv", 128, 64), ("conv", 128, 64), ("conv", 64, 2)),
    "unet with time": (
        ("conv", 3, 320),
        ("linear", 320, 1280),
        ("linear", 1280, 1280),
        *(("norm", 320, 320), ("conv", 320, 320), ("linear", 1280, 320), ("conv", 320, 320)) * 2,
    ),
    "scale and shift": (("linear", 128, 640), ("linear", 640, 640), ("conv", 320, 320), ("linear", 640, 640)),
    "lstm": (("embedding", 1000, 64), ("recurrent", 64, 128), ("linear", 128, 1000)),
    "wave encoder": (("conv", 1, 512), ("conv", 512, 512), ("norm", 512, 512), ("linear", 512, 768), *MLP),
    "squeeze and excitation": (("conv", 16, 96), ("linear", 96, 24), ("linear", 24, 96), ("conv", 96, 24)),
    "densenet": (
        ("conv", 3, 64),
        ("norm", 64, 64),
        *(("conv", 64, 32), ("norm", 96, 96), ("conv", 96, 128), ("norm", 128, 128), ("conv", 128, 32)),
        *(("norm", 128, 128), ("linear", 128, 1000)),
    ),
    "one channel": (("conv", 3, 1), ("linear", 64, 10)),
}


@pytest.mark.parametrize("name", GLOBALLY_POOLED)
def test_a_model_that_does_not_flatten_is_not_suspected(name):
    assert names(*GLOBALLY_POOLED[name]) == []


def test_a_pooled_concatenation_whose_width_is_a_multiple_is_suspected_for_want_of_a_difference():
    assert names(("conv", 832, 384), ("conv", 832, 128), ("linear", 1024, 1000)) == ["linear2"]
    assert names(("conv", 2048, 320), ("conv", 2048, 192), ("linear", 2048, 1000)) == []
