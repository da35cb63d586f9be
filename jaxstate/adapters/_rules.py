"""What a layer is: the Rules between a torch module's entries and a Flax layer's leaves, names relative.

Every layout of this library stands here once. NNX and Linen call their leaves alike, so one function serves
both; what differs (the names of gates, one fused kernel or several) is an argument. `shapes` is always
`{leaf: shape}` of one layer, without the axes that a scan or a vmap stacked on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxstate.errors import BindingError
from jaxstate.rules.declared import Sum, TorchOnly
from jaxstate.rules.rule import Rule

Shapes = Mapping[str, tuple[int, ...]]
Rules = list[Any]

NO_BATCHES = np.int64(0)  # of `num_batches_tracked`, as long as no file says another number

BIAS = Rule("bias", "bias", "o -> o")
LINEAR = Rule("weight", "kernel", "i o -> o i")

SPATIAL = {1: "w", 2: "h w", 3: "d h w"}


def linear(shapes: Shapes) -> Rules:
    """torch.nn.Linear."""
    return _present(shapes, LINEAR, BIAS)


def linear_general(shapes: Shapes, inputs: Sequence[int], outputs: Sequence[int]) -> Rules:
    """torch.nn.Linear on flattened axes: positions of the kernel's input and output axes, in flat order."""
    axes = [f"a{n}" for n in range(len(shapes["kernel"]))]
    rows, columns = (" ".join(axes[n] for n in side) for side in (inputs, outputs))
    sizes: dict[str, Any] = dict(zip(axes, shapes["kernel"], strict=True))
    kernel = Rule("weight", "kernel", f"{' '.join(axes)} -> ({columns}) ({rows})", **sizes)
    return _present(shapes, kernel, _flat_bias(shapes))


def _flat_bias(shapes: Shapes) -> Rule:
    """Flax adds a bias of any shape in the order of its memory."""
    sizes: dict[str, Any] = {f"b{n}": size for n, size in enumerate(shapes.get("bias", ()))}
    return Rule("bias", "bias", f"{' '.join(sizes)} -> ({' '.join(sizes)})" if sizes else "-> 1", **sizes)


def einsum(shapes: Shapes, equation: str) -> Rules:
    """torch.nn.Linear in place of an einsum of an input with a kernel.

    Raises:
        BindingError: a label that the kernel shares with input and output alike: no Linear has a batch;
            a label of the kernel that neither has.
    """
    inputs, result = equation.replace(" ", "").replace("...", "").split("->")
    left, kernel = inputs.split(",")
    if batch := [label for label in kernel if label in left and label in result]:
        raise BindingError(f'Einsum("{equation}"): {batch} make a batch of matrices; torch.nn.Linear has one')
    if alone := [label for label in kernel if label not in left + result or kernel.count(label) > 1]:
        raise BindingError(f'Einsum("{equation}"): {alone} of the kernel meet no input and no output')
    rows = [kernel.index(label) for label in left if label in kernel]
    columns = [kernel.index(label) for label in result if label in kernel]
    return linear_general(shapes, rows, columns)


def conv(shapes: Shapes) -> Rules:
    """torch.nn.Conv1d, 2d, 3d, grouped and depthwise ones too: HWIO here, OIHW there."""
    space = SPATIAL[len(shapes["kernel"]) - 2]
    return _present(shapes, Rule("weight", "kernel", f"{space} i o -> o i {space}"), BIAS)


def conv_transpose(shapes: Shapes, transpose_kernel: bool, flipped: bool | None = None) -> Rules:
    """torch.nn.ConvTranspose1d, 2d, 3d: the gradient of a convolution, so the kernel runs backwards.

    With `transpose_kernel` Flax holds the kernel of that convolution, and nothing is flipped. Haiku has the
    axes of that kernel, and runs it backwards all the same: `flipped`.
    """
    space = SPATIAL[len(shapes["kernel"]) - 2]
    backwards = not transpose_kernel if flipped is None else flipped
    there = " ".join(f"~{axis}" for axis in space.split()) if backwards else space
    pattern = f"{space} {'o i' if transpose_kernel else 'i o'} -> i o {there}"
    return _present(shapes, Rule("weight", "kernel", pattern), BIAS)


def embedding(shapes: Shapes) -> Rules:
    """torch.nn.Embedding."""
    return [Rule("weight", "embedding", "v d -> v d")]


def norm(shapes: Shapes) -> Rules:
    """torch.nn.LayerNorm, GroupNorm, RMSNorm, affine InstanceNorm: the same axes on both sides."""
    axes = " ".join(f"a{n}" for n in range(len(next(iter(shapes.values()), ()))))
    return _present(
        shapes, Rule("weight", "scale", f"{axes} -> {axes}"), Rule("bias", "bias", f"{axes} -> {axes}")
    )


def batch_norm(shapes: Shapes) -> Rules:
    """torch.nn.BatchNorm1d, 2d, 3d and SyncBatchNorm. Only torch counts the batches."""
    statistics = [
        Rule("running_mean", "mean", "c -> c", buffer=True),
        Rule("running_var", "var", "c -> c", buffer=True),
    ]
    counter = [TorchOnly("num_batches_tracked", NO_BATCHES, counter=True)] if "mean" in shapes else []
    return (
        norm({k: v for k, v in shapes.items() if k in ("scale", "bias")})
        + _present(shapes, *statistics)
        + counter
    )


def prelu(shapes: Shapes) -> Rules:
    """torch.nn.PReLU: one slope for all channels, or one for each."""
    return [Rule("weight", "negative_slope", "c -> c" if shapes["negative_slope"] else "-> 1")]


def attention(shapes: Shapes, packed: bool | None) -> Rules:
    """torch.nn.MultiheadAttention, or four torch.nn.Linear.

    Args:
        packed: True for `in_proj_*` and `out_proj`, False for `query`, `key`, `value` and `out` as Linear
            layers, None for the first where torch's module can hold these weights.

    Raises:
        BindingError: packed, and torch's module cannot: other widths, grouped heads, normalised queries.
    """
    reason = _not_packed(shapes)
    if packed and reason:
        raise BindingError(f'torch.nn.MultiheadAttention has {reason}; bind with attention="separate"')
    return _separate(shapes) if reason or packed is False else _packed(shapes)


def _not_packed(shapes: Shapes) -> str:
    width, heads, depth = shapes["query.kernel"]
    key, value = shapes["key.kernel"], shapes["value.kernel"]
    if any(name.endswith("_ln.scale") for name in shapes):
        return "no normalised queries and keys"
    if key[1:] != (heads, depth) or value[1:] != (heads, depth):
        return "as many key and value heads as query heads"
    if width != heads * depth or shapes["out.kernel"] != (heads, depth, width):
        return "one width for inputs, heads together, and outputs"
    return ""


def _packed(shapes: Shapes) -> Rules:
    width, heads, _ = shapes["query.kernel"]
    same = all(shapes[f"{name}.kernel"][0] == width for name in ("key", "value"))
    qkv = {"qkv": ("query", "key", "value"), "n": heads}
    one = [Rule("in_proj_weight", "{qkv}.kernel", "d n k -> (qkv n k) d", **qkv)]
    three = [
        Rule(f"{name[0]}_proj_weight", f"{name}.kernel", "d n k -> (n k) d", n=heads)
        for name in ("query", "key", "value")
    ]
    bias = [Rule("in_proj_bias", "{qkv}.bias", "n k -> (qkv n k)", **qkv)] if "query.bias" in shapes else []
    out = Rule("out_proj.weight", "out.kernel", "n k d -> d (n k)", n=heads)
    return (
        (one if same else three) + bias + _present(shapes, out, Rule("out_proj.bias", "out.bias", "d -> d"))
    )


def _separate(shapes: Shapes) -> Rules:
    rules = []
    for name in ("query", "key", "value"):
        heads = shapes[f"{name}.kernel"][1]
        rules.append(Rule(f"{name}.weight", f"{name}.kernel", "d n k -> (n k) d", n=heads))
        rules.append(Rule(f"{name}.bias", f"{name}.bias", "n k -> (n k)", n=heads))
    heads = shapes["out.kernel"][0]
    out = [
        Rule("out.weight", "out.kernel", "n k d -> d (n k)", n=heads),
        Rule("out.bias", "out.bias", "d -> d"),
    ]
    norms = [Rule(f"{name}.weight", f"{name}.scale", "k -> k") for name in ("query_ln", "key_ln")]
    return _present(shapes, *rules, *out, *norms)


def fused_cell(suffix: str, bias: str, zeros: tuple[int, int] | None = None) -> Rules:
    """torch's RNNCell, LSTMCell or GRUCell where JAX, too, keeps all gates in one kernel.

    Args:
        suffix: "" for a cell, "_l0", "_l0_reverse", ... for a layer of a torch module.
        bias: the dense layer that holds the one bias: "dense_i" or "dense_h".
        zeros: elements of torch's `bias_hh` that the JAX cell has no place for.
    """
    weights = [Rule(f"weight_{side}h{suffix}", f"dense_{side}.kernel", "i k -> k i") for side in "ih"]
    parts = tuple(Rule(f"bias_{side}h{suffix}", f"{bias}.bias", "k -> k") for side in "ih")
    return [*weights, Sum(parts, zeros=((1, *zeros),) if zeros else ())]


def gated_cell(
    suffix: str, inputs: Sequence[str], hidden: Sequence[str], biases: Sequence[Sequence[str]]
) -> Rules:
    """torch's RNNCell, LSTMCell or GRUCell where JAX keeps a dense layer for each gate.

    Args:
        suffix: "" for a cell, "_l0", "_l0_reverse", ... for a layer of a torch module.
        inputs, hidden: the dense layers of the gates, in torch's order.
        biases: for torch's `bias_ih` and `bias_hh` the dense layers whose biases they add to.
    """
    parts = [
        Rule(f"bias_{side}h{suffix}", "{g}.bias", "k -> (g k)", g=names)
        for side, names in zip("ih", biases, strict=True)
    ]
    return [
        Rule(f"weight_ih{suffix}", "{g}.kernel", "i k -> (g k) i", g=inputs),
        Rule(f"weight_hh{suffix}", "{g}.kernel", "i k -> (g k) i", g=hidden),
        Sum(tuple(parts)),
    ]


def lora(base: Rules, prefix: str) -> Rules:
    """PEFT's low-rank adapter beside its base layer; `prefix` is where the two factors stand."""
    return [
        *(rule.at("base_layer.", "") for rule in base),
        Rule("lora_A.weight", f"{prefix}lora_a", "i r -> r i"),
        Rule("lora_B.weight", f"{prefix}lora_b", "r o -> o r"),
    ]


def _present(shapes: Shapes, *rules: Rule) -> Rules:
    """The rules whose leaves exist: a layer without a bias has no rule for one."""
    return [rule for rule in rules if all(path in shapes for path in rule.paths)]
