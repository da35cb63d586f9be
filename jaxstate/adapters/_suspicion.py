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

from collections.abc import Sequence
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
    found = (_reads(layers, i) or _makes(layers, i) for i in range(len(layers)))
    return tuple(suspect for suspect in found if suspect is not None)


def _reads(layers: Sequence[Layer], i: int) -> Suspect | None:
    layer, convs = layers[i], [j for j in range(i) if layers[j].kind == "conv"]
    if layer.kind not in _READERS or not convs:
        return None
    conv, between = layers[convs[-1]], layers[convs[-1] + 1 : i]
    made = {other.out_features for other in layers[:i] if other.kind in _MAKERS}
    read = {other.in_features for other in between if other.kind in _READERS}
    if layer.in_features in made or conv.out_features in read or _dense(layers, layer, between):
        return None
    return _suspect(layer.name, layer.in_features, conv.name, conv.out_features, least=2)


def _dense(layers: Sequence[Layer], layer: Layer, between: Sequence[Layer]) -> bool:
    """Are channels concatenated before norms in this model, and normed so right before this layer?"""
    last = [other.out_features for other in between if other.kind == "norm"][-1:]
    triples = zip(layers, layers[1:], layers[2:], strict=False)
    return last == [layer.in_features] and any(
        [other.kind for other in triple] == ["conv", "norm", "conv"]
        and triple[0].out_features < triple[1].out_features == triple[2].in_features
        for triple in triples
    )


def _makes(layers: Sequence[Layer], i: int) -> Suspect | None:
    layer = layers[i]
    after = next((other for other in layers[i + 1 :] if other.kind not in ("norm", "pool")), None)
    first = all(other.kind != "conv" for other in layers[:i])
    if layer.kind != "linear" or not first or after is None or after.kind != "conv":
        return None
    return _suspect(layer.name, layer.out_features, after.name, after.in_features, least=4)


def _suspect(name: str, features: int, conv: str, channels: int, least: int) -> Suspect | None:
    if channels < 2 or features % channels or features // channels < least:
        return None
    return Suspect(name, conv, channels, features // channels)
