"""A twin: a model of Hugging Face's transformers, or of plain torch, and the same model written in Flax NNX.

The NNX model is named as torch's, so that its binding needs no rule but for arrays of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

torch.set_num_threads(1)  # the arrays are small; threads that wait for each other take most of the time


@dataclass(frozen=True)
class Twin:
    """Attributes:
    theirs: makes the torch model.
    ours: makes the NNX model.
    inputs: integers below `vocabulary`, or images with channels second; by torch's argument.
    call: the NNX model's outputs for these inputs.
    options: arguments of `bind`.
    """

    theirs: Callable[[], torch.nn.Module]
    ours: Callable[[], nnx.Module]
    inputs: Mapping[str, np.ndarray]
    call: Callable[..., Any] = lambda model, x: model(x)
    reference: Callable[..., Any] = lambda model, **inputs: model(**inputs).logits
    options: Mapping[str, Any] = field(default_factory=dict)


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """The same module with a value of its own in every entry; scales are near one, variances positive."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, entry in module.state_dict(keep_vars=True).items():
            if not entry.is_floating_point():
                entry.fill_(7)
            elif name.endswith("running_var"):
                entry.copy_(torch.rand(entry.shape, generator=generator) + 0.5)
            else:
                scale = entry.ndim == 1 and name.endswith("weight")
                entry.copy_(torch.randn(entry.shape, generator=generator) * 0.3 + scale)
    return module.eval()


def built(make: Callable[[], nnx.Module]) -> nnx.Module:
    """An abstract module; only its random state has values, since no file has any."""
    model = nnx.eval_shape(make)
    random = nnx.state(model, nnx.RngState)
    nnx.update(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), random))
    return model


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def linear(i: int, o: int, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(i, o, use_bias=bias, rngs=rngs())


def layer_norm(width: int, eps: float) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=eps, rngs=rngs())


def heads(x: Any, count: int) -> Any:
    """Features split into heads: (batch, time, heads * depth) to (batch, time, heads, depth)."""
    return x.reshape(*x.shape[:-1], count, -1)


def attend(query: Any, key: Any, value: Any, bias: Any = 0.0, scale: float | None = None) -> Any:
    """Attention over arrays of (batch, time, heads, depth), heads merged in the result."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) * scale + bias)
    found = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return found.reshape(*found.shape[:-2], -1)


def causal(length: int) -> Any:
    """What is added to the scores of later positions."""
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, -jnp.inf)


def symbols(vocabulary: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, shape)


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def channels_last(x: Any) -> Any:
    return jnp.moveaxis(x, 1, -1)
