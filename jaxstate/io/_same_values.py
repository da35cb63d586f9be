"""Whether two values that were read from files are the same: what Python's own `==` cannot say of arrays.

Records compare by identity, NaN does not equal itself, and `1 == True`; here what was written alike is alike.
"""

from dataclasses import fields, is_dataclass

import numpy as np


def same_values(one: object, other: object) -> bool:
    """True if two values have the same types and contents, arrays to the bit; sets and dicts in any order.

    Args:
        one, other: as a reader gives them, so that they do not contain themselves.

    >>> same_values((float("nan"), {"a", "b"}, np.ones(2)), (float("nan"), {"b", "a"}, np.ones(2)))
    True
    >>> same_values({"flag": 1}, {"flag": True})
    False
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_values(x, other[key]) for key, x in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_values, one, other))
    if is_dataclass(one):
        names = [field.name for field in fields(one)]
        return all(same_values(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other) or bool(one != one and other != other)
