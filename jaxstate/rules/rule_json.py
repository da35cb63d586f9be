"""Rules as JSON values and back, so that a checkpoint can carry the Binding it was written with."""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the names "bfloat16", "float8_e4m3fn", ...)
import numpy as np

from jaxstate.errors import BindingError
from jaxstate.rules.blocks import Block, Blocks
from jaxstate.rules.declared import JaxOnly, Sum, Tied, TorchOnly
from jaxstate.rules.fused import Fused
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Rule
from jaxstate.rules.running import Running
from jaxstate.rules.spectral import Spectral


def rule_to_json(rule: Any) -> dict[str, Any]:
    """A rule as a dictionary of JSON values, with its kind.

    >>> rule = Rule("fc.weight", "fc.kernel", "i o -> o i", shape=(2, 3), dtype="float32")
    >>> rule_from_json(rule_to_json(rule)) == rule
    True
    """
    kind = type(rule).__name__
    match rule:
        case Rule():
            shown = ("key", "path", "pattern", "buffer", "shape", "dtype")
            axes = {**{a: list(v) for a, v in rule.names}, **dict(rule.sizes)}
            return {"kind": kind, **{name: getattr(rule, name) for name in shown}, "axes": axes}
        case Fused():
            return {"kind": kind, "parts": [rule_to_json(part) for part in rule.parts], "axis": rule.axis}
        case Padded():
            known = {name: getattr(rule, name) for name in _PADDED}
            kept = _arrays_to_json(rule.kept)
            return {"kind": kind, "rule": rule_to_json(rule.rule), **known, "kept": kept}
        case Tied():
            return {"kind": kind, "key": rule.key, "to": rule.to, "axes": _lists(rule.axes)}
        case TorchOnly():
            value, kept = _array_to_json(rule.value), _arrays_to_json(rule.kept)
            known = {"key": rule.key, "counter": rule.counter, "axes": _lists(rule.axes)}
            return {"kind": kind, **known, "value": value, "kept": kept}
        case JaxOnly():
            return {"kind": kind, **asdict(rule)}
        case Sum():
            parts = [rule_to_json(part) for part in rule.parts]
            return {"kind": kind, "parts": parts, "zeros": rule.zeros, "kept": _arrays_to_json(rule.kept)}
        case Spectral():
            parts = {"weight": rule_to_json(rule.weight), "u": rule_to_json(rule.u)}
            kept = _arrays_to_json(rule.kept)
            return {"kind": kind, **parts, "v": rule.v, "sigma": rule.sigma, "kept": kept}
        case Running():
            known = {name: getattr(rule, name) for name in _RUNNING}
            return {"kind": kind, "parts": [rule_to_json(part) for part in rule.parts], **known}
        case Blocks():
            known = {name: getattr(rule, name) for name in _BLOCKS}
            return {"kind": kind, **known, "kept": _arrays_to_json(rule.kept)}
    # No caller has such a rule: this stands for whoever adds a kind, which would be written as nothing.
    raise BindingError(f"{rule!r} is no rule that JSON has a form for")


def rule_from_json(value: Mapping[str, Any]) -> Any:
    """The rule that `rule_to_json` described.

    Raises:
        BindingError: a kind that is none of ours, or fields that make no rule.
    """
    try:
        fields = dict(value)
        return _READERS[fields.pop("kind")](fields)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BindingError(f"this is not the JSON of a rule: {error!r} in {value!r}") from error


_PADDED = ("axis", "length", "value", "drop", "here")
_RUNNING = ("copies", "marks", "unset", "count", "decay", "shapes_of")
_BLOCKS = ("arrays", "blocks", "offsets", "leaf_paths", "dtype")

_READERS = {
    "Rule": lambda f: Rule(f["key"], f["path"], f["pattern"], **_known(f), **f["axes"]),
    "Fused": lambda f: Fused([rule_from_json(part) for part in f["parts"]], f["axis"]),
    "Padded": lambda f: Padded(
        rule_from_json(f["rule"]), **{name: f[name] for name in _PADDED}, kept=_arrays_from_json(f["kept"])
    ),
    "Tied": lambda f: Tied(f["key"], f["to"], _tuples(f["axes"])),
    "TorchOnly": lambda f: TorchOnly(
        f["key"], _array_from_json(f["value"]), f["counter"], _tuples(f["axes"]), _arrays_from_json(f["kept"])
    ),
    "JaxOnly": lambda f: JaxOnly(f["path"], f["value"], f["shape"] and tuple(f["shape"]), f["dtype"]),
    "Sum": lambda f: Sum(
        tuple(rule_from_json(part) for part in f["parts"]),
        tuple((part, start, stop) for part, start, stop in f["zeros"]),
        _arrays_from_json(f["kept"]),
    ),
    "Spectral": lambda f: Spectral(
        rule_from_json(f["weight"]), rule_from_json(f["u"]), f["v"], f["sigma"], _arrays_from_json(f["kept"])
    ),
    "Running": lambda f: Running(
        tuple(rule_from_json(part) for part in f["parts"]), **{name: _frozen(f[name]) for name in _RUNNING}
    ),
    "Blocks": lambda f: Blocks(
        _frozen(f["arrays"]),
        tuple(Block(*block) for block in _frozen(f["blocks"])),
        kept=_arrays_from_json(f["kept"]),
        **{name: _frozen(f[name]) for name in _BLOCKS[2:]},
    ),
}


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in ("buffer", "shape", "dtype")}


def _frozen(value: Any) -> Any:
    """A JSON value whose lists are tuples."""
    if isinstance(value, dict):
        return {name: _frozen(part) for name, part in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _lists(axes: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {axis: list(values) for axis, values in axes.items()}


def _tuples(axes: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {axis: tuple(values) for axis, values in axes.items()}


def _arrays_to_json(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _array_to_json(array) for key, array in arrays.items()}


def _arrays_from_json(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {key: _array_from_json(value) for key, value in values.items()}


def _array_to_json(array: Any) -> dict[str, Any]:
    array = np.asarray(array)
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _array_from_json(value: Mapping[str, Any]) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(value["data"], validate=True), np.dtype(value["dtype"]))
    return data.reshape([int(n) for n in value["shape"]]).copy()
