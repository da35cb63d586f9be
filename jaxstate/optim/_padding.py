"""Padding: what an optimizer keeps of the rows that only one side has, and whether that may be left out.

Such a row is zero and meets no gradient, so what is kept of it is what the optimizer started with. Nothing
else has a counterpart on the other side.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxstate.optim._parameters import Parameters
from jaxstate.optim._state import State
from jaxstate.rules.padded import Padded


def refused_here(state: State, parameters: Parameters) -> Iterator[str]:
    """A sentence for each leaf of a buffer with more in its padding than before the first step."""
    for buffer in _buffers(state):
        leaves = {parameters.prefix + path: leaf for path, leaf in state.buffer(buffer).items()}
        for family in parameters.padded:
            if set(family.paths) <= set(leaves):
                rule = parameters.started(family, starts(state, buffer)).of(leaves)
                yield from (_sentence(buffer, path, family, rule) for path in rule.odd_leaves(leaves))


def refused_there(
    state: State, parameters: Parameters, buffer: str, arrays: Mapping[str, Any]
) -> Iterator[str]:
    """The same of torch's arrays, by name."""
    likes = state.buffer(buffer)
    leaves = {parameters.prefix + path: leaf for path, leaf in likes.items()}
    by_key = {key: arrays[name] for name, key in parameters.names.items() if name in arrays}
    for family in parameters.padded if buffer in _buffers(state) else ():
        if set(family.paths) <= set(leaves):
            rule = parameters.started(family, starts(state, buffer)).of(leaves)
            yield from (_sentence(buffer, f'"{key}"', family, rule) for key in rule.odd_arrays(by_key))


def starts(state: State, buffer: str) -> Any:
    """What a buffer is full of before the first step, by path."""
    groups = state.groups
    return lambda path: state.algorithm.start(buffer, groups[path].to_torch())


def _buffers(state: State) -> list[str]:
    return [buffer for buffer in state.buffers if buffer not in state.algorithm.own]


def _sentence(buffer: str, name: str, family: Padded, rule: Padded) -> str:
    remedy = f"if it may be left out, bind with {replace(family, drop=True)!r}"
    return f"{buffer} of {name} is not {rule.value} everywhere in its padding; {remedy}"
