"""What a checkpoint holds, as a flat list: every array and every other value, with the path to it.

A path is the keys and indices on the way, with slashes between: `optimizer/state/0/exp_avg`. Of a flat
state_dict it is the key.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxstate.io import Opaque
from jaxstate.io._walk import walk


def entries(obj: Any) -> dict[str, Any]:
    """Every array and every other value of nested dicts, lists, tuples and records, by its path.

    Raises:
        FileError: an object that contains itself, or nests or unfolds beyond reason.

    >>> entries({"model": {"fc.bias": 3}, "betas": (0.9, 0.99)})
    {'model/fc.bias': 3, 'betas/0': 0.9, 'betas/1': 0.99}
    """
    for _ in walk(obj):  # such an object would never end here
        pass
    return dict(_entries(obj, ""))


def is_array(value: Any) -> bool:
    """True for whatever has a shape and a dtype: an array, or a record of a tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _entries(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = dict(_children(obj))
    if not children or is_array(obj):
        yield path, obj
    for step, child in children.items():
        yield from _entries(child, f"{path}/{step}" if path else str(step))


def _children(obj: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(obj, Mapping):
        yield from obj.items()
    elif isinstance(obj, list | tuple):
        yield from enumerate(obj)
    elif isinstance(obj, Opaque):
        yield "<call>", obj.name
        yield from enumerate(obj.args)
        yield from (
            {"<state>": obj.state, "<elements>": obj.elements}.items() if obj.state or obj.elements else ()
        )
        yield from obj.items
