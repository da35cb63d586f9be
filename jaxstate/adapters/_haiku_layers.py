"""The layers of Haiku: which torch module each is, and which have none.

A layer's arrays go by what follows its own name: `.w` is its own, `/linear.w` that of a layer inside. Classes
go by their names, since nothing here imports Haiku. A class that is not listed, and a subclass that overrides
`__call__`, is not known: its arrays are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxstate.adapters import _deciding, _rules
from jaxstate.adapters._deciding import deciding_class
from jaxstate.adapters._haiku_trace import haiku
from jaxstate.adapters._options import Options
from jaxstate.errors import BindingError
from jaxstate.rules.blocks import Block, Blocks
from jaxstate.rules.declared import Sum, TorchOnly
from jaxstate.rules.rule import Rule
from jaxstate.rules.running import MANY, Running

Shapes = Mapping[str, tuple[int, ...]]
Rules = list[Any]
Make = Callable[[Shapes], Rules]

_NAMES = {"kernel": ".w", "bias": ".b", "embedding": ".embeddings"}  # Flax's names of what Haiku has


def layer_of(module: Any, shapes: Shapes, options: Options, suffix: str = "") -> Make | None:
    """What a module is, or None if it is a container or a class of the user's.

    Args:
        module: as it ran.
        shapes: of all arrays below it, without stacked axes.
        options: of the caller.
        suffix: "_l0" for a cell that is the layer of a torch RNN, LSTM or GRU.
    """
    if (given := options.rules_of(module)) is not None:
        return lambda shapes: [_located(rule) for rule in given]
    kind = kind_of(module)
    if suffix and kind not in _CELLS:
        raise BindingError(f"multilayer: {_place(module)} is no layer of a torch.nn.LSTM or RNN")
    if kind in _CELLS:
        return lambda shapes: _CELLS[kind](module, shapes, suffix)
    if kind not in _LAYERS or (kind == "MultiHeadAttention" and _is_separate(shapes, options)):
        return None
    return lambda shapes: _LAYERS[kind](module, shapes)


def kind_of(module: Any) -> str:
    """The name of the class of Haiku's that decides what a module is, or ""."""
    kind = deciding_class(module, _is_layer)
    return kind.__name__ if kind else ""


def neighbour_kind(module: Any) -> str:
    """What a layer is to its neighbours: "conv", "linear", "norm", "embedding", or "" for anything else."""
    return _KINDS.get(kind_of(module), "")


def owner_of(module: Any) -> str:
    """The class of a module that is not known, and why it is not."""
    return "the function" if module is None else _deciding.owner_of(module, _is_layer)


def _is_layer(kind: type) -> bool:
    return kind.__name__ in _KINDS and getattr(haiku(), kind.__name__, None) is kind


def _located(rule: Any) -> Any:
    """A rule of the user's, who writes `w` for an array of the module itself, `linear.w` for one inside."""
    if not rule.paths or rule.paths[0].startswith((".", "/")):
        return rule
    return rule.at("", "/" if "." in rule.paths[0] else ".")


def _place(module: Any) -> str:
    return f'{type(module).__name__} "{module.module_name}"'


def _refuse(module: Any, reason: str) -> BindingError:
    return BindingError(f"{_place(module)} {reason}; bind with rules=[...] or layers={{...}} of your own")


def _flax(shapes: Shapes, rules: Callable[..., Rules], *more: Any) -> Rules:
    """The rules of a layer of Flax that differs in names only."""
    own = {name: shapes[place] for name, place in _NAMES.items() if place in shapes}
    return [rule.renamed(_NAMES[rule.path]) for rule in rules(own, *more)]


def _conv(module: Any, shapes: Shapes) -> Rules:
    _check_conv(module)
    weight = _flax({".w": shapes[".w"]}, _rules.conv)
    return weight + _vector(shapes, "bias", ".b", (0,))


def _conv_transpose(module: Any, shapes: Shapes) -> Rules:
    """The kernel of the convolution that torch takes the gradient of, but running backwards."""
    _check_conv(module)
    weight = _flax({".w": shapes[".w"]}, _rules.conv_transpose, True, True)
    return weight + _vector(shapes, "bias", ".b", (0,))


def _check_conv(module: Any) -> None:
    if getattr(module, "mask", None) is not None:
        raise _refuse(module, "has a mask of its weights, which torch's convolutions have not")
    if module.num_spatial_dims not in _rules.SPATIAL:
        raise _refuse(module, "runs over more than three axes, and torch's convolutions do not")


def _layer_norm(module: Any, shapes: Shapes) -> Rules:
    """Axes that a parameter does not run over have length one in it, unless it runs over the last alone."""
    rules = []
    for key, name in (("weight", ".scale"), ("bias", ".offset")):
        axes = range(len(shapes.get(name, ())))
        said = module.param_axis
        own = axes[said] if isinstance(said, slice) else sorted({axis % len(axes) for axis in said if axes})
        if len(axes) == 1:
            own = axes
        if len(own) > 2:
            raise _refuse(
                module, "has three or more feature axes, and if these are an image torch has channels first"
            )
        rules += _vector(shapes, key, name, tuple(own))
    return rules


def _group_norm(module: Any, shapes: Shapes) -> Rules:
    return _vector(shapes, "weight", ".scale", (0,)) + _vector(shapes, "bias", ".offset", (0,))


def _batch_norm(module: Any, shapes: Shapes) -> Rules:
    """The averages are what is used; what they are computed from follows them."""
    mean, var = "/~/mean_ema", "/~/var_ema"
    rank = len(shapes[f"{mean}.average"])
    channel = module.channel_index % rank
    reduced = module.axis if module.axis is not None else [axis for axis in range(rank) if axis != channel]
    own = [axis for axis in range(rank) if axis not in {axis % rank for axis in reduced}]
    if len(own) != 1:
        raise _refuse(module, "normalises over several axes, and torch's BatchNorm has one axis of channels")
    affine = [*_vector(shapes, "weight", ".scale", own), *_vector(shapes, "bias", ".offset", own)]
    averages = [
        *_vector(shapes, "running_mean", f"{mean}.average", own, buffer=True),
        *_vector(shapes, "running_var", f"{var}.average", own, buffer=True),
    ]
    copies = {f"{ema}.hidden": f"{ema}.average" for ema in (mean, var)}
    counts = {f"{ema}.counter": MANY for ema in (mean, var)}
    counter = TorchOnly("num_batches_tracked", _rules.NO_BATCHES, counter=True)
    unset = dict.fromkeys(counts, 0)
    return [*affine, Running(tuple(averages), copies, counts, unset), counter]


def _vector(shapes: Shapes, key: str, name: str, own: Sequence[int], buffer: bool = False) -> Rules:
    """A parameter along some axes, with an axis of length one for each other axis of the input."""
    if name not in shapes:
        return []
    left = [f"a{n}" if n in own else "1" for n in range(len(shapes[name]))]
    right = [axis for axis in left if axis != "1"]
    return [Rule(key, name, f"{' '.join(left)} -> {' '.join(right)}", buffer=buffer)]


def _attention(module: Any, shapes: Shapes) -> Rules:
    names = ("query", "key", "value")
    widths = {shapes[f"/{name}.w"][0] for name in names}
    if len(widths) == 1:
        weights = [Rule("in_proj_weight", "/{qkv}.w", "d e -> (qkv e) d", qkv=names)]
    else:
        weights = [Rule(f"{name[0]}_proj_weight", f"/{name}.w", "d e -> e d") for name in names]
    out = [Rule("out_proj.weight", "/linear.w", "e d -> d e")]
    if "/linear.b" not in shapes:
        return weights + out
    bias = Rule("in_proj_bias", "/{qkv}.b", "e -> (qkv e)", qkv=names)
    return [*weights, bias, *out, Rule("out_proj.bias", "/linear.b", "d -> d")]


def _is_separate(shapes: Shapes, options: Options) -> bool:
    """True if attention is to be read as four Linear layers.

    Raises:
        BindingError: torch's own module is asked for, and cannot hold these weights.
    """
    width, heads = shapes["/query.w"]
    fits = width == heads == shapes["/value.w"][1] and shapes["/linear.w"] == (width, width)
    if options.packed and not fits:
        raise BindingError(
            "torch.nn.MultiheadAttention has one width for queries, heads together, and outputs; bind with "
            'attention="separate"'
        )
    return not fits or options.packed is False


def _lstm(module: Any, shapes: Shapes, suffix: str) -> Rules:
    """One matrix for inputs and state; gates i, g, f, o for torch's i, f, g, o; and f is raised by one."""
    size = module.hidden_size
    inputs = shapes["/linear.w"][0] - size
    rows, blocks = {"ih": (0, inputs), "hh": (inputs, inputs + size)}, []
    for gate, place in enumerate((0, 2, 1, 3)):
        there, here = (gate * size, (gate + 1) * size), (place * size, (place + 1) * size)
        for side, (start, stop) in rows.items():
            whole = ((start, stop), here)
            blocks.append(Block(f"weight_{side}{suffix}", (there, (0, stop - start)), "/linear.w", whole))
            blocks.append(Block(f"bias_{side}{suffix}", (there,), "/linear.b", (here,)))
    weights = {f"weight_{side}{suffix}": (4 * size, stop - start) for side, (start, stop) in rows.items()}
    arrays = {**weights, **{f"bias_{side}{suffix}": (4 * size,) for side in rows}}
    own = {name: shapes[name] for name in ("/linear.w", "/linear.b")}
    return [Blocks(arrays, tuple(blocks), (("/linear.b", 2 * size, 3 * size, 1.0),), own)]


def _rnn(module: Any, shapes: Shapes, suffix: str) -> Rules:
    """torch.nn.RNNCell with nonlinearity="relu", and with one bias or two."""
    layers = {"ih": "/linear", "hh": "/linear_1"}
    weights = [Rule(f"weight_{side}{suffix}", f"{layer}.w", "i k -> k i") for side, layer in layers.items()]
    if module.double_bias:
        return weights + [Rule(f"bias_{side}{suffix}", f"{layers[side]}.b", "k -> k") for side in layers]
    return [*weights, Sum(tuple(Rule(f"bias_{side}{suffix}", "/linear.b", "k -> k") for side in layers))]


def _gru(module: Any, shapes: Shapes, suffix: str) -> Rules:
    raise _refuse(module, "resets its state before the product with its weights, torch's GRU after it")


_CELLS: Mapping[str, Callable[[Any, Shapes, str], Rules]] = {"LSTM": _lstm, "VanillaRNN": _rnn, "GRU": _gru}

_LAYERS: Mapping[str, Callable[[Any, Shapes], Rules]] = {
    "Linear": lambda m, s: _flax(s, _rules.linear),
    "ConvND": _conv,
    **{f"DepthwiseConv{rank}D": _conv for rank in _rules.SPATIAL},
    "ConvNDTranspose": _conv_transpose,
    "Embed": lambda m, s: _flax(s, _rules.embedding),
    "LayerNorm": _layer_norm,
    "RMSNorm": _layer_norm,
    "GroupNorm": _group_norm,
    "BatchNorm": _batch_norm,
    "MultiHeadAttention": _attention,
}

_KINDS: Mapping[str, str] = {
    "Linear": "linear",
    "ConvND": "conv",
    **{f"DepthwiseConv{rank}D": "conv" for rank in _rules.SPATIAL},
    "ConvNDTranspose": "conv",
    "Embed": "embedding",
    "LayerNorm": "norm",
    "RMSNorm": "norm",
    "GroupNorm": "norm",
    "BatchNorm": "norm",
    **dict.fromkeys(("MultiHeadAttention", *_CELLS), ""),
}
