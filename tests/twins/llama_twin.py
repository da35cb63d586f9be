"""Llama: fewer heads for keys and values than for queries, rotary positions in halves, a gated MLP."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import LlamaConfig, LlamaForCausalLM
from twin import Twin, attend, causal, heads, linear, rngs, symbols

VOCABULARY, WIDTH, INNER, HEADS, GROUPS, LAYERS = 11, 16, 12, 4, 2, 2


def rotary(x):
    """Turn each pair of features, the n-th of the first half with the n-th of the second."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def shared(x):
    """Each head of keys or values for as many queries as follow each other."""
    return jnp.repeat(x, HEADS // GROUPS, axis=2)


class Attention(nnx.Module):
    def __init__(self):
        depth = WIDTH // HEADS
        self.q_proj = linear(WIDTH, HEADS * depth, bias=False)
        self.k_proj = linear(WIDTH, GROUPS * depth, bias=False)
        self.v_proj = linear(WIDTH, GROUPS * depth, bias=False)
        self.o_proj = linear(HEADS * depth, WIDTH, bias=False)

    def __call__(self, x):
        query = rotary(heads(self.q_proj(x), HEADS))
        key, value = rotary(heads(self.k_proj(x), GROUPS)), heads(self.v_proj(x), GROUPS)
        return self.o_proj(attend(query, shared(key), shared(value), causal(x.shape[1])))


class MLP(nnx.Module):
    def __init__(self):
        self.gate_proj, self.up_proj = linear(WIDTH, INNER, bias=False), linear(WIDTH, INNER, bias=False)
        self.down_proj = linear(INNER, WIDTH, bias=False)

    def __call__(self, x):
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def norm():
    return nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs())


class Layer(nnx.Module):
    def __init__(self):
        self.self_attn, self.mlp = Attention(), MLP()
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()

    def __call__(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nnx.Module):
    def __init__(self):
        self.embed_tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.layers = nnx.List([Layer() for _ in range(LAYERS)])
        self.norm = norm()

    def __call__(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(nnx.Module):
    def __init__(self):
        self.model, self.lm_head = Model(), linear(WIDTH, VOCABULARY, bias=False)

    def __call__(self, ids):
        return self.lm_head(self.model(ids))


CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=GROUPS,
    max_position_embeddings=16,
)
TWIN = Twin(lambda: LlamaForCausalLM(CONFIG), Llama, {"input_ids": symbols(VOCABULARY, 2, 6)})
