"""Layers around a layer: weight_norm and spectral_norm, as torch.nn.utils.parametrizations writes them.

A parametrized weight leaves its own name and stands under `parametrizations.weight`, behind the module's
remaining parameters; its own layout stays that of the layer inside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxstate.errors import BindingError
from jaxstate.layout import Layout
from jaxstate.rules.rule import Rule
from jaxstate.rules.spectral import Spectral

Rules = Sequence[Any]


def weight_norm(
    inner: Rules,
    scales: Mapping[str, str],
    feature_axes: Any,
    prefix: str = "layer_instance.",
    kept_axes: bool = False,
) -> Rules:
    """torch.nn.utils.parametrizations.weight_norm: magnitude `original0`, direction `original1`.

    torch's `dim` follows from the axis: 0 for the outputs of Linear and Conv, 2 for the taps of a Conv1d.

    Args:
        inner: the rules of the layer inside.
        scales: for each normalised leaf the path of its magnitudes.
        feature_axes: the axis of the leaf that has a magnitude each.
        prefix: where the layer inside stands.
        kept_axes: True if the magnitudes have an axis of length one for each other axis of the leaf.

    Raises:
        BindingError: axes that are no one dimension of torch's weight; a weight that has no rule of its own.
    """
    weights = [rule for rule in inner if not scales.keys().isdisjoint(rule.paths)]
    others = [rule.at("", prefix) for rule in inner if rule not in weights]
    if not weights or any(len(getattr(rule, "names", ("",))) for rule in weights):
        raise BindingError("WeightNorm around a module without one weight has no counterpart in torch")
    return [
        *others,
        *(part for rule in weights for part in _parts(rule, scales, feature_axes, prefix, kept_axes)),
    ]


def _parts(rule: Rule, scales: Mapping[str, str], feature_axes: Any, prefix: str, kept_axes: bool) -> Rules:
    """Magnitude and direction of one weight."""
    place, dim = f"parametrizations.{rule.key}.", _scaled_dimension(rule, feature_axes)
    scaled = () if dim is None else rule.layout.right[dim]
    there = " ".join(f"~{axis}" if axis in rule.layout.flipped else axis for axis in scaled)
    merged = f"({there})" if len(scaled) > 1 else there
    ones = ["1"] * (len(rule.layout.right) if scaled else 0)
    right = [merged if n == dim else one for n, one in enumerate(ones)]
    left = ["".join(scaled) if d == scaled else "1" for d in rule.layout.left] if kept_axes else scaled
    pattern = f"{' '.join(left)} -> {' '.join(right)}"
    magnitude = Rule("original0", scales[rule.path], pattern)
    return [magnitude.at(place, ""), _renamed(rule, place + "original1", prefix)]


def spectral_norm(inner: Rules, u: str, sigma: str, prefix: str = "layer_instance.") -> Rules:
    """torch.nn.utils.parametrizations.spectral_norm: the weight, and the vectors of its power iteration."""
    weights = [rule for rule in inner if rule.path == "kernel"]
    others = [rule.at("", prefix) for rule in inner if rule.path != "kernel"]
    if len(weights) != 1:
        raise BindingError("SpectralNorm around a module without one kernel has no counterpart in torch")
    _check_output_axis(weights[0])
    weight = _renamed(weights[0], "parametrizations.weight.original", prefix)
    vector = Rule("parametrizations.weight.0._u", u, "1 o -> o", buffer=True)
    return [*others, Spectral(weight, vector, "parametrizations.weight.0._v", sigma)]


def stored_spectral_norm(inner: Rules, shape: Sequence[int], u: str, v: str, prefix: str) -> Rules:
    """The same where JAX, too, stores both vectors, of a weight whose first axis is the output's.

    Args:
        inner: the rules of the layer inside.
        shape: of its weight.
        u, v: the paths of the vectors; `prefix` is where the layer stands.

    Raises:
        BindingError: a layer without one weight, or one in groups, of which torch has another matrix.
    """
    weights = [rule for rule in inner if rule.path == "weight"]
    if len(weights) != 1 or len(weights[0].layout.left[0]) != 1:
        raise BindingError(
            "SpectralNorm around a module without one weight, or of groups, has no twin in torch"
        )
    left, _, right = weights[0].pattern.partition(" -> ")
    first, *rest = left.split()
    sizes: dict[str, Any] = dict(zip(rest, shape[1:], strict=True))
    columns = " ".join(axis for axis in right.split() if axis != first)
    place = "parametrizations.weight."
    return [
        *(rule.at("", prefix) for rule in inner if rule.path != "weight"),
        _renamed(weights[0], f"{place}original", prefix),
        Rule(f"{place}0._u", u, f"{first} -> {first}", buffer=True),
        Rule(f"{place}0._v", v, f"({' '.join(rest)}) -> ({columns})", buffer=True, **sizes),
    ]


def _check_output_axis(rule: Rule) -> None:
    """Both sides iterate over a matrix: torch's has the output axis first, Flax's the kernel's last axis."""
    layout: Layout = rule.layout
    output = ("o",) if ("o",) in layout.right else layout.right[0]
    if layout.left[-1] != output:
        raise BindingError(
            f"SpectralNorm iterates over axis {' '.join(layout.left[-1])} of {rule}, torch's spectral_norm "
            f"over the output axis, {' '.join(output)}: the singular values are not the same"
        )


def _renamed(rule: Rule, key: str, prefix: str) -> Rule:
    sizes: dict[str, Any] = dict(rule.sizes)
    return Rule(key, prefix + rule.path, rule.pattern, **sizes)


def _scaled_dimension(rule: Rule, feature_axes: Any) -> int | None:
    """The dimension of torch's weight that has a magnitude for each position; None if it has one for all."""
    axes = [feature_axes] if isinstance(feature_axes, int) else list(feature_axes or ())
    layout: Layout = rule.layout
    names = [layout.left[axis] for axis in axes if -len(layout.left) <= axis < len(layout.left)]
    merged = tuple(name for dim in names for name in dim)
    if merged and merged not in layout.right:
        raise BindingError(
            f"WeightNorm with feature_axes={feature_axes} scales axis {' '.join(merged)} of {rule}; torch's "
            f"weight_norm scales one dimension of its weight, or all of it"
        )
    return layout.right.index(merged) if merged else None
