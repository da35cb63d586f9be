"""GPT-2: one matrix for queries, keys and values, stored as (in, out), and a head that is the embedding."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import GPT2Config, GPT2LMHeadModel
from twin import Twin, attend, causal, heads, layer_norm, rngs, symbols

import jaxstate as js

VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH = 11, 8, 2, 3, 6


class Conv1D(nnx.Module):
    """The layer of this name in transformers: a Linear whose weight is not transposed."""

    def __init__(self, i, o):
        self.weight, self.bias = nnx.Param(jnp.zeros((i, o))), nnx.Param(jnp.zeros(o))

    def torch_rules(self):
        return [js.Rule("weight", "weight", "i o -> i o"), js.Rule("bias", "bias", "o -> o")]

    def __call__(self, x):
        return x @ self.weight[...] + self.bias[...]


class Attention(nnx.Module):
    def __init__(self):
        self.c_attn, self.c_proj = Conv1D(WIDTH, 3 * WIDTH), Conv1D(WIDTH, WIDTH)

    def __call__(self, x):
        query, key, value = (heads(part, HEADS) for part in jnp.split(self.c_attn(x), 3, -1))
        return self.c_proj(attend(query, key, value, causal(x.shape[1])))


class MLP(nnx.Module):
    def __init__(self):
        self.c_fc, self.c_proj = Conv1D(WIDTH, 4 * WIDTH), Conv1D(4 * WIDTH, WIDTH)

    def __call__(self, x):
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nnx.Module):
    def __init__(self):
        self.ln_1, self.attn = layer_norm(WIDTH, 1e-5), Attention()
        self.ln_2, self.mlp = layer_norm(WIDTH, 1e-5), MLP()

    def __call__(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    def __init__(self):
        self.wte = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.wpe = nnx.Embed(LENGTH + 2, WIDTH, rngs=rngs())
        self.h = nnx.List([Block() for _ in range(LAYERS)])
        self.ln_f = layer_norm(WIDTH, 1e-5)

    def __call__(self, ids):
        x = self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPT2(nnx.Module):
    def __init__(self):
        self.transformer = Transformer()
        self.lm_head = self.transformer.wte

    def __call__(self, ids):
        return self.lm_head.attend(self.transformer(ids))


CONFIG = GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=LENGTH + 2)
TWIN = Twin(lambda: GPT2LMHeadModel(CONFIG), GPT2, {"input_ids": symbols(VOCABULARY, 2, LENGTH)})
