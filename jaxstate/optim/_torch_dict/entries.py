"""Entries: what a file holds for each parameter, and whether it fits the optimizer's buffers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxstate.arrays.foreign import as_array
from jaxstate.arrays.lazy import LazyArray
from jaxstate.arrays.placement import narrows
from jaxstate.errors import quoted
from jaxstate.optim._padding import refused_there, starts
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._state import State

# JAX counts in int32.
LAST_STEP = 2**31 - 1


@dataclass(frozen=True)
class Entries:
    """A file's `state`, by torch's names instead of ids.

    Args:
        state: the template.
        parameters: the template's.
        found: the entry of each name that has one; values that are None are left out, as older
            versions of torch wrote a buffer that was not yet filled.
        ids: the file's id of each name.
        strange: what stands under ids that no group lists.
    """

    state: State
    parameters: Parameters
    found: dict[str, Any]
    ids: dict[str, int]
    strange: tuple[Any, ...]

    @classmethod
    def of(
        cls, state: State, parameters: Parameters, entries: Mapping[Any, Any], ids: Mapping[str, int]
    ) -> "Entries":
        """The entries of a file's `state`."""
        found = {name: _present(entries[i]) for name, i in ids.items() if i in entries}
        strange = tuple(i for i in entries if i not in set(ids.values()))
        return cls(
            state,
            parameters,
            {name: entry for name, entry in found.items() if not _is_empty(entry)},
            dict(ids),
            strange,
        )

    def each_leaf(
        self, buffer: str, likes: Mapping[str, Any], is_parted: Callable[[Any], bool]
    ) -> Iterator[tuple[str, Any]]:
        """A buffer by path, where the file has it. Call it when there are no problems.

        Args:
            buffer: its name.
            likes: the template's leaves of it.
            is_parted: whether a leaf like this one is wanted in parts; it comes as a `LazyArray`, if it is
                made of others.
        """
        arrays, keys_of = self._arrays(buffer), self.parameters.keys_of
        filled = {path: like for path, like in likes.items() if set(keys_of[path]) & set(arrays)}
        if buffer in self.state.algorithm.own:
            return ((path, arrays[keys_of[path][0]]) for path in filled)
        parted = {path for path, like in filled.items() if is_parted(like)}
        return self.parameters.each_leaf(arrays, filled, starts(self.state, buffer), parted)

    def _arrays(self, buffer: str) -> dict[str, np.ndarray | LazyArray]:
        eager = self.state.algorithm.eager
        found = {
            name: _as_array(entry[buffer])
            for name, entry in self.found.items()
            if buffer in entry and (eager or self.step(name))
        }
        return {name: array for name, array in found.items() if array is not None}

    def step(self, name: str) -> int | None:
        """How often a parameter was updated; None if the file does not say it in a whole number."""
        if name not in self.found:
            return 0
        if not self.state.algorithm.counts:
            return 1
        entry = self.found[name]
        return _whole(entry.get("step")) if isinstance(entry, Mapping) else None

    def steps(self) -> dict[str, int | None]:
        """The step of every path: that of its names, which agree when there are no problems."""
        keys_of = self.parameters.keys_of
        return {path: self.step(keys_of[path][0]) if keys_of[path] else 0 for path in self.state.paths}

    def problems(self, cast: bool) -> Iterator[str]:
        """A sentence for each entry that does not fit."""
        if self.strange:
            yield f"state has entries for ids that no group lists: {list(self.strange)}"
        for name, entry in self.found.items():
            where = f'state[{self.ids[name]}] ("{name}")'
            if isinstance(entry, Mapping):
                yield from (f"{where} {problem}" for problem in self._of_entry(name, entry, cast))
            else:
                yield f"{where} is no dict but {entry!r}"
        yield from self._uneven()
        yield from self._padded()
        if self.state.algorithm.eager:
            lacking = [name for name in self.ids if name not in self.found]
            yield from (f'state has no entry for id {self.ids[name]} ("{name}")' for name in lacking)

    def _of_entry(self, name: str, entry: Mapping[str, Any], cast: bool) -> Iterator[str]:
        likes = self._likes(name)
        wanted = [*(["step"] if self.state.algorithm.counts else []), *likes]
        if lacking := [key for key in wanted if key not in entry]:
            yield f"has no {quoted(lacking)}"
        if strange := [str(key) for key in entry if key not in wanted]:
            yield f"has {quoted(strange)}, which {self.state.algorithm.name} here does not keep"
        if "step" in entry and "step" in wanted and self.step(name) is None:
            yield f"has step {entry['step']!r}, which is no count of updates"
        for buffer, like in likes.items():
            if buffer in entry:
                yield from _of_array(buffer, entry[buffer], *like, cast)

    def _likes(self, name: str) -> dict[str, tuple[tuple[int, ...], Any]]:
        """torch's shape and the template's dtype of each buffer of a parameter."""
        path = self.parameters.paths_of[name][0]
        return {
            buffer: (shapes[name], leaves[path].dtype)
            for buffer, (shapes, leaves) in self._buffers.items()
            if path in leaves
        }

    @cached_property
    def _buffers(self) -> dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]]:
        """torch's shapes by name, and the template's leaves by path, of each buffer."""
        leaves = {buffer: self.state.buffer(buffer) for buffer in self.state.buffers}
        return {buffer: (self._shapes(buffer, row), row) for buffer, row in leaves.items()}

    def _shapes(self, buffer: str, leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        if buffer not in self.state.algorithm.own:
            return self.parameters.shapes(leaves)
        paths_of = self.parameters.paths_of
        return {name: leaves[row[0]].shape for name, row in paths_of.items() if row[0] in leaves}

    def _uneven(self) -> Iterator[str]:
        for path, names in self.parameters.keys_of.items():
            steps = {name: self.step(name) for name in names}
            if len(set(steps.values())) > 1:
                yield f"{path} is one leaf with one step, and the file has {steps}"
            for buffer in self.state.algorithm.own if len(names) > 1 else ():
                found = {name: _as_array(self._value(name, buffer)) for name in names}
                if len({None if x is None else np.asarray(x).tobytes() for x in found.values()}) > 1:
                    yield f"{path} is one leaf with one {buffer}, and the file has {found}"

    def _padded(self) -> Iterator[str]:
        """What stands in a padding of an array of the right shape; others are refused for that."""
        for buffer, (shapes, _) in self._buffers.items() if self.parameters.padded else ():
            found = {name: _as_array(self._value(name, buffer)) for name in shapes}
            fitting = {name: x for name, x in found.items() if x is not None and x.shape == shapes[name]}
            yield from refused_there(self.state, self.parameters, buffer, fitting)

    def _value(self, name: str, buffer: str) -> Any:
        entry = self.found.get(name)
        return entry.get(buffer) if isinstance(entry, Mapping) else None


def _is_empty(entry: Any) -> bool:
    return isinstance(entry, Mapping) and not entry


def _present(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return {key: value for key, value in entry.items() if value is not None}


def _as_array(value: Any) -> np.ndarray | LazyArray | None:
    """An entry's array. A scalar that older versions wrote as a Python float is float32 to newer ones."""
    if isinstance(value, LazyArray):
        return value
    return np.array(value, np.float32) if type(value) in (int, float) else as_array(value)


def _whole(step: Any) -> int | None:
    array = np.asarray(step) if isinstance(step, (int, float)) else as_array(step)
    number = float(array.reshape(())) if array is not None and array.size == 1 else -1.0
    return int(number) if number.is_integer() and 0 <= number <= LAST_STEP else None


def _of_array(buffer: str, value: Any, shape: tuple[int, ...], dtype: Any, cast: bool) -> Iterator[str]:
    array = _as_array(value)
    if array is None:
        yield f"has {buffer}, which is no array but {type(value).__name__}"
    elif array.shape != shape:
        yield f"has {buffer} of shape {array.shape}, and the parameter has {shape}"
    elif not cast and narrows(array.dtype, dtype):
        yield f"has {buffer} of {array.dtype}, which {dtype} would round; allow it with cast=True"
