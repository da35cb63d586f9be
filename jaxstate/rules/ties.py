"""Ties: several keys of one array. A file that holds more than one of them must hold the same under each."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.errors import StateDictError
from jaxstate.rules.declared import same_bits
from jaxstate.rules.rule import Arrays


def disagreeing(ties: Mapping[str, str], state_dict: Arrays) -> list[str]:
    """A sentence for each key whose array is not that of the key it is tied to.

    >>> disagreeing({"head": "wte"}, {"wte": np.ones(2), "head": np.ones(2)})
    []
    """
    both = [(key, to) for key, to in ties.items() if key in state_dict and to in state_dict]
    return [_sentence(key, to) for key, to in both if not same_bits(state_dict[key], state_dict[to])]


def agreeing(ties: Mapping[str, str], state_dict: Arrays, keys: Collection[str]) -> Arrays:
    """The state_dict, in which arrays that are tied to these keys are compared when they are read.

    No more of either is read than is asked for. Where they differ there, reading raises StateDictError.
    """
    rows: dict[str, dict[str, None]] = {}
    for key, to in ties.items():
        if to in keys and key in state_dict and to in state_dict:
            rows.setdefault(to, {to: None})[key] = None
    return {**state_dict, **dict(pair for row in rows.values() for pair in _agreeing(state_dict, list(row)))}


def _agreeing(state_dict: Arrays, row: list[str]) -> Iterator[tuple[str, LazyArray]]:
    """For each of these keys the same lazy array, if theirs are of one shape and dtype."""
    array = state_dict[row[0]]
    if len({str((getattr(x, "shape", x), getattr(x, "dtype", x))) for x in map(state_dict.get, row)}) > 1:
        return  # what does not fit is told by those who compare the whole

    def read(box: Box) -> np.ndarray:
        for key in row[1:]:
            if not same_bits(array[box], state_dict[key][box]):
                raise StateDictError("the model", problems=[_sentence(key, row[0])])
        return np.asarray(array[box])

    yield from dict.fromkeys(row, from_parts(array.shape, array.dtype, read)).items()


def _sentence(key: str, to: str) -> str:
    return f'"{key}" and "{to}" are one array in the model, and the file has two different ones'
