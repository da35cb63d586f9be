"""Files of the same architectures under the names that others gave them: paired rightly, or asked for."""

import importlib
import re
from collections import OrderedDict

import pytest

import jaxstate as js

pytest.importorskip("transformers")

from twin import built, randomized  # noqa: E402

BERT_OF_2018 = [
    (r"LayerNorm\.weight", "LayerNorm.gamma"),
    (r"LayerNorm\.bias", "LayerNorm.beta"),
]
VIT_OF_2020 = [
    (r"^vit\.layers", "vit.encoder.layer"),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]
RESNET_OF_TORCHVISION = [
    (r"^resnet\.embedder\.embedder\.convolution", "conv1"),
    (r"^resnet\.embedder\.embedder\.normalization", "bn1"),
    (r"^resnet\.encoder\.stages\.0\.layers", "layer1"),
    (r"^resnet\.encoder\.stages\.1\.layers", "layer2"),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"layer\.0\.convolution", "conv1"),
    (r"layer\.0\.normalization", "bn1"),
    (r"layer\.1\.convolution", "conv2"),
    (r"layer\.1\.normalization", "bn2"),
    (r"^classifier\.1", "fc"),
]
LLAMA_OF_META = [
    (r"^model\.", ""),
    (r"embed_tokens", "tok_embeddings"),
    (r"self_attn\.([qkvo])_proj", r"attention.w\1"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"lm_head", "output"),
]
WHISPER_OF_OPENAI = [
    (r"^model\.", ""),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"\.layers\.", ".blocks."),
    (r"self_attn\.([kqv])_proj", r"attn.\1"),
    (r"encoder_attn\.([kqv])_proj", r"cross_attn.\1"),
    (r"attn\.q\.", "attn.query."),
    (r"attn\.k\.", "attn.key."),
    (r"attn\.v\.", "attn.value."),
    (r"self_attn\.out_proj", "attn.out"),
    (r"encoder_attn\.out_proj", "cross_attn.out"),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"final_layer_norm", "mlp_ln"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
    (r"^encoder\.layer_norm", "encoder.ln_post"),
    (r"^decoder\.layer_norm", "decoder.ln"),
]
GPT2_COMPILED = [(r"^", "_orig_mod.")]


def renamed(key, names):
    for pattern, other in names:
        key = re.sub(pattern, other, key)
    return key


def case(name, names):
    """The twin, its file under other names, and for each of its keys the other one."""
    twin = importlib.import_module(f"{name}_twin").TWIN
    sd = randomized(twin.theirs()).state_dict()
    truth = {key: renamed(key, names) for key in sd}
    return twin, OrderedDict((truth[key], array) for key, array in sd.items()), truth


CASES = {  # the names, and how many lines the error asks for: of torch's file, and of one that is sorted
    "bert": (BERT_OF_2018, 0, 0),
    "gpt2": (GPT2_COMPILED, 0, 0),
    "vit": (VIT_OF_2020, 2, 2),
    "resnet": (RESNET_OF_TORCHVISION, 0, 5),
    "llama": (LLAMA_OF_META, 3, 5),
}
SAID = {  # what answers the questions
    "vit": {
        f"vit.layers.{{i}}.mlp.fc{n}": f"vit.encoder.layer.{{i}}.{x}.dense"
        for n, x in ((1, "intermediate"), (2, "output"))
    },
    "llama": {
        f"model.layers.{{i}}.{ours}": f"layers.{{i}}.{theirs}"
        for ours, theirs in (
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        )
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_file_by_other_names_is_paired_as_it_should_or_asked_for(name, ordered):
    names, *lines = CASES[name]
    twin, file, truth = case(name, names)
    if not ordered:
        file = OrderedDict(sorted(file.items()))
        file.__metadata__ = {}
    model = built(twin.ours)
    alignment = js.align(model, file, js.bind(model, **twin.options))
    assert {p.key: p.file_key for p in alignment.pairs}.items() <= truth.items()
    asked = lines[not ordered]
    assert len(alignment.problems) == asked and bool(alignment) == (asked == 0)


@pytest.mark.parametrize("name", CASES)
def test_what_was_said_and_what_was_paired_load_the_same_weights(name):
    twin, file, truth = case(name, CASES[name][0])
    model = built(twin.ours)
    binding = js.bind(model, like=file, rename=SAID.get(name), **twin.options)
    assert list(js.state_dict(js.load_state_dict(model, file, binding), binding)) == list(file)
    plain = js.bind(model, **twin.options)
    again = js.state_dict(js.load_state_dict(model, file, binding), plain)
    again = {key: array for key, array in again.items() if not key.endswith("num_batches_tracked")}
    assert all(array.tobytes() == file[truth[key]].numpy().tobytes() for key, array in again.items())


def test_the_norm_before_attention_is_not_that_behind_it():
    """Meta's attention_norm comes before the attention, transformers' post_attention_layernorm after it."""
    twin, file, _ = case("llama", LLAMA_OF_META)
    with pytest.raises(
        js.StateDictError, match="post_attention_layernorm.* may be .*attention_norm.*ffn_norm"
    ):
        js.bind(built(twin.ours), like=file)


def test_a_head_that_the_file_lacks_and_parameters_of_another_kind():
    """OpenAI's file has no head beside the embedding, and positions that are no Embedding."""
    twin, file, truth = case("whisper", WHISPER_OF_OPENAI)
    del file[truth["proj_out.weight"]]
    model, places = built(twin.ours), {p: f"{p}.positional_embedding" for p in ("encoder", "decoder")}
    said = {f"model.{p}.embed_positions.weight": to for p, to in places.items()}
    alignment = js.align(model, file)
    assert {p.key: p.file_key for p in alignment.pairs}.items() <= truth.items()
    assert {*alignment.unexpected_keys} >= {*places.values()}
    said["model.encoder.layer_norm"] = "encoder.ln_post"
    binding = js.bind(model, rename=said, like=file)
    loaded = js.state_dict(js.load_state_dict(model, file, binding), binding)
    assert loaded["proj_out.weight"].tobytes() == file["decoder.token_embedding.weight"].numpy().tobytes()
    assert set(loaded) == {*file, "proj_out.weight"}
