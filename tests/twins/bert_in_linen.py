"""BERT that tells sequences apart, in Flax Linen: the modules of `setup` are named as torch's."""

import jax
import jax.numpy as jnp
from bert_twin import CONFIG, HEADS, INNER, INPUTS, LAYERS, LENGTH, VOCABULARY, WIDTH
from flax import linen as nn
from transformers import BertForSequenceClassification
from twin import Twin, attend, heads

LABELS = 3


def norm():
    return nn.LayerNorm(epsilon=1e-12)


class Embeddings(nn.Module):
    def setup(self):
        self.word_embeddings = nn.Embed(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embed(LENGTH + 3, WIDTH)
        self.token_type_embeddings = nn.Embed(2, WIDTH)
        self.LayerNorm = norm()

    def __call__(self, ids, types):
        positions = self.position_embeddings(jnp.arange(ids.shape[1]))
        return self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings(types))


class SelfAttention(nn.Module):
    def setup(self):
        self.query, self.key, self.value = nn.Dense(WIDTH), nn.Dense(WIDTH), nn.Dense(WIDTH)

    def __call__(self, x):
        return attend(*(heads(part(x), HEADS) for part in (self.query, self.key, self.value)))


class Output(nn.Module):
    def setup(self):
        self.dense, self.LayerNorm = nn.Dense(WIDTH), norm()

    def __call__(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def setup(self):
        self.self, self.output = SelfAttention(), Output()

    def __call__(self, x):
        return self.output(self.self(x), x)


class Intermediate(nn.Module):
    def setup(self):
        self.dense = nn.Dense(INNER)

    def __call__(self, x):
        return jax.nn.gelu(self.dense(x), approximate=False)


class Layer(nn.Module):
    def setup(self):
        self.attention, self.intermediate, self.output = Attention(), Intermediate(), Output()

    def __call__(self, x):
        x = self.attention(x)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    def setup(self):
        self.layer = [Layer() for _ in range(LAYERS)]

    def __call__(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


class Pooler(nn.Module):
    def setup(self):
        self.dense = nn.Dense(WIDTH)

    def __call__(self, x):
        return jnp.tanh(self.dense(x[:, 0]))


class Bert(nn.Module):
    def setup(self):
        self.embeddings, self.encoder, self.pooler = Embeddings(), Encoder(), Pooler()

    def __call__(self, ids, types):
        return self.pooler(self.encoder(self.embeddings(ids, types)))


class Classifier(nn.Module):
    def setup(self):
        self.bert, self.classifier = Bert(), nn.Dense(LABELS)

    def __call__(self, ids, types):
        return self.classifier(self.bert(ids, types))


def theirs():
    CONFIG.num_labels = LABELS
    return BertForSequenceClassification(CONFIG)


TWIN = Twin(theirs, Classifier, INPUTS)
