"""Values: plain Python values as JSON and back, without loss: a scheduler's state_dict, an epoch, a note.

JSON has one kind of sequence, keys of text only, and no infinities; torch's states have more. What is no
plain value is refused with the path to it.
"""

import base64
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxstate.errors import CheckpointError

_DICTS: Mapping[str, type] = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}
_ROWS: Mapping[str, type] = {"tuple": tuple, "list": list}


def value_to_json(value: Any, where: str) -> Any:
    """A value as JSON's, every container with the name of its type.

    Raises:
        CheckpointError: a value that is not plain.

    >>> value = {"milestones": Counter({30: 1}), "best": math.inf, "lr": (0.1, np.float32(0.5))}
    >>> value_from_json(value_to_json(value, "scheduler")) == value
    True
    """
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": str(value)}
    if kind in _ROWS.values():
        return {kind.__name__: [value_to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]}
    if kind in _DICTS.values():
        pairs = [[_key(key, where), value_to_json(item, f"{where}[{key!r}]")] for key, item in value.items()]
        return {kind.__name__: pairs}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        return _array_to_json(value)
    raise CheckpointError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, and a checkpoint's record keeps numbers, text, "
        "lists, tuples, dicts and small numpy arrays; take it out"
    )


def value_from_json(value: Any) -> Any:
    """The value of `value_to_json`."""
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind in _ROWS:
        return _ROWS[kind](map(value_from_json, content))
    if kind in _DICTS:
        return _DICTS[kind]({key: value_from_json(item) for key, item in content})
    return float(content) if kind == "float" else _array_from_json(value)


def _key(key: Any, where: str) -> Any:
    if type(key) in (bool, int, str):
        return key
    raise CheckpointError(
        f"{where} has the key {key!r}, and a checkpoint's record keeps text and whole numbers"
    )


def _array_to_json(value: Any) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return {kind: data, "dtype": value.dtype.name, "shape": list(value.shape)}


def _array_from_json(value: Mapping[str, Any]) -> Any:
    data = base64.b64decode(value.get("array", value.get("scalar")), validate=True)
    array = np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    return array if "array" in value else array[()]
