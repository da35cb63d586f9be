"""The layers of flax.linen: which torch module each is, and which have none.

A class that is not here, and a subclass that overrides `__call__`, is not known: its arrays are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen as nn

from jaxstate.adapters import _rules, _wrappers
from jaxstate.adapters._deciding import deciding_class
from jaxstate.adapters._linen_trace import Seen
from jaxstate.adapters._options import Options
from jaxstate.errors import BindingError

Shapes = Mapping[str, tuple[int, ...]]
Rules = list[Any]
Make = Callable[[Shapes], Rules]  # from the shapes that a layer declares to its rules

_CALL = "__call__"

HOLDERS = (nn.RNN, nn.Bidirectional, nn.WeightNorm, nn.SpectralNorm)  # the layers that hold other layers


def layer_of(seen: Seen, options: Options) -> Make | None:
    """What a module is, or None if it is a container or a class of the user's."""
    if (given := options.rules_of(seen.module)) is not None:
        return lambda shapes: list(given)
    kind = kind_class(seen.module)
    return None if kind is None else lambda shapes: _LAYERS[kind](seen, options, shapes)


def kind_class(module: Any) -> type | None:
    """The Flax class that decides what a module is: its own, or one that it only configures or transforms."""
    return deciding_class(
        module, _LAYERS.__contains__, lambda kind: _CALL in vars(kind) and not _is_transform(kind)
    )


def kind_of(module: Any) -> str:
    """What a layer is to its neighbours: "conv", "linear", "norm", "embedding", or "" for anything else."""
    return _KINDS.get(kind_class(module), "")  # type: ignore[arg-type]


def multilayer(rnns: Sequence[Any]) -> Make:
    """The rules of a list of RNNs that are the layers of one torch RNN, LSTM or GRU."""
    return lambda shapes: [r for n, rnn in enumerate(rnns) for r in _layers_of_rnn(rnn, n, f"{n}.")]


def _is_transform(kind: type) -> bool:
    """True for the classes that nn.remat, nn.scan and their kin derive: they call their base's method."""
    return getattr(vars(kind)[_CALL], "__wrapped__", None) is getattr(kind.__base__, _CALL, kind)


def _simple(rules: Callable[[Shapes], Rules]) -> Callable[[Seen, Options, Shapes], Rules]:
    return lambda seen, options, shapes: rules(shapes)


def _refuse(reason: str) -> Callable[[Seen, Options, Shapes], Rules]:
    def refuse(seen: Seen, options: Options, shapes: Shapes) -> Rules:
        raise BindingError(f"{_place(seen)} {reason}; bind with rules=[...] or layers={{...}} of your own")

    return refuse


def _place(seen: Seen) -> str:
    return f'{type(seen.module).__name__} "{".".join(seen.module.path)}"'


def _dense_general(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    """Flax sorts the axes it contracts, so the kernel has them in the order of flattening."""
    if seen.module.batch_dims:
        return _refuse("has batch_dims: a batch of matrices, and torch.nn.Linear has one")(
            seen, options, shapes
        )
    axis = seen.module.axis
    count = 1 if isinstance(axis, int) else len(axis)
    return _rules.linear_general(shapes, range(count), range(count, len(shapes["kernel"])))


def _einsum(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    given = [seen.module.einsum_str] if seen.module.einsum_str else list(seen.texts)
    if len(given) != 1:
        raise BindingError(f"{_place(seen)} is called with several equations, {given}, and has one kernel")
    return _rules.einsum(shapes, given[0])


def _conv(rules: Callable[[Seen, Shapes], Rules]) -> Callable[[Seen, Options, Shapes], Rules]:
    def checked(seen: Seen, options: Options, shapes: Shapes) -> Rules:
        if len(shapes["kernel"]) - 2 not in _rules.SPATIAL:
            return _refuse("runs over more than three axes, and torch's convolutions do not")(
                seen, options, shapes
            )
        return rules(seen, shapes)

    return checked


def _batch_norm(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    if len(shapes["mean"]) != 1:
        return _refuse("normalises over several axes, and torch's BatchNorm has one axis of channels")(
            seen, options, shapes
        )
    return _rules.batch_norm(shapes)


def _layer_norm(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    """Flax orders feature axes as the array does, however they are listed: torch's order for vectors."""
    if any(len(shape) > 2 for shape in shapes.values()):
        return _refuse("has three or more feature axes, and if these are an image torch has channels first")(
            seen, options, shapes
        )
    return _rules.norm(shapes)


def _cell(module: Any, suffix: str = "") -> Rules:
    kind = kind_class(module)
    if kind is nn.GRUCell:
        inputs, hidden = ("ir", "iz", "in"), ("hr", "hz", "hn")
        return _rules.gated_cell(suffix, inputs, hidden, (inputs, ("ir", "iz", "hn")))
    if kind is nn.SimpleCell and not module.residual:
        return _rules.gated_cell(suffix, ("i",), ("h",), (("i",), ("i",)))
    if kind in (nn.LSTMCell, nn.OptimizedLSTMCell):
        hidden = ("hi", "hf", "hg", "ho")
        return _rules.gated_cell(suffix, ("ii", "if", "ig", "io"), hidden, (hidden, hidden))
    raise BindingError(f"{_place(Seen(module))} is no cell of a torch.nn.LSTM, GRU or RNN")


def _layers_of_rnn(module: Any, number: int, prefix: str) -> Rules:
    """The rules of one layer of a torch module: of an RNN, or of both directions of a Bidirectional."""
    if isinstance(module, nn.Bidirectional):
        forward = _layers_of_rnn(module.forward_rnn, number, f"{prefix}forward_rnn.")
        cell = _cell(module.backward_rnn.cell, f"_l{number}_reverse")  # type: ignore[attr-defined]
        return forward + [rule.at("", f"{prefix}backward_rnn.cell.") for rule in cell]
    if not isinstance(module, nn.RNN):
        raise BindingError(f"{_place(Seen(module))} is no layer of a torch.nn.LSTM, GRU or RNN")
    return [rule.at("", f"{prefix}cell.") for rule in _cell(module.cell, f"_l{number}")]


def _inner(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    """The rules of the layer that a normalisation of weights is wrapped around."""
    below = "layer_instance."
    make = layer_of(Seen(seen.module.layer_instance), options)
    if make is None:
        inner = type(seen.module.layer_instance).__name__
        return _refuse(f"is around a {inner}, which is no layer that is known")(seen, options, shapes)
    return make({name.removeprefix(below): s for name, s in shapes.items() if name.startswith(below)})


def _weight_norm(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    start, end = f"{seen.module.layer_instance.name}/", "/scale"
    names = [name for name in shapes if name.startswith(start) and name.endswith(end)]
    if not names:
        return _refuse("has no scale to be torch's magnitude: use_scale=False fixes it")(
            seen, options, shapes
        )
    scales = {name.removeprefix(start).removesuffix(end).replace("/", "."): name for name in names}
    return _wrappers.weight_norm(_inner(seen, options, shapes), scales, seen.module.feature_axes)  # type: ignore[return-value]


def _spectral_norm(seen: Seen, options: Options, shapes: Shapes) -> Rules:
    vector = f"{seen.module.layer_instance.name}/kernel/"
    rules = _wrappers.spectral_norm(_inner(seen, options, shapes), vector + "u", vector + "sigma")
    return list(rules)


_attention = lambda seen, options, shapes: _rules.attention(shapes, options.packed)  # noqa: E731
_one_cell = lambda seen, options, shapes: _cell(seen.module)  # noqa: E731
_one_rnn = lambda seen, options, shapes: _layers_of_rnn(seen.module, 0, "")  # noqa: E731

_LAYERS: Mapping[type, Callable[[Seen, Options, Shapes], Rules]] = {
    nn.Dense: _simple(_rules.linear),
    nn.DenseGeneral: _dense_general,
    nn.Einsum: _einsum,
    nn.Conv: _conv(lambda seen, shapes: _rules.conv(shapes)),
    nn.ConvTranspose: _conv(lambda seen, shapes: _rules.conv_transpose(shapes, seen.module.transpose_kernel)),
    nn.ConvLocal: _refuse("has a kernel for each place, and no module of torch has"),
    nn.Embed: _simple(_rules.embedding),
    nn.BatchNorm: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _simple(_rules.norm),
    nn.RMSNorm: _layer_norm,
    nn.InstanceNorm: _layer_norm,
    nn.PReLU: _simple(_rules.prelu),
    nn.MultiHeadDotProductAttention: _attention,
    nn.MultiHeadAttention: _attention,
    nn.SelfAttention: _attention,
    nn.LSTMCell: _one_cell,
    nn.OptimizedLSTMCell: _one_cell,
    nn.GRUCell: _one_cell,
    nn.SimpleCell: _one_cell,
    nn.MGUCell: _refuse("is a minimal gated unit, and no module of torch is"),
    nn.ConvLSTMCell: _refuse("is a convolutional LSTM, and no module of torch is"),
    nn.RNN: _one_rnn,
    nn.Bidirectional: _one_rnn,
    nn.WeightNorm: _weight_norm,
    nn.SpectralNorm: _spectral_norm,
}

_KINDS: Mapping[type, str] = {
    nn.Conv: "conv",
    nn.ConvTranspose: "conv",
    nn.Dense: "linear",
    nn.DenseGeneral: "linear",
    nn.Embed: "embedding",
    nn.BatchNorm: "norm",
    nn.LayerNorm: "norm",
    nn.GroupNorm: "norm",
    nn.RMSNorm: "norm",
    nn.InstanceNorm: "norm",
}
