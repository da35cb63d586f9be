"""Reports on models whose insides are partly out of sight: torch's own composites, and layers in a scan."""

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen as nn
from flax import nnx
from twins import CAUSAL, exact_gelu, noise, randomized

import jaxstate as js


def report_of(theirs, ours, *inputs, **options):
    with pytest.raises(js.ParityError) as caught:
        js.testing.assert_same_outputs(theirs, ours, *inputs, **options)
    return str(caught.value)


class Encoder(nnx.Module):
    """torch.nn.TransformerEncoderLayer, by its names."""

    def __init__(self, rngs, gelu=exact_gelu):
        self.self_attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.linear1 = nnx.Linear(8, 16, rngs=rngs)
        self.linear2 = nnx.Linear(16, 8, rngs=rngs)
        self.norm1 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.gelu = gelu

    def __call__(self, x, mask):
        x = self.norm1(x + self.self_attn(x, mask=mask))
        return self.norm2(x + self.linear2(self.gelu(self.linear1(x))))


def test_of_torchs_encoder_layer():
    """It hands its attention a mask of minus infinities, and calls gelu without a module."""
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    theirs = randomized(theirs).eval()
    ours = js.load_state_dict(Encoder(nnx.Rngs(0)), theirs.state_dict())
    x, torch_kwargs = noise(2, 5, 8), {"src_mask": torch.from_numpy(CAUSAL)}
    right = dict(kwargs={"mask": jnp.array(~CAUSAL)}, torch_kwargs=torch_kwargs)
    js.testing.assert_same_outputs(theirs, ours, x, **right)
    wrong = report_of(theirs, ours, x, kwargs={"mask": jnp.array(CAUSAL)}, torch_kwargs=torch_kwargs)
    assert 'first layer that differs: "self_attn"' in wrong and "reads attn_mask the other way" in wrong
    ours.gelu = nnx.gelu
    assert "approximated by tanh where torch computes gelu" in report_of(theirs, ours, x, **right)


class TorchLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc(self.norm(x))


class TorchStack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.h = torch.nn.ModuleList(TorchLayer() for _ in range(3))
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        for layer in self.h:
            x = layer(x)
        return self.head(torch.relu(x))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8, name="fc")(nn.LayerNorm(epsilon=1e-5, name="norm")(x)), None


class Stack(nn.Module):
    """The layers are one, scanned; inside, nothing has values that could be watched."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="first")(x)
        scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scanned(name="h")(x, None)
        return nn.Dense(4, name="head")(nn.relu(x))


def test_of_weights_in_a_scan():
    theirs, x = randomized(TorchStack()), noise(2, 8)
    binding = js.bind(Stack(), jnp.array(x))
    template = jax.eval_shape(lambda: Stack().init(jax.random.key(0), jnp.array(x)))
    right = js.load_state_dict(template, theirs.state_dict(), binding)
    js.testing.assert_same_outputs(theirs, Stack().bind(right), x)
    sd = {**theirs.state_dict(), "h.1.fc.weight": theirs.h[2].fc.weight}
    report = report_of(theirs, Stack().bind(js.load_state_dict(template, sd, binding)), x)
    assert 'after "first", which agrees, what "head" (Linear)' in report
    assert 'cause: JAX holds other weights: "h.1.fc.weight"' in report
    assert 'not compared: "h.0.norm", "h.0.fc", "h.1.norm", "h.1.fc", "h.2.norm", "h.2.fc"' in report
