"""Mistakes of functions that several twins call: what stands in their place, and where each is used first."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def _heads_innermost(x: Any, count: int) -> Any:
    return jnp.swapaxes(x.reshape(*x.shape[:-1], -1, count), -1, -2)


def _unscaled(query: Any, key: Any, value: Any, bias: Any = 0.0, scale: float | None = None) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) + bias)
    found = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return found.reshape(*found.shape[:-2], -1)


def _interleaved(x: Any) -> Any:
    """Rotary positions that turn neighbours."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


GELU = jax.nn.gelu
PATCHES = [
    (
        "the other gelu",
        "jax.nn.gelu",
        lambda x, approximate=True: GELU(x, approximate=not approximate),
        "gelu",
    ),
    ("relu for gelu", "jax.nn.gelu", lambda x, approximate=True: jax.nn.relu(x), "relu where torch"),
    ("gelu for silu", "jax.nn.silu", lambda x: GELU(x, approximate=False), "gelu where torch"),
    ("no activation", "jax.nn.relu", lambda x: x, "nothing where torch"),
    ("no activation", "flax.nnx.relu", lambda x: x, "nothing where torch"),
    ("another number of heads", "{}_twin.HEADS", 4, "into 4 heads"),
    ("heads split innermost", "{}_twin.heads", _heads_innermost, "depth, heads"),
    ("logits not scaled", "{}_twin.attend", _unscaled, "does not scale|operand of torch's mul"),
    ("no causal mask", "{}_twin.causal", lambda length: 0.0, "attends to everything"),
    ("rotary of neighbours", "{}_twin.rotary", _interleaved, "rotary"),
    ("no rotary", "{}_twin.rotary", lambda x: x, "rotary"),
    ("the mean for the maximum", "flax.nnx.max_pool", nnx.avg_pool, "avg_pool2d where torch"),
]
FIRST = {  # where a function is used first
    "attention": {
        "gpt2": "transformer.h.0.attn.c_proj",
        "llama": "model.layers.0.self_attn.o_proj",
        "bert": "bert.encoder.layer.0.attention.output.dense",
        "vit": "vit.layers.0.attention.o_proj",
        "whisper": "model.encoder.layers.0.self_attn.out_proj",
        "t5": "encoder.block.0.layer.0.SelfAttention.o",
        "bloom": "transformer.h.0.self_attention.dense",
    },
    "causal": {
        "gpt2": "transformer.h.0.attn.c_proj",
        "llama": "model.layers.0.self_attn.o_proj",
        "whisper": "model.decoder.layers.0.self_attn.out_proj",
        "t5": "decoder.block.0.layer.0.SelfAttention.o",
        "bloom": "transformer.h.0.self_attention.dense",
    },
    "gelu": {
        "gpt2": "transformer.h.0.mlp.c_proj",
        "bert": "bert.encoder.layer.0.output.dense",
        "vit": "vit.layers.0.mlp.fc2",
        "convnext": "convnext.encoder.stages.0.layers.0.pwconv2",
        "whisper": "model.encoder.conv2",
        "bloom": "transformer.h.0.mlp.dense_4h_to_h",
    },
    "silu": {"llama": "model.layers.0.mlp.down_proj"},
    "relu": {
        "t5": "encoder.block.0.layer.1.DenseReluDense.wo",
        "unet": "down1.conv2",
        "resnet": "resnet.encoder.stages.0.layers.0.layer.0.convolution",
    },
    "rotary": {"llama": "model.layers.0.self_attn.o_proj"},
    "pool": {"unet": "down2.conv1", "resnet": "resnet.encoder.stages.0.layers.0.layer.0.convolution"},
}
USED = {
    "the other gelu": "gelu",
    "relu for gelu": "gelu",
    "gelu for silu": "silu",
    "no activation": "relu",
    "another number of heads": "attention",
    "heads split innermost": "attention",
    "logits not scaled": "attention",
    "no causal mask": "causal",
    "rotary of neighbours": "rotary",
    "no rotary": "rotary",
    "the mean for the maximum": "pool",
}
PLACES = {
    (family, name): (place,)
    for family, kind in USED.items()
    for name, place in FIRST[kind].items()
    if not (name == "t5" and family in ("another number of heads", "logits not scaled"))  # T5 scales nothing
    and not (name in ("llama", "bloom") and family == "another number of heads")  # they have four
}
