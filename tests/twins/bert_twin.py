"""BERT with the head of masked language modelling: its matrix is the embedding, its bias stands twice."""

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import BertConfig, BertForMaskedLM
from twin import Twin, attend, heads, layer_norm, linear, rngs, symbols

VOCABULARY, WIDTH, INNER, HEADS, LAYERS, LENGTH = 11, 8, 12, 2, 2, 6


class Embeddings(nnx.Module):
    def __init__(self):
        self.word_embeddings = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.position_embeddings = nnx.Embed(LENGTH + 3, WIDTH, rngs=rngs())
        self.token_type_embeddings = nnx.Embed(2, WIDTH, rngs=rngs())
        self.LayerNorm = layer_norm(WIDTH, 1e-12)

    def __call__(self, ids, types):
        positions = self.position_embeddings(jnp.arange(ids.shape[1]))
        return self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings(types))


class SelfAttention(nnx.Module):
    def __init__(self):
        self.query, self.key, self.value = (linear(WIDTH, WIDTH) for _ in range(3))

    def __call__(self, x):
        return attend(*(heads(part(x), HEADS) for part in (self.query, self.key, self.value)))


class Output(nnx.Module):
    def __init__(self, i):
        self.dense, self.LayerNorm = linear(i, WIDTH), layer_norm(WIDTH, 1e-12)

    def __call__(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nnx.Module):
    def __init__(self):
        self.self = SelfAttention()
        self.output = Output(WIDTH)

    def __call__(self, x):
        return self.output(self.self(x), x)


class Intermediate(nnx.Module):
    def __init__(self):
        self.dense = linear(WIDTH, INNER)

    def __call__(self, x):
        return jax.nn.gelu(self.dense(x), approximate=False)


class Layer(nnx.Module):
    def __init__(self):
        self.attention, self.intermediate, self.output = Attention(), Intermediate(), Output(INNER)

    def __call__(self, x):
        x = self.attention(x)
        return self.output(self.intermediate(x), x)


class Encoder(nnx.Module):
    def __init__(self):
        self.layer = nnx.List([Layer() for _ in range(LAYERS)])

    def __call__(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


class Bert(nnx.Module):
    def __init__(self):
        self.embeddings, self.encoder = Embeddings(), Encoder()

    def __call__(self, ids, types):
        return self.encoder(self.embeddings(ids, types))


class Transform(nnx.Module):
    def __init__(self):
        self.dense, self.LayerNorm = linear(WIDTH, WIDTH), layer_norm(WIDTH, 1e-12)

    def __call__(self, x):
        return self.LayerNorm(jax.nn.gelu(self.dense(x), approximate=False))


class Decoder(nnx.Module):
    """Variables of other modules, by second names."""

    def __init__(self, embedding, bias):
        self.weight, self.bias = embedding, bias

    def __call__(self, x):
        return x @ self.weight[...].T + self.bias[...]


class Predictions(nnx.Module):
    def __init__(self, embedding):
        self.bias = nnx.Param(jnp.zeros(VOCABULARY))
        self.transform, self.decoder = Transform(), Decoder(embedding, self.bias)

    def __call__(self, x):
        return self.decoder(self.transform(x))


class Head(nnx.Module):
    def __init__(self, embedding):
        self.predictions = Predictions(embedding)


class BertForMasked(nnx.Module):
    def __init__(self):
        self.bert = Bert()
        self.cls = Head(self.bert.embeddings.word_embeddings.embedding)

    def __call__(self, ids, types):
        return self.cls.predictions(self.bert(ids, types))


CONFIG = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=INNER,
    max_position_embeddings=LENGTH + 3,
)
INPUTS = {"input_ids": symbols(VOCABULARY, 2, LENGTH), "token_type_ids": symbols(2, 2, LENGTH)}
TWIN = Twin(lambda: BertForMaskedLM(CONFIG), BertForMasked, INPUTS, lambda m, ids, types: m(ids, types))
