"""Bloom: no positions but a slope for each head (ALiBi), a head's query, key and value side by side."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import BloomConfig, BloomForCausalLM
from twin import Twin, attend, causal, heads, layer_norm, linear, rngs, symbols

VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH = 11, 12, 4, 2, 6


def slopes(length):
    """What is added to the scores: less for what is further away, in each head at its own rate."""
    rates = 2.0 ** (-8 * (jnp.arange(HEADS) + 1) / HEADS)
    return rates[:, None, None] * (jnp.arange(length)[None, :] - jnp.arange(length)[:, None])


def parted(x):
    """Features of each head, divided into its query, key and value."""
    x = heads(x, HEADS)
    return jnp.split(x, 3, -1)


class Attention(nnx.Module):
    def __init__(self):
        self.query_key_value, self.dense = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)

    def __call__(self, x):
        query, key, value = parted(self.query_key_value(x))
        return self.dense(attend(query, key, value, causal(x.shape[1]) + slopes(x.shape[1])))


class MLP(nnx.Module):
    def __init__(self):
        self.dense_h_to_4h, self.dense_4h_to_h = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)

    def __call__(self, x):
        return self.dense_4h_to_h(jax.nn.gelu(self.dense_h_to_4h(x), approximate=True))


class Block(nnx.Module):
    def __init__(self):
        self.input_layernorm, self.self_attention = layer_norm(WIDTH, 1e-5), Attention()
        self.post_attention_layernorm, self.mlp = layer_norm(WIDTH, 1e-5), MLP()

    def __call__(self, x):
        x = x + self.self_attention(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nnx.Module):
    def __init__(self):
        self.word_embeddings = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.word_embeddings_layernorm = layer_norm(WIDTH, 1e-5)
        self.h = nnx.List([Block() for _ in range(LAYERS)])
        self.ln_f = layer_norm(WIDTH, 1e-5)

    def __call__(self, ids):
        x = self.word_embeddings_layernorm(self.word_embeddings(ids))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class Bloom(nnx.Module):
    def __init__(self):
        self.transformer = Transformer()
        self.lm_head = self.transformer.word_embeddings

    def __call__(self, ids):
        return self.lm_head.attend(self.transformer(ids))


CONFIG = BloomConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    n_layer=LAYERS,
    n_head=HEADS,
    hidden_dropout=0.1,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TWIN = Twin(lambda: BloomForCausalLM(CONFIG), Bloom, {"input_ids": symbols(VOCABULARY, 2, LENGTH)})
