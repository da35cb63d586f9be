"""The layers of equinox.nn: the shapes that each declares, and which torch module it is.

Equinox keeps its weights as torch does, so most layouts change nothing; what differs stands here. Classes go
by their names, since nothing here imports Equinox. A class that is not listed, and a subclass that overrides
`__call__`, is not known: its arrays are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxstate.adapters import _deciding, _rules, _wrappers
from jaxstate.adapters._deciding import deciding_class
from jaxstate.adapters._equinox_state import nn
from jaxstate.adapters._options import Options
from jaxstate.errors import BindingError
from jaxstate.rules.blocks import Block, Blocks
from jaxstate.rules.declared import JaxOnly, Sum, TorchOnly
from jaxstate.rules.rule import Rule
from jaxstate.rules.running import MANY, Running

Shapes = Mapping[str, tuple[int, ...]]
Rules = list[Any]
Make = Callable[[Shapes], Any]  # from a layer's shapes, without stacked axes, to its rules


@dataclass(frozen=True)
class Known:
    """A layer that is known: its leaves as it declares them, and the rules for what it has of them."""

    expected: Shapes
    rules: Make


def layer_of(module: Any, options: Options) -> Known | None:
    """What a module is, or None if it is a container or a class of the user's."""
    if (given := options.rules_of(module)) is not None:
        return Known({}, lambda shapes: list(given))
    kind = kind_of(module)
    if kind not in _LAYERS or (kind == "MultiheadAttention" and _is_separate(module, options)):
        return None
    return Known(declared(module), lambda shapes: _LAYERS[kind](module, shapes, options))


def kind_of(module: Any) -> str:
    """The name of the class of equinox.nn that decides what a module is, or ""."""
    kind = deciding_class(module, _is_layer)
    return kind.__name__ if kind else ""


def neighbour_kind(module: Any) -> str:
    """What a layer is to an image. Its channels come first, as in torch, so a flatten raises no suspicion."""
    return _KINDS.get(kind_of(module), "")


def owner_of(module: Any) -> str:
    """The class of a module that is not known, and why it is not."""
    return _deciding.owner_of(module, _is_layer)


def _is_layer(kind: type) -> bool:
    return kind.__name__ in _LAYERS and getattr(nn(), kind.__name__, None) is kind


def declared(module: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf below a layer, as the layers there declare it."""
    own = dict(_DECLARED.get(kind_of(module), lambda m: {})(module))
    children = {name: getattr(module, name) for name in _HOLDERS.get(kind_of(module), ())}
    for name, child in children.items():
        own |= {f"{name}.{leaf}": shape for leaf, shape in declared(child).items()}
    return own


def recurrent(cells: Sequence[Any], single: bool) -> Known:
    """The rules of cells that are the layers of one torch RNN; `single` where the cell stands for a list."""
    prefixes = ["" if single else f"{n}." for n in range(len(cells))]
    if strange := [type(cell).__name__ for cell in cells if kind_of(cell) not in _CELLS]:
        raise BindingError(
            f"{', '.join(strange)} is no layer of a torch.nn.LSTM or GRU; give its class rules"
        )
    expected = {
        prefix + leaf: shape
        for prefix, cell in zip(prefixes, cells, strict=True)
        for leaf, shape in declared(cell).items()
    }
    rules = [
        rule.at("", prefix)
        for n, (prefix, cell) in enumerate(zip(prefixes, cells, strict=True))
        for rule in _CELLS[kind_of(cell)](cell, f"_l{n}")
    ]
    return Known(expected, lambda shapes: rules)


def _same(shapes: Shapes, *names: str) -> Rules:
    """Leaves that are torch's arrays under torch's names."""
    axes = {name: " ".join(f"a{n}" for n in range(len(shapes[name]))) for name in names if name in shapes}
    return [Rule(name, name, f"{row} -> {row}") for name, row in axes.items()]


def _linear(shapes: Shapes) -> Rules:
    bias = [Rule("bias", "bias", "o -> o")] if "bias" in shapes else []
    return [Rule("weight", "weight", "o i -> o i"), *bias]


def _plain(module: Any, shapes: Shapes, options: Options) -> Rules:
    return _same(shapes, "weight", "bias")


def _rms_norm(module: Any, shapes: Shapes, options: Options) -> Rules:
    """torch.nn.RMSNorm has no bias, so this one's is zero."""
    return _same(shapes, "weight") + ([JaxOnly("bias", 0.0)] if "bias" in shapes else [])


def _conv(module: Any, shapes: Shapes, options: Options) -> Rules:
    space = _space(module)
    bias = Rule("bias", "bias", f"o {' '.join('1' for _ in space.split())} -> o")
    return [Rule("weight", "weight", f"o i {space} -> o i {space}"), *([bias] if "bias" in shapes else [])]


def _conv_transpose(module: Any, shapes: Shapes, options: Options) -> Rules:
    """Equinox holds the kernel of the convolution that it runs; torch's runs backwards, group by group."""
    space, groups = _space(module), module.groups
    flipped = " ".join(f"~{axis}" for axis in space.split())
    if groups == 1:
        weight = Rule("weight", "weight", f"o i {space} -> i o {flipped}")
    else:
        weight = Rule("weight", "weight", f"(g o) i {space} -> (g i) o {flipped}", g=groups)
    return [weight, *_conv(module, shapes, options)[1:]]


def _space(module: Any) -> str:
    if module.num_spatial_dims not in _rules.SPATIAL:
        raise BindingError(
            f"{type(module).__name__} runs over {module.num_spatial_dims} axes, and torch's convolutions "
            "over three at most; bind with rules=[...] of your own"
        )
    return _rules.SPATIAL[module.num_spatial_dims]


def _batch_norm(module: Any, shapes: Shapes, options: Options) -> Rules:
    if module.mode == "ema":
        values, first = "ema_state_index", "ema_first_time_index"
        own: dict[str, Any] = dict(marks={first: 0}, unset={first: 1})
    else:
        values, count = "batch_state_index", "batch_counter"
        own = dict(marks={count: MANY}, count=count, decay=module.momentum)
    parts = [
        Rule(f"running_{name}", f"{values}.{n}", "c -> c", buffer=True)
        for n, name in enumerate(("mean", "var"))
    ]
    counter = TorchOnly("num_batches_tracked", _rules.NO_BATCHES, counter=True)
    return [*_same(shapes, "weight", "bias"), Running(tuple(parts), **own), counter]


def _attention(module: Any, shapes: Shapes, options: Options) -> Rules:
    names = ("query_proj", "key_proj", "value_proj")
    if module.query_size == module.key_size == module.value_size:
        weights = [Rule("in_proj_weight", "{qkv}.weight", "e d -> (qkv e) d", qkv=names)]
    else:
        weights = [Rule(f"{name[0]}_proj_weight", f"{name}.weight", "e d -> e d") for name in names]
    out = [Rule("out_proj.weight", "output_proj.weight", "d e -> d e")]
    if not module.use_output_bias:
        return weights + out
    bias = Rule("in_proj_bias", "{qkv}.bias", "e -> (qkv e)", qkv=names)
    return [*weights, bias, *out, Rule("out_proj.bias", "output_proj.bias", "d -> d")]


def _is_separate(module: Any, options: Options) -> bool:
    """True if attention is to be read as four Linear layers.

    Raises:
        BindingError: torch's own module is asked for, and cannot hold these weights.
    """
    width, heads = module.query_size, module.num_heads
    biases = {getattr(module, f"use_{name}_bias") for name in ("query", "key", "value", "output")}
    fits = module.qk_size * heads == module.vo_size * heads == module.output_size == width
    reason = "" if fits else "one width for queries, heads together, and outputs"
    reason = reason or ("biases everywhere or nowhere" if len(biases) > 1 else "")
    if options.packed and reason:
        raise BindingError(f'torch.nn.MultiheadAttention has {reason}; bind with attention="separate"')
    return bool(reason) or options.packed is False


def _lstm(module: Any, suffix: str) -> Rules:
    weights = [Rule(f"weight_{side}{suffix}", f"weight_{side}", "k i -> k i") for side in ("ih", "hh")]
    parts = tuple(Rule(f"bias_{side}{suffix}", "bias", "k -> k") for side in ("ih", "hh"))
    return [*weights, *([Sum(parts)] if module.use_bias else [])]


def _gru(module: Any, suffix: str) -> Rules:
    """Reset and update gate have one bias each; the new gate has torch's two."""
    size, ih, hh = module.hidden_size, f"bias_ih{suffix}", f"bias_hh{suffix}"
    gates, both, new = ((0, 3 * size),), ((0, 2 * size),), ((2 * size, 3 * size),)
    blocks = (
        Block(ih, both, "bias", both),
        Block(ih, new, "bias", new),
        Block(hh, both, "bias", both),
        Block(hh, new, "bias_n", ((0, size),)),
    )
    arrays = dict.fromkeys((ih, hh), (gates[0][1],))
    biases = Blocks(arrays, blocks, leaf_paths={"bias": (3 * size,), "bias_n": (size,)})
    return [*_lstm(module, suffix)[:2], *([biases] if module.use_bias else [])]


def _prelu(module: Any, shapes: Shapes, options: Options) -> Rules:
    """A slope, or one for each channel; axes of length one behind it are the image's."""
    shape = shapes["negative_slope"]
    if any(length > 1 for length in shape[1:]):
        raise BindingError(
            f"a PReLU with slopes of shape {shape} is none of torch's, which has channels only"
        )
    ones = " ".join("1" for _ in shape[1:])
    return [Rule("weight", "negative_slope", f"c {ones} -> c" if shape else "-> 1")]


def _weight_norm(module: Any, shapes: Shapes, options: Options) -> Rules:
    inner = layer_of(module.layer, options)
    rules = inner.rules(_below(shapes)) if inner else []
    return list(
        _wrappers.weight_norm(rules, {module.weight_name: "g"}, module.axis, "layer.", kept_axes=True)
    )


def _spectral_norm(module: Any, shapes: Shapes, options: Options) -> Rules:
    inner = layer_of(module.layer, options)
    rules = inner.rules(_below(shapes)) if inner and module.weight_name == "weight" else []
    return list(
        _wrappers.stored_spectral_norm(
            rules, _below(shapes)[module.weight_name], "uv_index.0", "uv_index.1", "layer."
        )
    )


def _mlp(module: Any, shapes: Shapes, options: Options) -> Rules:
    """torch has a list of Linear; with `scan` the hidden ones are a stack, and count on from the first."""
    rules = []
    for n, layer in enumerate(module.layers):
        own = [rule for rule in _linear(declared(layer)) if f"layers.{n}.{rule.path}" in shapes]
        if module.scan and n == 1 and module.depth > 0 and len(module.layers) == 3:
            numbers = range(1, module.depth)
            rules += [rule.stacked("layers.{l}.", "layers.1.", "l", numbers, 0) for rule in own]
        else:
            number = module.depth if n == len(module.layers) - 1 else n
            rules += [rule.at(f"layers.{number}.", f"layers.{n}.") for rule in own]
    return rules


def _below(shapes: Shapes) -> Shapes:
    return {name.removeprefix("layer."): shape for name, shape in shapes.items() if name.startswith("layer.")}


def _shapes_of_mlp(module: Any) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for n, layer in enumerate(module.layers):
        stack = (module.depth - 1,) if module.scan and n == 1 and len(module.layers) == 3 else ()
        shapes |= {f"layers.{n}.{leaf}": (*stack, *shape) for leaf, shape in declared(layer).items()}
    return shapes


def _shapes_of_linear(module: Any) -> dict[str, tuple[int, ...]]:
    sizes = [1 if size == "scalar" else size for size in (module.out_features, module.in_features)]
    return {"weight": tuple(sizes), "bias": (sizes[0],)}


def _shapes_of_conv(module: Any) -> dict[str, tuple[int, ...]]:
    weight = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return {"weight": weight, "bias": (module.out_channels, *(1 for _ in module.kernel_size))}


def _shapes_of_batch_norm(module: Any) -> dict[str, tuple[int, ...]]:
    statistics = [f"{mode}_state_index.{n}" for mode in ("ema", "batch") for n in range(2)]
    vectors = dict.fromkeys(("weight", "bias", *statistics), (module.input_size,))
    return {**vectors, "ema_first_time_index": (), "batch_counter": ()}


def _shapes_of_cell(module: Any) -> dict[str, tuple[int, ...]]:
    gates = (4 if kind_of(module) == "LSTMCell" else 3) * module.hidden_size
    weights = {"weight_ih": (gates, module.input_size), "weight_hh": (gates, module.hidden_size)}
    return {**weights, "bias": (gates,), "bias_n": (module.hidden_size,)}


_CELLS: Mapping[str, Callable[[Any, str], Rules]] = {"LSTMCell": _lstm, "GRUCell": _gru}

_LAYERS: Mapping[str, Callable[[Any, Shapes, Options], Any]] = {
    "Linear": lambda m, s, o: _linear(s),
    "Embedding": lambda m, s, o: [Rule("weight", "weight", "v d -> v d")],
    "LayerNorm": _plain,
    "GroupNorm": _plain,
    "RMSNorm": _rms_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNorm": _batch_norm,
    "MultiheadAttention": _attention,
    "LSTMCell": lambda m, s, o: _lstm(m, ""),
    "GRUCell": lambda m, s, o: _gru(m, ""),
    "PReLU": _prelu,
    "WeightNorm": _weight_norm,
    "SpectralNorm": _spectral_norm,
    "MLP": _mlp,
}

_HOLDERS = {
    "MultiheadAttention": ("query_proj", "key_proj", "value_proj", "output_proj"),
    "WeightNorm": ("layer",),
    "SpectralNorm": ("layer",),
}

_DECLARED: Mapping[str, Callable[[Any], dict[str, tuple[int, ...]]]] = {
    "Linear": _shapes_of_linear,
    "Embedding": lambda m: {"weight": (m.num_embeddings, m.embedding_size)},
    "LayerNorm": lambda m: dict.fromkeys(("weight", "bias"), m.shape),
    "RMSNorm": lambda m: dict.fromkeys(("weight", "bias"), m.shape),
    "GroupNorm": lambda m: dict.fromkeys(("weight", "bias"), (m.channels,)),
    "Conv": _shapes_of_conv,
    "ConvTranspose": _shapes_of_conv,
    "BatchNorm": _shapes_of_batch_norm,
    "LSTMCell": _shapes_of_cell,
    "GRUCell": _shapes_of_cell,
    "MLP": _shapes_of_mlp,
}

_KINDS = {
    "Linear": "linear",
    "LayerNorm": "norm",
    "RMSNorm": "norm",
    "GroupNorm": "norm",
    "BatchNorm": "norm",
}
