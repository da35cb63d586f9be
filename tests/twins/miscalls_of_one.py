"""Mistakes of what one twin calls with what: `__call__`s, and functions, of this twin alone.

A row is a family, a target, what stands there, where a report is to look, and a pattern of its cause.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from miscalls import attending


def gpt2_from_one(self, ids):
    x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]) + 1)
    for block in self.h:
        x = block(x)
    return self.ln_f(x)


def gpt2_without_last_norm(self, ids):
    x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))
    for block in self.h:
        x = block(x)
    return x


def gpt2_without_positions(self, ids):
    x = self.wte(ids)
    for block in self.h:
        x = block(x)
    return self.ln_f(x)


def bert_norm_first(self, x, residual):
    return self.LayerNorm(self.dense(x)) + residual


def bert_no_residual(self, x, residual):
    return self.LayerNorm(self.dense(x))


def bert_without_types(self, ids, types):
    return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(jnp.arange(ids.shape[1])))


def bert_scaled(self, ids, types):
    positions = self.position_embeddings(jnp.arange(ids.shape[1]))
    words = self.word_embeddings(ids) * words_scale(self.word_embeddings)
    return self.LayerNorm(words + positions + self.token_type_embeddings(types))


def words_scale(table):
    return table.embedding.shape[-1] ** 0.5


def bert_other_residual(self, x):
    """The MLP's residual from before the attention."""
    return self.output(self.intermediate(self.attention(x)), x)


def vit_mean(self, x):
    return self.classifier(self.vit(x).mean(1))


def vit_last(self, x):
    return self.classifier(self.vit(x)[:, -1])


def vit_token_last(self, x):
    token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, self.cls_token.shape[-1]))
    return jnp.concatenate([self.patch_embeddings(x), token], 1) + self.position_embeddings[...]


def vit_patches_by_columns(self, x):
    x = self.projection(jnp.moveaxis(x, 1, -1))
    return x.swapaxes(1, 2).reshape(x.shape[0], -1, x.shape[-1])


def llama_gates_swapped(self, x):
    return self.down_proj(self.gate_proj(x) * jax.nn.silu(self.up_proj(x)))


def llama_no_gate(self, x):
    return self.down_proj(jax.nn.silu(self.gate_proj(x)))


def rotary(base=10000.0, sign=1, start=0):
    def turn(x):
        half = x.shape[-1] // 2
        angles = sign * (jnp.arange(x.shape[1]) + start)[:, None] * base ** (-jnp.arange(half) / half)
        cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    return turn


def rotary_of_queries(x):
    return rotary()(x) if x.shape[-2] == 4 else x


def t5_without_bias(self, ids, memory=None):
    x = self.embed_tokens(ids)
    bias = jnp.where(jnp.tril(jnp.ones((ids.shape[1],) * 2, bool)), 0.0, -jnp.inf) if self.decoder else 0.0
    for layer in [layer for block in self.block for layer in block.layer]:
        x = layer(x, memory, bias)
    return self.final_layer_norm(x)


def t5_unscaled_head(self, ids, targets):
    return self.lm_head.attend(self.decoder(targets, self.encoder(ids)))


def t5_scaled(query, key, value, bias=0.0, scale=None):
    return attending()(query, key, value, bias)


def whisper_early_memory(self, sound):
    x = jax.nn.gelu(self.conv1(jnp.moveaxis(sound, 1, -1)), approximate=False)
    x = jax.nn.gelu(self.conv2(x), approximate=False) + self.embed_positions.embedding[...]
    for layer in self.layers:
        x = layer(x)
    return x


def whisper_other_residual(self, x, memory):
    normed = self.self_attn_layer_norm(x)
    x = normed + self.self_attn(normed, normed, jnp.where(jnp.tri(x.shape[1]) > 0, 0.0, -jnp.inf))
    return self.feed(x + self.encoder_attn(self.encoder_attn_layer_norm(x), memory))


def whisper_memory_of_itself(self, x, memory):
    normed = self.self_attn_layer_norm(x)
    x = x + self.self_attn(normed, normed, jnp.where(jnp.tri(x.shape[1]) > 0, 0.0, -jnp.inf))
    normed = self.encoder_attn_layer_norm(x)
    return self.feed(x + self.encoder_attn(normed, normed))


def resnet_no_residual(self, x):
    return nnx.relu(self.layer(x))


def resnet_relu_before_sum(self, x):
    return nnx.relu(self.layer(x)) + (self.shortcut(x) if hasattr(self, "shortcut") else x)


def resnet_maximum(self, x):
    return self.encoder(self.embedder(x)).max((1, 2))


def convnext_no_scale(self, x):
    y = self.pwconv1(self.layernorm(self.dwconv(x)))
    return x + self.pwconv2(jax.nn.gelu(y, approximate=False))


def convnext_norm_first(self, x):
    y = self.pwconv1(self.dwconv(self.layernorm(x)))
    return x + self.layer_scale_parameter[...] * self.pwconv2(jax.nn.gelu(y, approximate=False))


def convnext_maximum(self, x):
    return self.layernorm(self.encoder(self.embeddings(jnp.moveaxis(x, 1, -1))).max((1, 2)))


def unet_skips_last(self, x):
    pool = lambda x: nnx.max_pool(x, (2, 2), (2, 2))  # noqa: E731
    first = self.down1(jnp.moveaxis(x, 1, -1))
    second = self.down2(pool(first))
    x = self.up2(self.bottom(pool(second)))
    x = self.up1(self.merge2(jnp.concatenate([x, second], -1)))
    return jnp.moveaxis(self.out(self.merge1(jnp.concatenate([x, first], -1))), -1, 1)


def unet_norm_after_relu(self, x):
    return self.bn2(nnx.relu(self.conv2(self.bn1(nnx.relu(self.conv1(x))))))


def tagger_summed(self, words):
    states = self.lstm(self.embedding(words))
    half = states.shape[-1] // 2
    return self.tag(jnp.concatenate([states[..., half:], states[..., :half]], -1))


def bloom_slopes(first=1, sign=1.0):
    """Slopes that count from another number, or grow with the distance."""

    def slopes(length):
        rates = sign * 2.0 ** (-8 * (jnp.arange(4) + first) / 4)
        return rates[:, None, None] * (jnp.arange(length)[None, :] - jnp.arange(length)[:, None])

    return slopes


def bloom_blocks(x):
    """All queries, then all keys, then all values."""
    return [part.reshape(*part.shape[:-1], 4, -1) for part in jnp.split(x, 3, -1)]


BLOOM = "transformer.h.0.self_attention.dense"
OWN = {
    "gpt2": [
        (
            "positions from one",
            "Transformer.__call__",
            gpt2_from_one,
            "transformer.wpe",
            "indices that are 1 more",
        ),
        (
            "no last norm",
            "Transformer.__call__",
            gpt2_without_last_norm,
            "transformer.ln_f",
            "ln_f|never called",
        ),
        (
            "no positions",
            "Transformer.__call__",
            gpt2_without_positions,
            "transformer.h.0.ln_1",
            "reads what",
        ),
    ],
    "bert": [
        (
            "norm first",
            "Output.__call__",
            bert_norm_first,
            "bert.encoder.layer.0.attention.output.LayerNorm",
            "what",
        ),
        (
            "no residual",
            "Output.__call__",
            bert_no_residual,
            "bert.encoder.layer.0.attention.output.LayerNorm",
            "what",
        ),
        ("no types", "Embeddings.__call__", bert_without_types, "bert.embeddings.LayerNorm", "what|operand"),
        ("embeddings scaled", "Embeddings.__call__", bert_scaled, "bert.embeddings.LayerNorm", "2.828|times"),
        (
            "residual of another sublayer",
            "Layer.__call__",
            bert_other_residual,
            "bert.encoder.layer.0.output.LayerNorm",
            "reads what .*, and torch what",
        ),
    ],
    "vit": [
        (
            "mean of the tokens",
            "ViT.__call__",
            vit_mean,
            "classifier",
            "reads the mean of .* torch the first of",
        ),
        ("the last token", "ViT.__call__", vit_last, "classifier", "reads the last of .* torch the first of"),
        ("class token last", "Embeddings.__call__", vit_token_last, "vit.embeddings", "rows in the order"),
        (
            "patches by columns",
            "Patches.__call__",
            vit_patches_by_columns,
            "vit.embeddings",
            "rows in the order",
        ),
    ],
    "llama": [
        (
            "gate and up swapped",
            "MLP.__call__",
            llama_gates_swapped,
            "model.layers.0.mlp.down_proj",
            "silu|gate",
        ),
        ("no gate", "MLP.__call__", llama_no_gate, "model.layers.0.mlp.down_proj", "operand of torch's mul"),
        (
            "groups tiled",
            "shared",
            lambda x: jnp.tile(x, (1, 1, 2, 1)),
            "model.layers.0.self_attn.o_proj",
            "tiled",
        ),
        ("another base", "rotary", rotary(500000.0), "model.layers.0.self_attn.o_proj", "base of 500000"),
        ("rotary backwards", "rotary", rotary(sign=-1), "model.layers.0.self_attn.o_proj", "backwards"),
        (
            "rotary of queries",
            "rotary",
            rotary_of_queries,
            "model.layers.0.self_attn.o_proj",
            "queries alone",
        ),
    ],
    "t5": [
        (
            "no bias of distances",
            "Stack.__call__",
            t5_without_bias,
            "encoder.block.0.layer.0.SelfAttention.o",
            "no bias",
        ),
        (
            "logits scaled",
            "attend",
            t5_scaled,
            "encoder.block.0.layer.0.SelfAttention.o",
            "scales the logits by 1 / sqrt",
        ),
        (
            "the output not scaled",
            "T5.__call__",
            t5_unscaled_head,
            "decoder.final_layer_norm",
            "times torch's|mul",
        ),
    ],
    "bloom": [
        ("slopes counted from 0", "slopes", bloom_slopes(first=0), BLOOM, "adds alibi, from 0"),
        ("slopes the other way", "slopes", bloom_slopes(sign=-1.0), BLOOM, "adds alibi, growing"),
        ("no slopes", "slopes", lambda length: 0.0, BLOOM, "adds no bias"),
        ("blocks one after the other", "parted", bloom_blocks, BLOOM, "reads query, key, value, one after"),
    ],
    "whisper": [
        (
            "memory before its norm",
            "Encoder.__call__",
            whisper_early_memory,
            "model.encoder.layer_norm",
            "what",
        ),
        (
            "residual from behind the norm",
            "DecoderLayer.__call__",
            whisper_other_residual,
            "model.decoder.layers.0.encoder_attn_layer_norm",
            r'reads what "model.decoder.layers.0.self_attn_layer_norm" returns \+',
        ),
        (
            "memory of itself",
            "DecoderLayer.__call__",
            whisper_memory_of_itself,
            "model.decoder.layers.0.encoder_attn.k_proj",
            "reads what .*, and torch what",
        ),
    ],
    "resnet": [
        (
            "no residual",
            "Block.__call__",
            resnet_no_residual,
            "resnet.encoder.stages.0.layers.0.layer.1.normalization",
            "operand of torch's",
        ),
        (
            "relu before the sum",
            "Block.__call__",
            resnet_relu_before_sum,
            "resnet.encoder.stages.0.layers.0.layer.1.normalization",
            "relu",
        ),
        ("the maximum for the mean", "Body.__call__", resnet_maximum, "classifier.1", "the maximum of"),
    ],
    "convnext": [
        (
            "no scale of layers",
            "Layer.__call__",
            convnext_no_scale,
            "convnext.encoder.stages.0.layers.0",
            "operand",
        ),
        (
            "norm first",
            "Layer.__call__",
            convnext_norm_first,
            "convnext.encoder.stages.0.layers.0.dwconv",
            "what",
        ),
        (
            "the maximum for the mean",
            "Body.__call__",
            convnext_maximum,
            "convnext.layernorm",
            "the maximum of",
        ),
    ],
    "unet": [
        ("skips joined last", "UNet.__call__", unet_skips_last, "merge2.conv1", "joined with"),
        ("norm after relu", "Double.__call__", unet_norm_after_relu, "down1.bn1", "relu"),
    ],
    "tagger": [
        ("directions joined in another order", "Tagger.__call__", tagger_summed, "tag", "order|joined"),
    ],
}
