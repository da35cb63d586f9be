"""The layers of flax.nnx: the shapes that each declares, and which torch module it is.

A class that is not here, and a subclass that overrides `__call__`, is not known: its arrays are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxstate.adapters import _deciding, _rules, _wrappers
from jaxstate.adapters._deciding import deciding_class
from jaxstate.adapters._options import Options
from jaxstate.errors import BindingError

Shapes = Mapping[str, tuple[int, ...]]
RulesOf = Callable[[Shapes, Shapes], Any]  # of declared and of actual shapes; see `Layer.rules`


@dataclass(frozen=True)
class Known:
    """A module that is known: its leaves as it declares them, and the rules for such leaves."""

    expected: Shapes
    rules: RulesOf


def layer_of(module: Any, options: Options, multilayer: bool = False) -> Known | None:
    """What a module is, or None if it is a container or a class of the user's.

    Raises:
        BindingError: a module of Flax's that torch has no counterpart for.
    """
    if (given := options.rules_of(module)) is not None:
        return Known({}, lambda expected, actual: list(given))
    if multilayer:
        return _known(module, _multilayer(module))
    kind = kind_class(module)
    return None if kind is None else _known(module, _LAYERS[kind](module, options))


def kind_class(module: Any) -> type | None:
    """The Flax class that decides what a module is: its own, or one that it only configures."""
    return deciding_class(module, _LAYERS.__contains__)


def kind_of(module: Any) -> str:
    """What a layer is to its neighbours: "conv", "linear", "norm", "recurrent", ..., or "" for anything else.

    A layer around a layer is what that one is.
    """
    kind = kind_class(module)
    return kind_of(getattr(module, _INSIDE[kind])) if kind in _INSIDE else _KINDS.get(kind, "")  # type: ignore


def owner_of(module: Any) -> str:
    """The class of a module that is not known, and why it is not."""
    return _deciding.owner_of(module, _LAYERS.__contains__)


def declared(module: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf below a module, as the layers there declare it."""
    shapes = dict(_DECLARED.get(kind_class(module), lambda m: {})(module))  # type: ignore[arg-type]
    children = {name: child for name, child in vars(module).items() if isinstance(child, nnx.Module)}
    below = {name: declared(child) for name, child in children.items()}
    return shapes | {
        f"{name}.{leaf}": shape for name, leaves in below.items() for leaf, shape in leaves.items()
    }


def _known(module: Any, rules: RulesOf) -> Known:
    return Known(declared(module), rules)


def _simple(rules: Callable[[Shapes], list[Any]]) -> RulesOf:
    return lambda expected, actual: rules(expected)


def _linear_general(module: nnx.LinearGeneral) -> RulesOf:
    if module.batch_axis:
        raise BindingError("LinearGeneral with batch_axis is a batch of matrices; torch.nn.Linear has one")
    # Whatever order `axis` was said in, Flax sorts it: the kernel's axes stand as the input's do.
    count = len(module.in_features)
    outputs = range(count, count + len(module.out_features))
    return lambda expected, actual: _rules.linear_general(expected, range(count), outputs)


def _prelu(module: nnx.PReLU) -> RulesOf:
    """A slope or one for each channel: the module does not say which, so the axes of stacks must be known."""
    return lambda expected, actual: lambda depth: _rules.prelu({k: v[depth:] for k, v in actual.items()})


def _cell(module: Any, suffix: str = "") -> list[Any]:
    kind = kind_class(module)
    if kind is nnx.LSTMCell:
        hidden = ("hi", "hf", "hg", "ho")
        return _rules.gated_cell(suffix, ("ii", "if_", "ig", "io"), hidden, (hidden, hidden))
    if kind is nnx.OptimizedLSTMCell:
        return _rules.fused_cell(suffix, "dense_h")
    hidden = module.hidden_features
    return _rules.fused_cell(suffix, "dense_i", (2 * hidden, 3 * hidden) if kind is nnx.GRUCell else None)


def _layers_of_rnn(module: Any, number: int, prefix: str) -> list[Any]:
    """The rules of one layer of a torch module: of an RNN, or of both directions of a Bidirectional."""
    if isinstance(module, nnx.Bidirectional):
        forward = _rules_of_rnn(module.forward_rnn, f"_l{number}", f"{prefix}forward_rnn.")
        return forward + _rules_of_rnn(module.backward_rnn, f"_l{number}_reverse", f"{prefix}backward_rnn.")
    return _rules_of_rnn(module, f"_l{number}", prefix)


def _rules_of_rnn(module: Any, suffix: str, prefix: str) -> list[Any]:
    cell = getattr(module, "cell", None)
    if not isinstance(module, nnx.RNN) or kind_class(cell) not in _CELLS:
        what = f"{type(module).__name__} around {type(cell).__name__}" if cell else type(module).__name__
        raise BindingError(
            f"{what} is no layer of a torch.nn.LSTM, GRU or RNN; give its class rules: "
            f"js.bind(model, layers={{{type(module).__name__}: lambda module: [Rule(...), ...]}})"
        )
    return [rule.at("", f"{prefix}cell.") for rule in _cell(cell, suffix)]


def _multilayer(module: Any) -> RulesOf:
    path, rnns = ("layers.", module.layers) if isinstance(module, nnx.Sequential) else ("", module)
    rules = [rule for n, rnn in enumerate(rnns) for rule in _layers_of_rnn(rnn, n, f"{path}{n}.")]
    return lambda expected, actual: rules


def _weight_norm(module: nnx.WeightNorm, options: Options) -> RulesOf:
    if not module.scales:
        raise BindingError("WeightNorm with use_scale=False has no magnitudes, torch's weight_norm has")
    inner = layer_of(module.layer_instance, options)
    return lambda expected, actual: _wrappers.weight_norm(
        inner.rules(_below(expected), _below(actual)) if inner else [],
        {".".join(map(str, name)): f"scales.{name}" for name in module.scales or ()},
        module.feature_axes,
    )


def _spectral_norm(module: nnx.SpectralNorm, options: Options) -> RulesOf:
    inner = layer_of(module.layer_instance, options)
    return lambda expected, actual: _wrappers.spectral_norm(
        inner.rules(_below(expected), _below(actual)) if inner else [],
        "batch_stats.('kernel', 'u')",
        "batch_stats.('kernel', 'sigma')",
    )


def _lora(module: nnx.LoRA, options: Options) -> RulesOf:
    inner = layer_of(module.base_module, options) if module.base_module is not None else None
    below = "base_module."
    return lambda expected, actual: _rules.lora(
        [r.at("", below) for r in inner.rules(_below(expected, below), _below(actual, below))]
        if inner
        else [],
        "",
    )


def _below(shapes: Shapes, prefix: str = "layer_instance.") -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _rank(module: nnx.LoRA) -> int:
    return module.lora_a.shape[-1]


_CELLS = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)

_LAYERS: Mapping[type, Callable[[Any, Options], RulesOf]] = {
    nnx.Linear: lambda m, o: _simple(_rules.linear),
    nnx.LinearGeneral: lambda m, o: _linear_general(m),
    nnx.Einsum: lambda m, o: _simple(lambda shapes: _rules.einsum(shapes, m.einsum_str)),
    nnx.Conv: lambda m, o: _simple(_rules.conv),
    nnx.ConvTranspose: lambda m, o: _simple(lambda shapes: _rules.conv_transpose(shapes, m.transpose_kernel)),
    nnx.Embed: lambda m, o: _simple(_rules.embedding),
    nnx.BatchNorm: lambda m, o: _simple(_rules.batch_norm),
    nnx.LayerNorm: lambda m, o: _simple(_rules.norm),
    nnx.GroupNorm: lambda m, o: _simple(_rules.norm),
    nnx.RMSNorm: lambda m, o: _simple(_rules.norm),
    nnx.InstanceNorm: lambda m, o: _simple(_rules.norm),
    nnx.PReLU: lambda m, o: _prelu(m),
    nnx.MultiHeadAttention: lambda m, o: _simple(lambda shapes: _rules.attention(shapes, o.packed)),
    nnx.LSTMCell: lambda m, o: _simple(lambda shapes: _cell(m)),
    nnx.OptimizedLSTMCell: lambda m, o: _simple(lambda shapes: _cell(m)),
    nnx.GRUCell: lambda m, o: _simple(lambda shapes: _cell(m)),
    nnx.SimpleCell: lambda m, o: _simple(lambda shapes: _cell(m)),
    nnx.RNN: lambda m, o: _simple(lambda shapes: _layers_of_rnn(m, 0, "")),
    nnx.Bidirectional: lambda m, o: _simple(lambda shapes: _layers_of_rnn(m, 0, "")),
    nnx.WeightNorm: _weight_norm,
    nnx.SpectralNorm: _spectral_norm,
    nnx.LoRALinear: lambda m, o: _simple(lambda shapes: _rules.lora(_rules.linear(shapes), "lora.")),
    nnx.LoRA: _lora,
    nnx.Dropout: lambda m, o: _simple(lambda shapes: []),
}

_DECLARED: Mapping[type, Callable[[Any], dict[str, tuple[int, ...]]]] = {
    nnx.Linear: lambda m: {"kernel": (m.in_features, m.out_features), "bias": (m.out_features,)},
    nnx.LoRALinear: lambda m: {"kernel": (m.in_features, m.out_features), "bias": (m.out_features,)},
    nnx.LinearGeneral: lambda m: {"kernel": (*m.in_features, *m.out_features), "bias": (*m.out_features,)},
    nnx.Einsum: lambda m: {"kernel": (*m.kernel_shape,), "bias": (*(m.bias_shape or ()),)},
    nnx.Conv: lambda m: {"kernel": (*m.kernel_shape,), "bias": (m.out_features,)},
    nnx.ConvTranspose: lambda m: {"kernel": (*m.kernel_shape,), "bias": (m.out_features,)},
    nnx.Embed: lambda m: {"embedding": (m.num_embeddings, m.features)},
    nnx.BatchNorm: lambda m: dict.fromkeys(("scale", "bias", "mean", "var"), (m.num_features,)),
    nnx.LayerNorm: lambda m: dict.fromkeys(("scale", "bias"), (m.num_features,)),
    nnx.GroupNorm: lambda m: dict.fromkeys(("scale", "bias"), (m.num_groups * m.group_size,)),
    nnx.RMSNorm: lambda m: {"scale": (m.num_features,)},
    nnx.InstanceNorm: lambda m: dict.fromkeys(("scale", "bias"), (m.num_features,)),
    nnx.LoRA: lambda m: {"lora_a": (m.in_features, _rank(m)), "lora_b": (_rank(m), m.out_features)},
}

_INSIDE: Mapping[Any, str] = {
    nnx.WeightNorm: "layer_instance",
    nnx.SpectralNorm: "layer_instance",
    nnx.LoRA: "base_module",
}

_KINDS: Mapping[type, str] = {
    nnx.Conv: "conv",
    nnx.ConvTranspose: "conv",
    nnx.Linear: "linear",
    nnx.LoRALinear: "linear",
    nnx.LinearGeneral: "linear",
    nnx.Embed: "embedding",
    nnx.BatchNorm: "norm",
    nnx.LayerNorm: "norm",
    nnx.GroupNorm: "norm",
    nnx.RMSNorm: "norm",
    nnx.InstanceNorm: "norm",
    **dict.fromkeys((*_CELLS, nnx.RNN, nnx.Bidirectional), "recurrent"),
}
