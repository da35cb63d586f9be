"""A file's entry of LBFGS, checked against a state and moved into it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxstate.arrays.foreign import as_array
from jaxstate.arrays.placement import narrows, place
from jaxstate.binding import Binding
from jaxstate.errors import quoted
from jaxstate.optim._double import Double, split
from jaxstate.optim._lbfgs.entry import COUNTS, KEPT
from jaxstate.optim._lbfgs.flat import Flat
from jaxstate.optim._lbfgs.line import Kind
from jaxstate.optim._lbfgs.state import LBFGSState
from jaxstate.optim._param_groups import ParamGroup

VECTORS, RINGS, LISTS = ("d", "prev_flat_grad"), ("old_dirs", "old_stps"), ("old_dirs", "old_stps", "ro")

# JAX counts in int32.
LAST_COUNT = 2**31 - 1


@dataclass(frozen=True)
class MemoryEntry:
    """What a file holds of an LBFGS.

    Args:
        state: the template.
        flat: says what the file's vectors are.
        first: the id of the first parameter.
        entries: the file's `state`.
    """

    state: LBFGSState
    flat: Flat
    first: Any
    entries: Mapping[Any, Any]

    @classmethod
    def of(
        cls, state: LBFGSState, binding: Binding, entries: Mapping[Any, Any], ids: Mapping[str, int]
    ) -> "MemoryEntry":
        """The entry of a file whose parameters have these ids, in the order of its group."""
        flat = Flat.of(state.paths, state.flat.shapes, binding, tuple(ids))
        return cls(state, flat, next(iter(ids.values()), 0), entries)

    @cached_property
    def found(self) -> Any:
        """The entry; an empty one where there is none."""
        return self.entries.get(self.first, {})

    @property
    def started(self) -> bool:
        """True if there was an iteration; torch starts anew where there was none."""
        return self.found.get("n_iter", 0) > 0

    def problems(self, cast: bool) -> Iterator[str]:
        """A sentence for each thing in the entry that does not fit."""
        if strange := [i for i, entry in self.entries.items() if i != self.first and entry != {}]:
            yield f"LBFGS keeps one entry, under id {self.first}, and the file has others under {strange}"
        if not isinstance(self.found, Mapping):
            yield f"state[{self.first}] is no dict but {self.found!r}"
            return
        first = [*self._of_keys()] or [*self._of_lists()]
        yield from (f"state[{self.first}] {problem}" for problem in first or self._of_values(cast))

    def _of_keys(self) -> Iterator[str]:
        if strange := [str(key) for key in self.found if key not in (*COUNTS, "al", *KEPT)]:
            yield f"has {quoted(strange)}, which LBFGS here does not keep"
        if uncounted := [key for key in COUNTS if not _is_count(self.found.get(key, 0))]:
            yield from (f"has {key}={self.found[key]!r}, which is no count" for key in uncounted)
            return
        given = [key for key in (*KEPT, "al") if self.found.get(key) is not None]
        if given and not self.started:
            yield f"has n_iter=0, from where torch starts anew, and yet {quoted(given)}"
        if self.started and (lacking := [key for key in KEPT if key not in given]):
            yield f"has no {quoted(lacking)}"

    def _of_lists(self) -> Iterator[str]:
        if not self.started:
            return
        size, al = len(self.state.memory.ro), self.found.get("al", [None] * len(self.state.memory.ro))
        lists = {**{key: self.found[key] for key in LISTS}, "al": al}
        if strange := [key for key, value in lists.items() if not isinstance(value, list | tuple)]:
            yield f"has {quoted(strange)}, which are no lists"
            return
        lengths = {key: len(lists[key]) for key in LISTS}
        if len({*lengths.values()}) > 1 or lengths["ro"] > size:
            yield f"has lists of lengths {lengths}; they are equal, and at most history_size={size}"
        if len(al) != size:
            yield f"has al of length {len(al)}, and history_size={size}"
        filled = [i for i, x in enumerate(al) if x is not None]
        if "al" in self.found and filled != list(range(lengths["ro"])):
            yield f"has al filled at {filled}, and {lengths['ro']} pairs"

    def _of_values(self, cast: bool) -> Iterator[str]:
        if not self.started:
            return
        for name, value, shape in self._arrays():
            yield from _of_array(name, value, shape, self.state.memory.d.dtype, cast)
        numbers = {key: self.found[key] for key in ("t", "prev_loss") if _is_number(self.found[key])}
        dtype = self.state.memory.t.parts.dtype
        for key, value in numbers.items():
            if not (value != value or float(Double(split(value, dtype))) == value):
                yield f"has {key}={value!r}, which {dtype} does not hold"
        if "prev_loss" not in numbers:
            yield f"has prev_loss={self.found['prev_loss']!r}, which is no number"
        unscaled = _is_number(self.found["H_diag"]) and self.found["H_diag"] == 1
        if not self.found["ro"] and not unscaled:
            yield f"has H_diag={self.found['H_diag']!r} and no pairs, with which it is 1"

    def _arrays(self) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
        """What is an array: what to call it, itself, and the shape that it should have."""
        found, vector = self.found, (self.flat.size,)
        yield from ((key, found[key], vector) for key in VECTORS)
        yield from ((f"{key}[{i}]", row, vector) for key in RINGS for i, row in enumerate(found[key]))
        yield from ((f"ro[{i}]", x, ()) for i, x in enumerate(found["ro"]))
        yield from ((f"al[{i}]", x, ()) for i, x in enumerate(found.get("al", [])) if x is not None)
        yield from (("t", found["t"], ()) for _ in range(not _is_number(found["t"])))
        yield from (("H_diag", found["H_diag"], ()) for _ in range(bool(found["ro"])))

    def loaded(self, param_groups: tuple[ParamGroup, ...]) -> LBFGSState:
        """The template with these groups and what the file holds. Call it when there are no problems."""
        like = self.state.memory
        made = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        made = replace(
            made,
            func_evals=np.array(self.found.get("func_evals", 0)),
            t_kind=np.array(self._kind()),
            H_diag=np.ones((), like.H_diag.dtype),
        )
        memory = jax.tree.map(place, self._filled(made) if self.started else made, like)
        step = np.full(self.state.step.shape, self.found.get("n_iter", 0), np.int32)
        step = place(step, self.state.step)
        return replace(self.state, step=step, param_groups=param_groups, memory=memory)

    def _filled(self, made: Any) -> Any:
        found, index = self.found, self.state.flat.index_in(self.flat)
        rows = {key: [_array(row)[index] for row in found[key]] for key in RINGS}
        scalars = {key: [_array(x) for x in found.get(key, []) if x is not None] for key in ("ro", "al")}
        return replace(
            made,
            **{key: _array(found[key])[index] for key in VECTORS},
            **{key: _padded(getattr(made, key), row) for key, row in {**rows, **scalars}.items()},
            **{key: _double(found[key], made.t.parts.dtype) for key in ("t", "prev_loss")},
            H_diag=_array(found["H_diag"]),
            al_place=np.array(self._al_place()),
            count=np.array(len(found["ro"])),
        )

    def _al_place(self) -> int:
        keys = list(self.found)
        return 0 if "al" not in keys else 1 if keys.index("al") < keys.index("d") else 2

    def _kind(self) -> Kind:
        if not self.started:
            return Kind.NONE if set(self.found) & set(KEPT) else Kind.ABSENT
        return {int: Kind.INT, float: Kind.FLOAT}.get(type(self.found["t"]), Kind.TENSOR)


def _of_array(name: str, value: Any, shape: tuple[int, ...], dtype: Any, cast: bool) -> Iterator[str]:
    array = as_array(value)
    if array is None:
        yield f"has {name}, which is no array but {type(value).__name__}"
    elif array.shape != shape:
        yield f"has {name} of shape {array.shape}, and {shape} is that of its place"
    elif not cast and narrows(array.dtype, dtype):
        yield f"has {name} of {array.dtype}, which {dtype} would round; allow it with cast=True"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LAST_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _array(value: Any) -> np.ndarray:
    array = as_array(value)
    return np.asarray(value) if array is None else array


def _double(value: Any, dtype: Any) -> Double:
    return Double(split(float(_array(value)), dtype))


def _padded(zeros: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    padding = zeros[len(rows) :]
    return np.concatenate([np.stack(rows), padding]) if rows else padding
