"""Where a model flattens images into vectors: its rules, with the axes of such a vector in torch's order.

Three sources, in this order of trust: what the caller says, what tracing the model with example inputs
shows, and, where there is neither, the suspicion that the widths of the layers raise. Suspected is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from jaxstate.adapters import _suspicion
from jaxstate.adapters._flatten import find_flattens, find_images
from jaxstate.adapters._merged import Merged
from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Layer, Reading
from jaxstate.adapters._said import Flattens, said_flattens
from jaxstate.errors import BindingError
from jaxstate.layout import tokens
from jaxstate.rules.declared import Sum
from jaxstate.rules.rule import Rule
from jaxstate.rules.running import Running
from jaxstate.rules.spectral import Spectral


def with_flattens(rules: Sequence[Any], reading: Reading, options: Options) -> list[Any]:
    """The rules of a model, each dimension that holds a flattened image split into the image's axes.

    Raises:
        BindingError: flattening is suspected and nothing tells; it cannot be followed; or what the caller
            says names no layer.
    """
    said = said_flattens(reading, options.flatten)
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
    parts = [rule.weight if isinstance(rule, Spectral) else rule for rule in rules]
    own = [rule for rule in parts if isinstance(rule, Rule) and not rule.buffer]
    found = [rule for rule in own if all(path in layer.expected for path in rule.paths)]
    if not found:
        return None
    # A layer around a layer has the weight behind the bias.
    weight = next((rule for rule in found if len(rule.layout.right) > 1), found[0])
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
        images = [f"{path} {_shapes(one)}" for path, one in zip(rule.paths, found, strict=True)]
        raise BindingError(
            f"the leaves of {rule} meet different images, {', '.join(images)}, and one parameter of torch's "
            "meets one"
        )
    for dimension, merged in found[0].items():
        rule = _with_image(rule, dimension, merged)
    return rule


def _shapes(merged: Mapping[int, Merged]) -> str:
    """The images of a leaf in torch's order."""
    return ", ".join(str(tuple(one.sizes[axis] for axis in one.torch)) for one in merged.values()) or "none"


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
