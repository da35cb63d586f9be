"""Suspicion: which layers may meet a flattened image, judged by their widths alone.

Without an example input a model cannot be traced, and nothing but the order and the widths of its layers is
known. That does not tell the permutation; it tells where to ask. The rule is narrow. A layer that reads
features (linear, recurrent, attention) is suspected of reading a flattened image if

- it comes after a convolution of C > 1 channels, with no other convolution between,
- it reads k * C features, for a whole k > 1,
- no earlier layer that is no convolution makes that many features,
- no layer since that convolution reads C features: that one would show an image that is pooled, or
  read pixel by pixel, as in a ResNet, a ViT or a ConvNeXt,
- nor do the channels of several convolutions stand side by side and a norm of k * C features come
  last, as in a DenseNet.

And a linear layer is suspected of making an image if no convolution comes before it, the next layer but
norms is a convolution that reads C > 1 channels, and it makes k * C features for a whole k > 3 (twice and
three times are a scale with a shift, and a query with its key and value).

A head that pools a concatenation of convolutions globally, with a width that happens to be a multiple of
the last one's channels, is suspected too (GoogLeNet: 1024 after 128). Widths cannot tell it from a flatten.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_READERS = frozenset({"linear", "recurrent", "attention"})
_MAKERS = _READERS | {"embedding"}


class Layer(NamedTuple):
    """What is known of a layer: its dotted name, kind ("conv", "linear", "norm", ...) and widths."""

    name: str
    kind: str
    in_features: int
    out_features: int


class Suspect(NamedTuple):
    """A layer that may meet a flattened image of `positions` pixels and `channels`, those of `conv`."""

    name: str
    conv: str
    channels: int
    positions: int


def suspects(layers: Sequence[Layer]) -> tuple[Suspect, ...]:
    """Name the layers that may meet a flattened image, from the model's layers in registration order.

    >>> recipe = [Layer("conv2", "conv", 6, 16), Layer("fc1", "linear", 400, 120)]
    >>> suspects([*recipe, Layer("fc2", "linear", 120, 84)])
    (Suspect(name='fc1', conv='conv2', channels=16, positions=25),)
    >>> suspects([Layer("conv", "conv", 3, 512), Layer("fc", "linear", 512, 1000)])
    ()
    """
    dense = _is_dense(layers)
    found = (_reads(sight, dense) or _makes(sight) for sight in _sights(layers))
    return tuple(suspect for suspect in found if suspect is not None)


class _Sight(NamedTuple):
    """What can be seen from a layer.

    Attributes:
        conv: the last convolution before it.
        norm: the last norm since then.
        is_made: True if an earlier layer that is no convolution makes as many features as it reads.
        is_read: True if a layer since the convolution reads as many features as that has channels.
        after: the next layer but norms and pools.
    """

    layer: Layer
    conv: Layer | None
    norm: Layer | None
    is_made: bool
    is_read: bool
    after: Layer | None


def _sights(layers: Sequence[Layer]) -> Iterator[_Sight]:
    """All in one pass, since models have thousands of layers."""
    conv: Layer | None = None
    norm: Layer | None = None
    made: set[int] = set()
    read: set[int] = set()
    for layer, after in zip(layers, _afters(layers), strict=True):
        is_read = conv is not None and conv.out_features in read
        yield _Sight(layer, conv, norm, layer.in_features in made, is_read, after)
        if layer.kind == "conv":
            conv, norm, read = layer, None, set()
        norm = layer if layer.kind == "norm" else norm
        made |= {layer.out_features} if layer.kind in _MAKERS else set()
        read |= {layer.in_features} if layer.kind in _READERS else set()


def _afters(layers: Sequence[Layer]) -> list[Layer | None]:
    """For each layer the next one but norms and pools."""
    found: list[Layer | None] = []
    after = None
    for layer in reversed(layers):
        found.append(after)
        after = after if layer.kind in ("norm", "pool") else layer
    return found[::-1]


def _is_dense(layers: Sequence[Layer]) -> bool:
    """Are the channels of convolutions concatenated before norms in this model?"""
    triples = zip(layers, layers[1:], layers[2:], strict=False)
    return any(
        [other.kind for other in triple] == ["conv", "norm", "conv"]
        and triple[0].out_features < triple[1].out_features == triple[2].in_features
        for triple in triples
    )


def _reads(sight: _Sight, dense: bool) -> Suspect | None:
    layer, conv, norm = sight.layer, sight.conv, sight.norm
    if layer.kind not in _READERS or conv is None or sight.is_made or sight.is_read:
        return None
    if dense and norm is not None and norm.out_features == layer.in_features:
        return None
    return _suspect(layer.name, layer.in_features, conv.name, conv.out_features, least=2)


def _makes(sight: _Sight) -> Suspect | None:
    layer, after = sight.layer, sight.after
    if layer.kind != "linear" or sight.conv is not None or after is None or after.kind != "conv":
        return None
    return _suspect(layer.name, layer.out_features, after.name, after.in_features, least=4)


def _suspect(name: str, features: int, conv: str, channels: int, least: int) -> Suspect | None:
    if channels < 2 or features % channels or features // channels < least:
        return None
    return Suspect(name, conv, channels, features // channels)
