"""What the caller says of flattened images: `flatten={"fc": (C, H, W)}`. What cannot be meant is refused.

The refusal ends in the line to say instead, where there is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from jaxstate.adapters._merged import Merged
from jaxstate.adapters._reading import Layer, Reading
from jaxstate.errors import BindingError, near_names
from jaxstate.rules.declared import Sum
from jaxstate.rules.rule import Rule
from jaxstate.rules.running import Running
from jaxstate.rules.spectral import Spectral
from jaxstate.template import holes

Flattens = Mapping[str, Mapping[int, Merged]]  # by leaf, by dimension

_AXES = {2: "cw", 3: "chw", 4: "cdhw"}  # of an image, in torch's order


def said_flattens(reading: Reading, flatten: Mapping[str, tuple[int, ...] | None] | None) -> Flattens:
    """The image that the input axis of a layer's leaves holds, or that it holds none.

    Raises:
        BindingError: no such layer, no image, or not as many features as the layer reads.
    """
    layers = {".".join(part.key): part for part in reading.found if isinstance(part, Layer)}
    if flatten is not None and not isinstance(flatten, Mapping):
        example = _line(next((name for name, layer in layers.items() if _features(layer)), "fc"), flatten)
        raise BindingError(f"flatten={flatten!r} does not say which layer reads the image: {example}")
    said: dict[str, dict[int, Merged]] = {}
    for name, shape in (flatten or {}).items():
        _check_shape(name, shape)
        _check_layer(name, shape, layers)
        if shape is None:
            said |= {
                layers[name].elsewhere.get(leaf, layers[name].path + leaf): {} for leaf in layers[name].actual
            }
        else:
            said |= {
                path: {n: _image(shape)} for path, n, size in _reads(layers[name]) if size == prod(shape)
            }
    return said


def _check_shape(name: str, shape: Any) -> None:
    is_shape = isinstance(shape, Sequence) and all(isinstance(n, int) for n in shape)
    if shape is not None and not (is_shape and len(shape) in _AXES):
        raise BindingError(
            f"{_line(name, shape)}: {shape!r} is no image: say torch's (C, W), (C, H, W) or (C, D, H, W)"
        )


def _check_layer(name: str, shape: Any, layers: Mapping[str, Layer]) -> None:
    """Raise BindingError unless there is this layer, and it reads an image of this shape."""
    size = None if shape is None else prod(shape)
    if name not in layers:
        near = near_names([name], layers) or dict.fromkeys([name], _only_reader(size, layers))
        remedy = f"say {_line(near[name], shape)}" if near[name] else f"there are {list(layers)}"
        raise BindingError(f"{_line(name, shape)}: there is no such layer; {remedy}")
    if size is None or size in _features(layers[name]):
        return
    own, other = _features(layers[name]), _only_reader(size, layers)
    what = f"no leaf of {name} reads {size} features"
    if other:
        raise BindingError(f"{_line(name, shape)}: {what}; {other} does: say {_line(other, shape)}")
    lengths = " or ".join(map(str, own))
    remedy = f"{_line(name, '(C, H, W)')} with C * H * W = {lengths}" if own else f"{_line(name, None)}"
    raise BindingError(f"{_line(name, shape)}: {what}; say {remedy}")


def _line(name: str, shape: Any) -> str:
    return f'flatten={{"{name}": {shape}}}'


def _only_reader(size: int | None, layers: Mapping[str, Layer]) -> str:
    """The one layer that reads so many features, or ""."""
    found = [name for name, layer in layers.items() if size in _features(layer)]
    return found[0] if len(found) == 1 else ""


def _features(layer: Layer) -> list[int]:
    """How many features the leaves of a layer read."""
    return sorted({size for _, _, size in _reads(layer)})


def _reads(layer: Layer) -> Iterator[tuple[str, int, int]]:
    """The leaves that meet a layer's input feature by feature, which dimension does, and its length."""
    rules = layer.rules(0) if callable(layer.rules) else layer.rules
    parts = [part for rule in rules for part in _parts(rule)]
    for part in parts:
        if isinstance(part, Rule) and (axis := _input_axis(part, layer.kind)) in (left := _own_axes(part)):
            n = left.index(axis)
            own = [path for path in part.paths if len(layer.actual.get(path, ())) > n]
            yield from (
                (layer.elsewhere.get(path, layer.path + path), n, layer.actual[path][n]) for path in own
            )


def _parts(rule: Any) -> Sequence[Any]:
    return (
        rule.parts
        if isinstance(rule, Sum | Running)
        else [rule.weight if isinstance(rule, Spectral) else rule]
    )


def _own_axes(rule: Rule) -> list[tuple[str, ...]]:
    """The dimensions of a leaf itself, without the axes that live in its name."""
    named = holes(rule.path)
    return [axes for axes in rule.layout.left if not set(axes) & set(named)]


def _input_axis(rule: Rule, kind: str) -> tuple[str, ...] | None:
    """The axis along which torch's parameter meets the input: a matrix's columns, a norm's only axis."""
    if rule.key.rpartition(".")[2].startswith("weight_hh"):
        return None  # what a cell reads there is its own state, which no image becomes
    right = rule.layout.right
    return right[1] if len(right) == 2 else right[0] if kind == "norm" and len(right) == 1 else None


def _image(shape: tuple[int, ...]) -> Merged:
    """An image of torch's shape `(C, *space)` as JAX flattens it: channels last."""
    channels, *space = zip(_AXES[len(shape)], shape, strict=True)
    return Merged((*space, channels), tuple(name for name, _ in (channels, *space)))
