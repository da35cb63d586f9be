"""Mistakes that were written down after the reports were, and that no report was changed for.

What is found of these is what may be hoped for of a mistake that nobody thought of. A row is as in
`miscalls_of_one`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def capped(query, key, value, bias=0.0, scale=None):
    """Logits that tanh keeps small, as Gemma's are."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    found = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.tanh(logits) + bias), value)
    return found.reshape(*found.shape[:-2], -1)


def transposed(query, key, value, bias=0.0, scale=None):
    logits = jnp.einsum("bqhd,bkhd->bhkq", query, key) * query.shape[-1] ** -0.5
    found = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits + bias), value)
    return found.reshape(*found.shape[:-2], -1)


def windowed(length):
    near = jnp.tri(length, dtype=bool) & ~jnp.tri(length, k=-3, dtype=bool)
    return jnp.where(near, 0.0, -jnp.inf)


def gpt2_twice(self, x):
    x = x + self.attn(self.ln_1(x))
    return x + 2 * self.mlp(self.ln_2(x))


def gpt2(order=lambda h: h, last=lambda norm, x: norm(x)):
    def call(self, ids):
        x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))
        for block in order(list(self.h)):
            x = block(x)
        return last(self.ln_f, x)

    return call


def bert_no_activation(self, x):
    return self.LayerNorm(self.dense(x))


def bert_no_bias(self, x):
    return x @ self.weight[...].T


def without_mean(self, x):
    """A norm of the mean square where the mean is to be taken away."""
    scale = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.epsilon)
    return x * scale * self.scale[...] + self.bias[...]


def unbiased(self, x):
    y = x - x.mean(-1, keepdims=True)
    return y / jnp.sqrt(x.var(-1, ddof=1, keepdims=True) + self.epsilon) * self.scale[...] + self.bias[...]


def vit_patches(turn):
    def call(self, x):
        x = self.projection(jnp.moveaxis(turn(x), 1, -1))
        return x.reshape(x.shape[0], -1, x.shape[-1])

    return call


def llama_added(self, x):
    return self.down_proj(jax.nn.silu(self.gate_proj(x)) + self.up_proj(x))


def llama_late_keys(x):
    half, start = x.shape[-1] // 2, 0 if x.shape[-2] == 4 else 1
    angles = (jnp.arange(x.shape[1]) + start)[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def whisper_encoder(first, positions):
    def call(self, sound):
        x = first(self.conv1(jnp.moveaxis(sound, 1, -1)))
        x = jax.nn.gelu(self.conv2(x), approximate=False) + positions * self.embed_positions.embedding[...]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)

    return call


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def t5_both_ways(length, both):
    """Buckets of the encoder in the decoder too."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    near, count = np.abs(distance), 4
    ratio = np.log(np.maximum(near, 1) / 2) / np.log(16 / 2)
    far = np.minimum(2 + (ratio * 2).astype(int), count - 1)
    return (distance > 0) * count + np.where(near < 2, near, far)


def resnet_bare_shortcut(self, x):
    shortcut = self.shortcut.convolution(x) if hasattr(self, "shortcut") else x
    return nnx.relu(self.layer(x) + shortcut)


def convnext_doubled(self, x):
    y = self.pwconv1(self.layernorm(self.dwconv(x)))
    return 2 * x + self.layer_scale_parameter[...] * self.pwconv2(gelu(y))


def tagger_backwards(self, words):
    return self.tag(self.lstm(self.embedding(words[:, ::-1])))


def tagger_shared(self, words):
    """The forward half twice."""
    states = self.lstm(self.embedding(words))
    half = states[..., : states.shape[-1] // 2]
    return self.tag(jnp.concatenate([half, half], -1))


def bloom_bare(self, ids):
    x = self.word_embeddings(ids)
    for block in self.h:
        x = block(x)
    return self.ln_f(x)


def unet_no_last_activation(self, x):
    return self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))


HEAD, SHORT = "cls.predictions.transform", "resnet.encoder.stages.1.layers.0.shortcut"
HELD_OUT = {
    "gpt2": [
        ("logits capped", "attend", capped, "transformer.h.0.attn.c_proj", "tanh|cap"),
        ("a window", "causal", windowed, "transformer.h.0.attn.c_proj", "window|near|last 3"),
        ("the MLP twice", "Block.__call__", gpt2_twice, "transformer.h.1.ln_1", "2 times what"),
        (
            "blocks turned round",
            "Transformer.__call__",
            gpt2(order=lambda h: h[::-1]),
            "transformer.h.0.ln_1",
            "reads what .*, and torch what",
        ),
        (
            "a block left out",
            "Transformer.__call__",
            gpt2(order=lambda h: h[:-1]),
            "transformer.ln_f",
            "never calls|reads what .*, and torch what",
        ),
        (
            "the last norm twice",
            "Transformer.__call__",
            gpt2(last=lambda norm, x: norm(norm(x))),
            "transformer.ln_f",
            "again|twice|call 2",
        ),
    ],
    "bert": [
        (
            "queries and keys swapped",
            "attend",
            transposed,
            "bert.encoder.layer.0.attention.output.dense",
            "key, query",
        ),
        (
            "no activation in the head",
            "Transform.__call__",
            bert_no_activation,
            f"{HEAD}.LayerNorm",
            "nothing where|gelu",
        ),
        ("no bias in the head", "Decoder.__call__", bert_no_bias, "cls.predictions", "bias"),
        ("norms without a mean", None, without_mean, "bert.embeddings.LayerNorm", "mean"),
        ("norms of an unbiased variance", None, unbiased, "bert.embeddings.LayerNorm", "variance|unbiased"),
    ],
    "vit": [
        (
            "colours turned round",
            "Patches.__call__",
            vit_patches(lambda x: x[:, ::-1]),
            "vit.embeddings.patch_embeddings.projection",
            "channels|order",
        ),
        (
            "height for width",
            "Patches.__call__",
            vit_patches(lambda x: x.swapaxes(2, 3)),
            "vit.embeddings.patch_embeddings.projection",
            "axes|order",
        ),
        (
            "pixels of bytes",
            "Patches.__call__",
            vit_patches(lambda x: 255 * x),
            "vit.embeddings.patch_embeddings.projection",
            "255",
        ),
        ("queries and keys swapped", "attend", transposed, "vit.layers.0.attention.o_proj", "key, query"),
        ("logits capped", "attend", capped, "vit.layers.0.attention.o_proj", "tanh|cap"),
    ],
    "llama": [
        ("gate added", "MLP.__call__", llama_added, "model.layers.0.mlp.down_proj", r"silu .* \+ what"),
        ("keys one later", "rotary", llama_late_keys, "model.layers.0.self_attn.o_proj", "position"),
        ("a window", "causal", windowed, "model.layers.0.self_attn.o_proj", "window|near|last 3"),
    ],
    "t5": [
        (
            "buckets of both ways",
            "bucket",
            t5_both_ways,
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            "indices|bucket|reads",
        )
    ],
    "whisper": [
        (
            "no first activation",
            "Encoder.__call__",
            whisper_encoder(lambda x: x, 1),
            "model.encoder.conv2",
            "nothing where",
        ),
        (
            "positions twice",
            "Encoder.__call__",
            whisper_encoder(gelu, 2),
            "model.encoder.layers.0.self_attn_layer_norm",
            "2 times|positions",
        ),
    ],
    "bloom": [
        (
            "embeddings not normed",
            "Transformer.__call__",
            bloom_bare,
            "transformer.word_embeddings",
            "reads what|never",
        )
    ],
    "resnet": [
        ("a shortcut without its norm", "Block.__call__", resnet_bare_shortcut, SHORT, "never calls|what")
    ],
    "convnext": [
        (
            "residual doubled",
            "Layer.__call__",
            convnext_doubled,
            "convnext.encoder.stages.0.layers.0",
            "2 times|multipl",
        )
    ],
    "tagger": [
        ("words backwards", "Tagger.__call__", tagger_backwards, "embedding", "order|backwards"),
        ("one direction twice", "Tagger.__call__", tagger_shared, "tag", "forward.* joined with"),
    ],
    "unet": [
        ("no last activation", "Double.__call__", unet_no_last_activation, "down1.bn2", "nothing where")
    ],
}
