"""A tagger of plain torch: embeddings, an LSTM that reads both ways, a dropout, a label for each word."""

from flax import nnx
from torch import nn
from twin import Twin, linear, rngs, symbols

VOCABULARY, WIDTH, HIDDEN, LABELS = 11, 5, 4, 3


class TorchTagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.dropout, self.tag = nn.Dropout(0.25), nn.Linear(2 * HIDDEN, LABELS)

    def forward(self, words):
        return self.tag(self.dropout(self.lstm(self.embedding(words))[0]))


class Tagger(nnx.Module):
    def __init__(self):
        cell = lambda: nnx.RNN(nnx.OptimizedLSTMCell(WIDTH, HIDDEN, rngs=rngs()))  # noqa: E731
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs())
        self.lstm = nnx.Bidirectional(cell(), cell())
        self.dropout = nnx.Dropout(0.25, deterministic=True, rngs=rngs())
        self.tag = linear(2 * HIDDEN, LABELS)

    def __call__(self, words):
        return self.tag(self.dropout(self.lstm(self.embedding(words))))


TWIN = Twin(TorchTagger, Tagger, {"words": symbols(VOCABULARY, 2, 6)}, reference=lambda m, words: m(words))
