"""Twins that train on as torch does: AdamW, from the middle of a run."""

import numpy as np
import optax
import pytest
import torch
from flax import nnx

pytest.importorskip("transformers")

from rights import right  # noqa: E402

import jaxstate as js  # noqa: E402

# The gradient of a key's bias is rounding alone; an eps this large keeps AdamW from dividing by it.
OPTIONS = dict(lr=3e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.05)


def next_words(model, ids):
    logits = model(ids)[:, :-1, :11]  # without those of words that only round a vocabulary up
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def labels(model, images, kinds):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), kinds).mean()


def batch(name, seed):
    rng = np.random.default_rng(seed)
    if name in ("gpt2", "phi3"):
        return (rng.integers(0, 11, (3, 6)),)
    return rng.normal(size=(3, 3, 6, 6)).astype("float32"), rng.integers(0, 5, 3)


@pytest.mark.parametrize(
    ("name", "torch_loss", "loss"),
    [
        ("gpt2", lambda m, ids: m(input_ids=ids, labels=ids).loss, next_words),
        pytest.param(
            "phi3", lambda m, ids: m(input_ids=ids, labels=ids).loss, next_words, marks=pytest.mark.slow
        ),
        ("vit", lambda m, x, y: m(pixel_values=x, labels=y).loss, labels),
    ],
)
def test_a_twin_trains_on_as_torch_does(name, torch_loss, loss):
    twin = right(name)
    theirs = twin.loaded_torch(twin.entries)
    optimizer = torch.optim.AdamW(theirs.parameters(), **OPTIONS)
    for seed in range(2):
        optimizer.zero_grad()
        torch_loss(theirs, *map(torch.from_numpy, batch(name, seed))).backward()
        optimizer.step()
    model = js.load_state_dict(twin.template, theirs.state_dict(), twin.binding)
    arguments = (theirs, optimizer, model, js.optim.adamw(**OPTIONS))
    batches = [batch(name, seed) for seed in range(2, 5)]
    checks = dict(torch_loss=torch_loss, loss=loss, binding=twin.binding)
    js.testing.assert_same_training(*arguments, batches, **checks)
    other = js.optim.adamw(**{**OPTIONS, "lr": 2e-3})
    fresh = other.init(nnx.state(model, nnx.Param))
    with pytest.raises(js.ParityError, match="training differs after step 1"):
        js.testing.assert_same_training(*arguments[:3], other, batches[:1], opt_state=fresh, **checks)
