"""Mistakes that ports are known for, made one at a time in a twin that is right.

Each names the place where the two then part, and words by which the report must call the cause.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from twins import Made

import jaxstate as js
from jaxstate import Binding, Rule


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        twin: the architecture that it is made in.
        make: of a right twin, the spoiled JAX model, and the Binding that its author believes in, if any.
        place: the layer that the report must name.
        cause: words that it must contain.
        is_weight: True if leaves hold other values than torch's; false if the model computes otherwise.
    """

    twin: str
    name: str
    make: Callable[[Made], tuple[Any, Binding | None]]
    place: str
    cause: str
    is_weight: bool = True


def _rules(*new: Rule):
    """A Binding in which some leaves have other Rules."""

    def make(made):
        owners = {path: rule for rule in new for path in rule.paths}
        rules = [owners.get(rule.paths[0], rule) if rule.paths else rule for rule in made.binding.rules]
        believed = Binding(tuple(dict.fromkeys(rules)))
        return made.loaded(believed), believed

    return make


def _entries(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]):
    """Weights that were loaded with changed entries."""

    def make(made):
        entries = {key: tensor.numpy() for key, tensor in made.torch.state_dict().items()}
        return made.loaded(state_dict={**entries, **change(entries)}), None

    return make


def _model(**options: Any):
    """A model that is constructed otherwise."""
    return lambda made: (made.loaded(**options), None)


def _set(module: str, **attributes: Any):
    """A layer that is set otherwise."""

    def make(made):
        model = nnx.clone(made.loaded())
        for name, value in attributes.items():
            setattr(getattr(model, module), name, value)
        return model, None

    return make


def _swap(a: str, b: str):
    return lambda entries: {a: entries[b], b: entries[a]}


def _heads(array: np.ndarray, axis: int = 0, blocks: int = 1) -> np.ndarray:
    """Rows of (blocks, heads, depth) as (blocks, depth, heads)."""
    rows = np.moveaxis(array, axis, 0)
    turned = np.swapaxes(rows.reshape(blocks, 2, -1, *rows.shape[1:]), 1, 2).reshape(rows.shape)
    return np.moveaxis(turned, 0, axis)


def _blocks(array: np.ndarray, *order: int) -> np.ndarray:
    parts = np.split(array, len(order))
    return np.concatenate([parts[n] for n in order])


def _values_reversed(array: np.ndarray) -> np.ndarray:
    """The heads of value in the other order."""
    parts = np.split(array, 6)
    return np.concatenate([*parts[:4], parts[5], parts[4]])


def _avg_pool(x, window, strides):
    return nnx.avg_pool(x, window, strides)


def _flattened_as_it_is(made):
    believed = js.bind(made.template, flatten={})
    return made.loaded(believed), believed


ATTENTION = "d n k -> (qkv n k) d"
QKV = ("query", "key", "value")

MISTAKES = [
    Mistake(
        "mlp",
        "two weights of one shape swapped",
        _rules(
            Rule("fc1.weight", "fc2.kernel", "i o -> o i"), Rule("fc2.weight", "fc1.kernel", "i o -> o i")
        ),
        '"fc1"',
        "fc2.weight",
    ),
    Mistake(
        "mlp",
        "a square kernel not transposed",
        _rules(Rule("fc2.weight", "fc2.kernel", "i o -> i o")),
        '"fc2"',
        "transposed",
    ),
    Mistake(
        "mlp",
        "layers shifted by one",
        _rules(
            *(
                Rule(f"fc{n % 3 + 1}.{key}", f"fc{n}.{leaf}", pattern)
                for n in (1, 2, 3)
                for key, leaf, pattern in (("weight", "kernel", "i o -> o i"), ("bias", "bias", "o -> o"))
            )
        ),
        '"fc1"',
        "fc2",
    ),
    Mistake("mlp", "two biases swapped", _entries(_swap("fc1.bias", "fc3.bias")), '"fc1"', "fc3.bias"),
    Mistake("mlp", "a bias left out", _entries(lambda e: {"fc2.bias": 0 * e["fc2.bias"]}), '"fc2"', "zero"),
    Mistake("mlp", "relu for silu", _model(silu=nnx.relu), '"fc3"', "relu where torch computes silu", False),
    Mistake("mlp", "gelu for silu", _model(silu=nnx.gelu), '"fc3"', "gelu, approximated", False),
    Mistake("mlp", "no activation", _model(silu=nnx.identity), '"fc3"', "nothing where", False),
    Mistake(
        "cnn",
        "a kernel flipped",
        _rules(Rule("conv1.weight", "conv1.kernel", "h w i o -> o i ~h ~w")),
        '"conv1"',
        "flipped",
    ),
    Mistake(
        "cnn",
        "a kernel's height and width swapped",
        _rules(Rule("conv2.weight", "conv2.kernel", "h w i o -> o i w h")),
        '"conv2"',
        "spatial axes",
    ),
    Mistake(
        "cnn",
        "a kernel's channels swapped",
        _rules(Rule("conv2.weight", "conv2.kernel", "h w i o -> i o h w")),
        '"conv2"',
        "inputs and outputs",
    ),
    Mistake(
        "cnn",
        "a transposed convolution not flipped",
        _rules(Rule("up.weight", "up.kernel", "h w i o -> i o h w")),
        '"up"',
        "flipped",
    ),
    Mistake("cnn", "a flatten not permuted", _flattened_as_it_is, '"fc"', "image"),
    Mistake("cnn", "scale and bias swapped", _entries(_swap("bn.weight", "bn.bias")), '"bn"', "bn.bias"),
    Mistake(
        "cnn", "mean and bias swapped", _entries(_swap("bn.running_mean", "bn.bias")), '"bn"', "running_mean"
    ),
    Mistake(
        "cnn",
        "statistics of the batch",
        _set("bn", use_running_average=False),
        '"bn"',
        "batch statistics",
        False,
    ),
    Mistake("cnn", "eps of a BatchNorm", _set("bn", epsilon=1e-3), '"bn"', "eps 0.001", False),
    Mistake("cnn", "SAME with a stride", _set("conv2", padding="SAME"), '"conv2"', "padding SAME", False),
    Mistake("cnn", "no padding", _set("conv1", padding="VALID"), '"conv1"', "padding ((0, 0)", False),
    Mistake("cnn", "another stride", _set("conv2", strides=1), '"conv2"', "stride (1, 1)", False),
    Mistake("cnn", "circular padding", _set("conv1", padding="CIRCULAR"), '"conv1"', "mode circular", False),
    Mistake("cnn", "the mean for the maximum", _model(pool=_avg_pool), '"fc"', "avg_pool2d", False),
    Mistake("block", "eps of the first norm", _set("norm1", epsilon=1e-6), '"norm1"', "eps 1e-06", False),
    Mistake("block", "eps of the second norm", _set("norm2", epsilon=1e-3), '"norm2"', "eps 0.001", False),
    Mistake("block", "gelu approximated", _model(gelu=nnx.gelu), '"down"', "approximated by tanh", False),
    Mistake("block", "a mask the other way", _model(mask=lambda m: m), '"attn"', "attn_mask", False),
    Mistake("block", "no mask", _model(mask=lambda m: None), '"attn"', "everything", False),
    Mistake("block", "no residual", _model(add=lambda x, y: y), '"norm2"', 'torch what "norm1" reads', False),
    Mistake(
        "block",
        "query and key swapped",
        _entries(lambda e: {k: _blocks(e[k], 1, 0, 2) for k in ("attn.in_proj_weight", "attn.in_proj_bias")}),
        '"attn"',
        "key, query, value",
    ),
    Mistake(
        "block",
        "heads innermost",
        _entries(lambda e: {"attn.in_proj_weight": _heads(e["attn.in_proj_weight"], blocks=3)}),
        '"attn"',
        "heads innermost",
    ),
    Mistake(
        "block",
        "the value's heads in another order",
        _entries(lambda e: {"attn.in_proj_weight": _values_reversed(e["attn.in_proj_weight"])}),
        '"attn"',
        "heads in the order (1, 0)",
    ),
    Mistake(
        "block",
        "the output's heads innermost",
        _entries(lambda e: {"attn.out_proj.weight": _heads(e["attn.out_proj.weight"], 1)}),
        '"attn"',
        "heads innermost",
    ),
    Mistake("block", "kernels swapped", _entries(_swap("up.weight", "down.weight")), '"up"', "down.weight"),
    Mistake("block", "scales swapped", _entries(_swap("norm1.weight", "norm2.weight")), '"norm1"', "norm2"),
    Mistake(
        "block",
        "a scale that a layer adds one to",
        _entries(lambda e: {"norm1.weight": e["norm1.weight"] + 1}),
        '"norm1"',
        "1 + scale",
    ),
    Mistake(
        "lstm",
        "gates in another order",
        _entries(lambda e: {"rnn.weight_ih_l0": _blocks(e["rnn.weight_ih_l0"], 0, 2, 1, 3)}),
        '"rnn"',
        "order i, g, f, o",
    ),
    Mistake(
        "lstm",
        "input and hidden kernels swapped",
        _entries(_swap("rnn.weight_ih_l0", "rnn.weight_hh_l0")),
        '"rnn"',
        "weight_hh_l0",
    ),
    Mistake(
        "lstm",
        "one of two biases left out",
        _entries(lambda e: {"rnn.bias_hh_l0": 0 * e["rnn.bias_hh_l0"]}),
        '"rnn"',
        '"rnn.bias_hh_l0" zero',
    ),
    Mistake("lstm", "backwards in time", _model(reverse=True), '"rnn"', "backwards", False),
    Mistake("lstm", "time first", _model(time_major=True), '"rnn"', "time first", False),
    Mistake("linen block", "eps of a norm", _model(epsilon=1e-6), '"norm1"', "eps 1e-06", False),
    Mistake("linen block", "gelu approximated", _model(gelu=nnx.gelu), '"down"', "approximated", False),
    Mistake("linen block", "a mask the other way", _model(mask=jnp.array), '"attn"', "attn_mask", False),
    Mistake(
        "linen block",
        "a square kernel not transposed",
        _entries(lambda e: {"up.weight": e["up.weight"].T}),
        '"up"',
        "transposed",
    ),
    Mistake(
        "linen block",
        "key and value swapped",
        _entries(lambda e: {k: _blocks(e[k], 0, 2, 1) for k in ("attn.in_proj_weight", "attn.in_proj_bias")}),
        '"attn"',
        "query, value, key",
    ),
]
