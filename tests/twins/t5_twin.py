"""T5: encoder and decoder, one embedding under four names, a bias for distances that layers share."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import T5Config, T5ForConditionalGeneration
from twin import Twin, attend, causal, heads, linear, rngs, symbols

VOCABULARY, WIDTH, INNER, HEADS, DEPTH, LAYERS, BUCKETS = 11, 8, 12, 2, 3, 2, 8


class Attention(nnx.Module):
    def __init__(self, positions=False):
        self.q, self.k, self.v = (linear(WIDTH, HEADS * DEPTH, bias=False) for _ in range(3))
        self.o = linear(HEADS * DEPTH, WIDTH, bias=False)
        if positions:
            self.relative_attention_bias = nnx.Embed(BUCKETS, HEADS, rngs=rngs())

    def __call__(self, x, memory, bias):
        query, key, value = (heads(part, HEADS) for part in (self.q(x), self.k(memory), self.v(memory)))
        return self.o(attend(query, key, value, bias, scale=1.0))


def norm():
    return nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs())


class SelfLayer(nnx.Module):
    def __init__(self, positions):
        self.SelfAttention, self.layer_norm = Attention(positions), norm()

    def __call__(self, x, memory, bias):
        normed = self.layer_norm(x)
        return x + self.SelfAttention(normed, normed, bias)


class CrossLayer(nnx.Module):
    def __init__(self):
        self.EncDecAttention, self.layer_norm = Attention(), norm()

    def __call__(self, x, memory, bias):
        return x + self.EncDecAttention(self.layer_norm(x), memory, 0.0)


class Dense(nnx.Module):
    def __init__(self):
        self.wi, self.wo = linear(WIDTH, INNER, bias=False), linear(INNER, WIDTH, bias=False)

    def __call__(self, x):
        return self.wo(jax.nn.relu(self.wi(x)))


class DenseLayer(nnx.Module):
    def __init__(self):
        self.DenseReluDense, self.layer_norm = Dense(), norm()

    def __call__(self, x, memory, bias):
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    def __init__(self, first, decoder):
        cross = [CrossLayer()] if decoder else []
        self.layer = nnx.List([SelfLayer(first), *cross, DenseLayer()])


class Stack(nnx.Module):
    def __init__(self, embedding, decoder):
        self.embed_tokens = embedding
        self.block = nnx.List([Block(n == 0, decoder) for n in range(LAYERS)])
        self.final_layer_norm = norm()
        self.decoder = decoder

    def __call__(self, ids, memory=None):
        x, length = self.embed_tokens(ids), ids.shape[1]
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = jnp.moveaxis(table(bucket(length, not self.decoder)), -1, 0)
        bias = bias + causal(length) if self.decoder else bias
        for layer in [layer for block in self.block for layer in block.layer]:
            x = layer(x, memory, bias)
        return self.final_layer_norm(x)


def bucket(length, both):
    """The number of each distance: its own for near positions, a shared one for those far away."""
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    count = BUCKETS // 2 if both else BUCKETS
    offset = (distance > 0) * count if both else 0
    near = jnp.abs(distance) if both else -jnp.minimum(distance, 0)
    exact = count // 2
    ratio = jnp.log(jnp.maximum(near, 1) / exact) / jnp.log(16 / exact)
    far = jnp.minimum(exact + (ratio * (count - exact)).astype(int), count - 1)
    return offset + jnp.where(near < exact, near, far)


class T5(nnx.Module):
    def __init__(self):
        self.shared = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.encoder, self.decoder = Stack(self.shared, False), Stack(self.shared, True)
        self.lm_head = self.shared

    def __call__(self, ids, targets):
        return self.lm_head.attend(self.decoder(targets, self.encoder(ids)) * WIDTH**-0.5)


CONFIG = T5Config(
    vocab_size=VOCABULARY,
    d_model=WIDTH,
    d_kv=DEPTH,
    d_ff=INNER,
    num_layers=LAYERS,
    num_heads=HEADS,
    relative_attention_num_buckets=BUCKETS,
    relative_attention_max_distance=16,
)
INPUTS = {"input_ids": symbols(VOCABULARY, 2, 7), "decoder_input_ids": symbols(VOCABULARY, 2, 5)}
TWIN = Twin(lambda: T5ForConditionalGeneration(CONFIG), T5, INPUTS, lambda m, ids, targets: m(ids, targets))
