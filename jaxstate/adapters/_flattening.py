"""Where a model flattens images into vectors: its rules, with the axes of such a vector in torch's order.

Three sources, in this order of trust: what the caller says, what tracing the model with example inputs
shows, and, where there is neither, the suspicion that the widths of the layers raise. Suspected is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import _suspicion
from jaxstate.adapters._flatten import find_flattens, find_images
from jaxstate.adapters._merged import Merged
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Layer, Reading
from jaxstate.declared import Sum
from jaxstate.errors import BindingError
from jaxstate.layout import tokens
from jaxstate.rule import Rule
from jaxstate.running import Running

Flattens = Mapping[str, Mapping[int, Merged]]  # by leaf, by dimension


def with_flattens(rules: Sequence[Any], reading: Reading, options: Options) -> list[Any]:
    """The rules of a model, each dimension that holds a flattened image split into the image's axes.

    Raises:
        BindingError: flattening is suspected and nothing tells; it cannot be followed; or what the caller
            says names no layer.
    """
    said = _said(reading, options.flatten or {})
    settled = {path for rule in options.rules for path in rule.paths} | set(said)
    if options.inputs and reading.call is not None:
        flattens, images = _traced(reading, options, settled)
        free = _readers(reading) - settled
        whole = {path: names for path, names in images.items() if path in free}
        return [_reordered(_split(rule, {**flattens, **said}), whole) for rule in rules]
    if options.flatten is None:
        _refuse_suspects(reading, settled)
    return [_split(rule, said) for rule in rules]


def _traced(reading: Reading, options: Options, settled: set[str]) -> tuple[Flattens, Mapping[str, Any]]:
    call: Any = reading.call
    try:
        jax.eval_shape(call, dict(reading.leaves), *options.inputs)
    except Exception as error:
        raise BindingError(
            f"the model cannot be called with these example inputs: {type(error).__name__}: {error}; keyword "
            'arguments go into js.bind(model, *inputs, kwargs={"train": False})'
        ) from error
    flattens = find_flattens(call, reading.leaves, *options.inputs, settled=settled)
    return flattens, find_images(call, reading.leaves, *options.inputs)


def _readers(reading: Reading) -> set[str]:
    """The leaves of layers that meet an image axis by axis, in an order of their own choice."""
    layers = [part for part in reading.found if isinstance(part, Layer) and part.kind in ("linear", "norm")]
    return {layer.path + leaf for layer in layers for leaf in layer.actual}


def _said(reading: Reading, flatten: Mapping[str, tuple[int, ...] | None]) -> Flattens:
    """What the caller says of layers: the image that their input axis or their vectors hold, or None."""
    layers = {".".join(part.key): part for part in reading.found if isinstance(part, Layer)}
    said: dict[str, dict[int, Merged]] = {}
    for name, shape in flatten.items():
        if name not in layers:
            raise BindingError(
                f'flatten={{"{name}": {shape}}}: there is no such layer; there are {list(layers)}'
            )
        places = {
            leaf: layers[name].elsewhere.get(leaf, layers[name].path + leaf) for leaf in layers[name].actual
        }
        leaves = {places[leaf]: actual for leaf, actual in layers[name].actual.items()}
        if shape is None:
            said |= dict.fromkeys(leaves, {})
            continue
        size = int(np.prod(shape))
        meet = {
            path: n for path, n in _reading_dimensions(layers[name]) if leaves[path][n : n + 1] == (size,)
        }
        if not meet:
            raise BindingError(f'flatten={{"{name}": {shape}}}: no leaf of {name} reads {size} features')
        said |= {path: {n: _image(shape)} for path, n in meet.items()}
    return said


def _reading_dimensions(layer: Layer) -> Iterator[tuple[str, int]]:
    """The leaves that meet a layer's input feature by feature, and which dimension does."""
    rules = layer.rules(0) if callable(layer.rules) else layer.rules
    parts = [part for rule in rules for part in (rule.parts if isinstance(rule, Sum | Running) else [rule])]
    for part in parts:
        if isinstance(part, Rule) and (axis := _input_axis(part, layer.kind)) in part.layout.left:
            paths = (layer.elsewhere.get(path, layer.path + path) for path in part.paths)
            yield from ((path, part.layout.left.index(axis)) for path in paths)


def _input_axis(rule: Rule, kind: str) -> tuple[str, ...] | None:
    """The axis along which torch's parameter meets the input: a matrix's columns, a norm's only axis."""
    right = rule.layout.right
    return right[1] if len(right) == 2 else right[0] if kind == "norm" and len(right) == 1 else None


def _image(shape: tuple[int, ...]) -> Merged:
    """An image of torch's shape `(C, *space)` as JAX flattens it: channels last."""
    if (names := {2: "cw", 3: "chw", 4: "cdhw"}.get(len(shape))) is None:
        raise BindingError(f"{shape} is no image: say torch's (C, W), (C, H, W) or (C, D, H, W)")
    channels, *space = zip(names, shape, strict=True)
    return Merged((*space, channels), tuple(name for name, _ in (channels, *space)))


def _refuse_suspects(reading: Reading, settled: set[str]) -> None:
    layers = [part for part in reading.found if isinstance(part, Layer) and part.same_as is None]
    if all(layer.kind != "conv" for layer in layers):
        return  # nothing makes an image, and nothing reads one
    facts = [fact for fact in map(_fact, layers) if fact is not None]
    decided = {
        ".".join(part.key) for part in layers if any(part.path + leaf in settled for leaf in part.actual)
    }
    suspects = [suspect for suspect in _suspicion.suspects(facts) if suspect.name not in decided]
    if not suspects:
        return
    lines = [
        f"{s.name} may read or make the flattened image of {s.conv}: {s.channels} channels of {s.positions} "
        "positions each, which torch flattens in another order"
        for s in suspects
    ]
    call = f'js.bind(model, flatten={{"{suspects[0].name}": (C, H, W)}})'
    remedy = (
        "say js.bind(model, example_input), and the model is traced (nothing is computed); "
        f"or {call}, torch's shape of the image; or flatten={{}} if nothing is flattened"
    )
    raise BindingError("\n\t".join([*lines, remedy]))


def _fact(layer: Layer) -> _suspicion.Layer | None:
    """What a layer reads and makes, from torch's shape of its weight."""
    if not layer.kind:
        return None
    rules = layer.rules(0) if callable(layer.rules) else layer.rules
    weight = next((rule for rule in rules if isinstance(rule, Rule) and not rule.buffer), None)
    if weight is None or any(path not in layer.expected for path in weight.paths):
        return None
    leaves = {path: jax.ShapeDtypeStruct(layer.expected[path], "float32") for path in weight.paths}
    makes, reads = _widths(weight, weight.of(leaves).shapes[weight.keys[0]])
    return _suspicion.Layer(".".join(layer.key), layer.kind, reads, makes)


def _widths(weight: Rule, shape: Sequence[int]) -> tuple[int, int]:
    """Outputs and inputs of torch's weight: outputs first, but for ConvTranspose and Embedding."""
    first, second = shape[0], shape[1] if len(shape) > 1 else shape[0]
    return (second, first) if weight.layout.right[0] in (("i",), ("v",)) else (first, second)


def _split(rule: Any, flattens: Flattens) -> Any:
    if isinstance(rule, Running):  # what a call only writes is as what it reads to write it
        seen = {of: flattens[path] for path, of in rule.copies.items() if path in flattens}
        flattens = {**seen, **flattens}
    if isinstance(rule, Sum | Running):
        return replace(rule, parts=tuple(_split(part, flattens) for part in rule.parts))
    if not isinstance(rule, Rule):
        if any(flattens.get(path) for path in rule.paths):
            raise BindingError(f"{', '.join(rule.paths)} meet a flattened image, and their rule is no layout")
        return rule
    found = [flattens.get(path, {}) for path in rule.paths]
    if any(one != found[0] for one in found):
        raise BindingError(f"the leaves of {rule} meet different images: {found}")
    for dimension, merged in found[0].items():
        rule = _with_image(rule, dimension, merged)
    return rule


def _with_image(rule: Rule, dimension: int, merged: Merged) -> Rule:
    """The rule with one axis replaced by those of an image, in JAX's order left and in torch's right."""
    left, _, right = rule.pattern.partition(" -> ")
    axis = left.split()[dimension] if "(" not in left else ""
    if not axis.isidentifier():
        raise BindingError(
            f"dimension {dimension} of {rule} is a flattened image; give the Rule that splits it"
        )
    if set(tokens(rule.pattern)) & set(merged.sizes):
        merged = merged.prefixed(f"{axis}_")
    there = merged.right.strip("()") if _in_group(right, axis) else merged.right
    pattern = " ".join(merged.left if t == axis else t for t in tokens(left))
    pattern += " -> " + " ".join(there if t == axis else t for t in tokens(right))
    sizes = {name: size for name, size in rule.sizes if name != axis}
    known = dict(buffer=rule.buffer, shape=rule.shape, dtype=rule.dtype)
    return Rule(rule.key, rule.path, pattern, **known, **dict(rule.names), **sizes, **merged.sizes)  # type: ignore


def _reordered(rule: Any, images: Mapping[str, tuple[str, ...]]) -> Any:
    """The rule of a leaf that has a dimension for each axis of an image: torch has the channels first."""
    if not isinstance(rule, Rule) or rule.path not in images:
        return rule
    left, _, right = rule.pattern.partition(" -> ")
    named = {axis: name for axis, name in zip(tokens(left), images[rule.path], strict=True) if name}
    order = iter(sorted(named, key=lambda axis: "cdhw".index(named[axis])))
    there = " ".join(next(order) if axis in named else axis for axis in tokens(right))
    known = dict(buffer=rule.buffer, shape=rule.shape, dtype=rule.dtype)
    return Rule(rule.key, rule.path, f"{left} -> {there}", **known, **dict(rule.names), **dict(rule.sizes))  # type: ignore


def _in_group(side: str, axis: str) -> bool:
    before = tokens(side)[: tokens(side).index(axis)]
    return before.count("(") > before.count(")")
