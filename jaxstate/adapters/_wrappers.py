"""Layers around a layer: weight_norm and spectral_norm, as torch.nn.utils.parametrizations writes them.

A parametrized weight leaves its own name and stands under `parametrizations.weight`, behind the module's
remaining parameters; its own layout stays that of the layer inside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxstate.errors import BindingError
from jaxstate.layout import Layout
from jaxstate.rule import Rule
from jaxstate.spectral import Spectral

Rules = Sequence[Any]


def weight_norm(
    inner: Rules, scales: Mapping[str, str], feature_axes: Any, prefix: str = "layer_instance."
) -> Rules:
    """torch.nn.utils.parametrizations.weight_norm with `dim=0`: magnitude `original0`, direction `original1`.

    Args:
        inner: the rules of the layer inside.
        scales: for each normalised leaf the path of its magnitudes.
        feature_axes: the axis of the leaf that has a magnitude each.

    Raises:
        BindingError: an axis that is not the first of torch's weight.
    """
    rules = []
    for rule in sorted(inner, key=lambda rule: rule.paths[0] in scales):
        if rule.paths[0] not in scales:
            rules.append(rule.at("", prefix))
            continue
        place, rank = f"parametrizations.{rule.key}.", len(rule.layout.right)
        _check_first(rule, feature_axes)
        magnitude = Rule("original0", scales[rule.path], " ".join(["o -> o", *["1"] * (rank - 1)]))
        rules += [magnitude.at(place, ""), _renamed(rule, place + "original1", prefix)]
    return rules


def spectral_norm(inner: Rules, u: str, sigma: str, prefix: str = "layer_instance.") -> Rules:
    """torch.nn.utils.parametrizations.spectral_norm: the weight, and the vectors of its power iteration."""
    weights = [rule for rule in inner if rule.path == "kernel"]
    others = [rule.at("", prefix) for rule in inner if rule.path != "kernel"]
    if len(weights) != 1:
        raise BindingError("SpectralNorm around a module without one kernel has no counterpart in torch")
    weight = _renamed(weights[0], "parametrizations.weight.original", prefix)
    vector = Rule("parametrizations.weight.0._u", u, "1 o -> o", buffer=True)
    return [*others, Spectral(weight, vector, "parametrizations.weight.0._v", sigma)]


def _renamed(rule: Rule, key: str, prefix: str) -> Rule:
    return Rule(key, prefix + rule.path, rule.pattern, **dict(rule.sizes))


def _check_first(rule: Rule, feature_axes: Any) -> None:
    axes = [feature_axes] if isinstance(feature_axes, int) else list(feature_axes or ())
    layout: Layout = rule.layout
    names = [layout.left[axis] for axis in axes if -len(layout.left) <= axis < len(layout.left)]
    if names != [layout.right[0]]:
        raise BindingError(
            f"WeightNorm with feature_axes={feature_axes} scales axis {names} of {rule}; torch's weight_norm "
            f"scales the first axis of its weight, {layout.right[0]}"
        )
