"""Rule: one sentence of a Binding. It pairs torch keys with pytree paths, through a Layout.

An axis of an array on one side may be an index in a name on the other: the three projections that torch
keeps in one `in_proj_weight`, the layers that JAX stacks into one leaf. So keys and paths are templates,
and `{axis}` in one of them is an axis like any other: names and array together make one Layout.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.hosted import Hosted, readable
from jaxstate.arrays.lazy import Box, LazyArray, Made, from_parts
from jaxstate.errors import BindingError, LayoutError
from jaxstate.layout import Layout, insert_axis, length_of, tidy
from jaxstate.rules.parts import dtype_of_stack, into, part, places
from jaxstate.template import Values, fill, holes, names

Arrays = Mapping[str, Any]
Rename = Callable[[str, Values], str]  # from a template of keys and its values to another template


class Entry:
    """The answers of a rule that has nothing to say."""

    __slots__ = ()

    keys: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = {}
    trainable: tuple[str, ...] = ()  # the keys that an optimizer has ids for
    gathers: bool = False  # whether a leaf is put together of parts of torch's arrays, and is no view of one
    families: Sequence[tuple[str, Mapping[str, Sequence[str | int]]]] = ()  # the templates of its keys
    rows: Sequence[tuple[str, ...]] = ()  # as a table shows it: key, path, layout, shape, dtype

    @property
    def value_paths(self) -> tuple[str, ...]:
        """The leaves that hold torch's values, and must be able to."""
        return self.paths

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        """torch's arrays of these leaves."""
        return {}

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        """The leaves of these torch arrays."""
        return {}

    def lazy_leaves(self, state_dict: Arrays) -> dict[str, LazyArray]:
        """The same leaves, a part of which reads what it needs; a rule that does not say how reads all."""
        made = {path: np.asarray(leaf) for path, leaf in self.leaves(Made(state_dict)).items()}
        return {path: LazyArray(leaf.shape, leaf.dtype, lambda x=leaf: x) for path, leaf in made.items()}

    def lazy_state_dict(self, leaves: Arrays) -> dict[str, Any]:
        """The same torch arrays, a part of which reads what it needs; likewise."""
        return self.state_dict(Hosted(leaves))

    def of(self, leaves: Arrays) -> Any:
        """This rule with its leaves' shape and dtype."""
        return self

    def like(self, state_dict: Arrays) -> Any:
        """This rule with what a file says and no leaf can hold."""
        return self

    def trained(self) -> Any:
        """The part of this rule that an optimizer trains."""
        return self

    def rekeyed(self, rename: Rename) -> Any:
        """This rule with other keys."""
        raise NotImplementedError

    def refused_arrays(self, state_dict: Arrays) -> list[str]:
        """A sentence for each torch array whose value the model cannot take."""
        return []

    def refused_leaves(self, leaves: Arrays) -> list[str]:
        """A sentence for each leaf whose value torch has no place for."""
        return []


@dataclass(frozen=True, init=False, repr=False, slots=True)
class Rule(Entry):
    """Pair torch keys with pytree paths: a bijection of keys, paths and elements.

    Args:
        key: torch's dotted key; `{axis}` holes are axes that live in the name.
        path: the leaf's dotted path in the pytree, with holes likewise.
        pattern: the array's layout, JAX axes left. An axis of a hole stands here on the other side only.
        buffer: True for a torch buffer, which no optimizer has an id for.
        shape, dtype: of each leaf, where known; `of` fills them in. A shape tells the lengths of all axes.
        **axes: for an axis in a name the values it takes there, in order; for a part of a merged
            axis its length.

    Attributes:
        keys, paths: every torch key and every leaf's path, the holes filled in.
        layout: of names and array together.

    Raises:
        LayoutError: axes that do not stand exactly once on each side, names and array counted together.
        BindingError: a hole without values, or values that repeat.

    >>> rule = Rule("in_proj_weight", "{qkv}.kernel", "d n k -> (qkv n k) d", qkv=("query", "key", "value"))
    >>> leaves = {path: np.random.rand(8, 2, 4) for path in rule.paths}
    >>> back = rule.of(leaves).leaves(rule.state_dict(leaves))
    >>> all(np.array_equal(back[path], leaves[path]) for path in rule.paths)
    True
    """

    key: str
    path: str
    pattern: str
    names: tuple[tuple[str, tuple[str | int, ...]], ...]
    sizes: tuple[tuple[str, int], ...]
    buffer: bool
    shape: tuple[int, ...] | None
    dtype: str | None
    layout: Layout = field(compare=False)
    keys: tuple[str, ...] = field(compare=False)
    paths: tuple[str, ...] = field(compare=False)

    def __init__(
        self,
        key: str,
        path: str,
        pattern: str,
        *,
        buffer: bool = False,
        shape: Sequence[int] | None = None,
        dtype: Any = None,
        **axes: int | Iterable[str | int],
    ):
        pattern = tidy(pattern)
        values = {axis: tuple(v) for axis, v in axes.items() if isinstance(v, Iterable)}
        given = {axis: v for axis, v in axes.items() if axis not in values}
        sizes = tuple(sorted((axis, length_of(pattern, axis, v)) for axis, v in given.items()))
        _check_holes(key, path, values)
        lengths = (*sizes, *((axis, len(row)) for axis, row in values.items()))
        layout = _whole(holes(key), holes(path), pattern, lengths)
        self._set(
            key=key,
            path=path,
            pattern=pattern,
            names=tuple(values.items()),
            sizes=sizes,
            buffer=buffer,
            shape=None if shape is None else tuple(map(int, shape)),
            dtype=None if dtype is None else name_of(np.dtype(dtype)),
            layout=layout,
            keys=tuple(names(key, values)),
            paths=tuple(names(path, values)),
        )
        if self.shape is not None:
            layout = layout.sized((*self._lengths(path), *self.shape))
            told = {axis: size for axis, size in layout.sizes if axis not in values}
            self._set(layout=layout, sizes=tuple(sorted({**dict(sizes), **told}.items())))

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        axes = {**{axis: _compact(values) for axis, values in self.names}, **dict(self.sizes)}
        options = {**axes, "buffer": True} if self.buffer else axes
        extra = "".join(f", {name}={value!r}" for name, value in options.items())
        return f'Rule("{self.key}", "{self.path}", "{self.pattern}"{extra})'

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """torch's shape for each key. Raises BindingError while the leaf's own shape is not known."""
        shape = self.layout.shape((*self._lengths(self.path), *self._known_shape()))
        return dict.fromkeys(self.keys, shape[len(self._lengths(self.key)) :])

    @property
    def trainable(self) -> tuple[str, ...]:
        return () if self.buffer else self.keys

    @property
    def gathers(self) -> bool:
        return len(self.keys) > len(self.paths) or any(len(dim) > 1 for dim in self.layout.left)

    @property
    def families(self) -> list[tuple[str, Mapping[str, Sequence[str | int]]]]:
        return [(self.key, dict(self.names))]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        shape = "" if self.shape is None else str(self.shape)
        words = [(axis, values) for axis, values in self.names if any(isinstance(v, str) for v in values)]
        named = "".join(f", {axis} = {' '.join(map(str, values))}" for axis, values in words)
        return [
            (self.key, self.path, "buffer " * self.buffer + self.pattern + named, shape, self.dtype or "")
        ]

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        """torch's arrays of these leaves: numpy, jax or traced. They may share memory with the leaves."""
        return self._move(leaves, self.path, self.key, self.layout)

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        """The leaves of these torch arrays: the inverse of `state_dict`."""
        return self._move(state_dict, self.key, self.path, self.layout.inverse)

    def lazy_leaves(self, state_dict: Arrays) -> dict[str, LazyArray]:
        """The same leaves; a part of one is read from the parts of the torch arrays that it is made of.

        >>> rule = Rule("w", "w", "i o -> o i", shape=(3, 2))
        >>> w = LazyArray((2, 3), "int64", lambda: None, lambda box: np.arange(6).reshape(2, 3)[box])
        >>> rule.lazy_leaves({"w": w})["w"][1:, :1].tolist()  # the whole cannot be made
        [[1], [2]]
        """
        return self._lazily(state_dict, self.key, self.path, self.layout)

    def lazy_state_dict(self, leaves: Arrays) -> dict[str, LazyArray]:
        """The same torch arrays; a part of one is read from the parts of the leaves that it is made of."""
        return self._lazily(leaves, self.path, self.key, self.layout.inverse)

    def places(self, path: str, box: Box) -> list[tuple[str, Box]]:
        """Where torch's arrays have the values of a part of a leaf: keys, and a box of the array of each.

        >>> rule = Rule("{l}", "w", "l i o -> o i", l=range(2), shape=(2, 6, 4))
        >>> rule.places("w", (slice(1, 2), slice(3, 6), slice(0, 4)))
        [('1', (slice(0, 4, None), slice(3, 6, None)))]
        """
        sizes, inner, outer = self._sizes, self._lengths(self.path), self._lengths(self.key)
        given, wanted = next(row for row in self._rows(self.path, self.key) if path in row[0])
        index = list(np.ndindex(*inner))[given.index(path)]
        keys = dict(zip(np.ndindex(*outer), wanted, strict=True))
        here = tuple(slice(i, i + 1) for i in index)
        return [(keys[at], there) for at, there in places(self.layout, sizes, len(outer), (*here, *box))]

    def of(self, leaves: Arrays) -> "Rule":
        """This rule with its leaves' shape and dtype; they may be abstract.

        Raises:
            BindingError: leaves of several shapes, or a shape that the layout does not take.
        """
        shapes = {tuple(leaves[path].shape) for path in self.paths}
        if len(shapes) != 1:
            raise BindingError(f"the leaves of {self!r} have several shapes: {sorted(shapes)}")
        shape, dtype = shapes.pop(), name_of(np.dtype(leaves[self.paths[0]].dtype))
        if (shape, dtype) == (self.shape, self.dtype):
            return self
        try:
            return self._with(shape=shape, dtype=dtype)
        except LayoutError as error:
            raise BindingError(f"{self!r} does not fit its leaf: {error}") from error

    def at(self, key: str, path: str) -> "Rule":
        """This rule for a module that stands at a place: both names prefixed, dots included."""
        return self._with(key=key + self.key, path=path + self.path)

    def renamed(self, path: str) -> "Rule":
        """This rule for a leaf that goes by another path."""
        return self._with(path=path)

    def rekeyed(self, rename: Rename) -> "Rule":
        """This rule with other keys."""
        return self._with(key=rename(self.key, dict(self.names)))

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> "Rule":
        """This rule for a stack of modules: one more axis of the leaf is `{axis}` in the key's prefix.

        >>> Rule("weight", "kernel", "i o -> o i").stacked("h.{l}.", "h.", "l", range(12), 0)
        Rule("h.{l}.weight", "h.kernel", "l i o -> o i", l=range(0, 12))
        """
        pattern = insert_axis(self.pattern, axis, position)
        changes = {axis: tuple(values), "shape": None}
        return self._with(key=key + self.key, path=path + self.path, pattern=pattern, **changes)

    def _with(self, **changes: Any) -> "Rule":
        given = {name: getattr(self, name) for name in ("key", "path", "pattern", "buffer", "shape", "dtype")}
        return Rule(**{**given, **dict(self.names), **dict(self.sizes), **changes})

    def _known_shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise BindingError(f"{self!r} does not know its shape: Binding.of(leaves) tells it")
        return self.shape

    @property
    def _sizes(self) -> dict[str, int]:
        """The length of every axis."""
        return self.layout.axes((*self._lengths(self.path), *self._known_shape()))

    def _lengths(self, template: str) -> list[int]:
        """The lengths of the axes that live in this name and not in the other: they are stacked."""
        if not self.names:
            return []
        shared = set(holes(self.key)) & set(holes(self.path))
        return [len(dict(self.names)[axis]) for axis in holes(template) if axis not in shared]

    def _move(self, arrays: Arrays, source: str, target: str, layout: Layout) -> dict[str, Any]:
        if not self.names:
            return {target: layout(arrays[source])}
        inner, outer = self._lengths(source), self._lengths(target)
        moved = {}
        for given, wanted in self._rows(source, target):
            parts = _unstack(layout(_stack([arrays[name] for name in given], inner)), outer)
            moved |= zip(wanted, parts, strict=True)
        return {name: moved[name] for name in names(target, dict(self.names))}

    def _lazily(self, arrays: Arrays, source: str, target: str, layout: Layout) -> dict[str, LazyArray]:
        """What `_move` gives, by parts; the layout is that of the target to the left."""
        sizes = self._sizes
        if not self.names:
            return {target: _lazy(layout, sizes, {(): readable(arrays[source])}, ())}
        inner, outer = self._lengths(source), self._lengths(target)
        moved = {}
        for given, wanted in self._rows(source, target):
            stack = dict(zip(np.ndindex(*inner), [readable(arrays[name]) for name in given], strict=True))
            for index, name in zip(np.ndindex(*outer), wanted, strict=True):
                moved[name] = _lazy(layout, sizes, stack, index)
        return {name: moved[name] for name in names(target, dict(self.names))}

    def _rows(self, source: str, target: str) -> Iterator[tuple[list[str], list[str]]]:
        """The names on both sides of each layout, for each value of the axes that live in both."""
        values = dict(self.names)
        shared = [axis for axis in holes(source) if axis in holes(target)]
        for row in product(*(values[axis] for axis in shared)):
            here = dict(zip(shared, row, strict=True))
            given, wanted = (list(names(fill(side, here), values)) for side in (source, target))
            yield given, wanted


@lru_cache(maxsize=1024)  # a model has few layouts, however many leaves
def _whole(
    keys: tuple[str, ...], paths: tuple[str, ...], pattern: str, sizes: tuple[tuple[str, int], ...]
) -> Layout:
    """The layout of names and array together: holes of the path, then JAX axes -> holes of the key, ..."""
    left, arrow, right = pattern.partition("->")
    shared = set(keys) & set(paths)
    inner, outer = (" ".join(axis for axis in side if axis not in shared) for side in (paths, keys))
    own = {axis: size for axis, size in sizes if axis not in shared}
    return Layout(f"{inner} {left} {arrow} {outer} {right}", **own)


@cache
def name_of(dtype: np.dtype) -> str:
    """What a rule calls a dtype."""
    return str(dtype)


def _check_holes(key: str, path: str, values: Mapping[str, tuple[str | int, ...]]) -> None:
    rule = f'Rule("{key}", "{path}")'
    for axis in {*holes(key), *holes(path)} - set(values):
        raise BindingError(f"{rule}: {{{axis}}} has no values; say {axis}=range(...) or {axis}=(...)")
    for axis, row in values.items():
        if axis not in {*holes(key), *holes(path)}:
            raise BindingError(
                f"{rule}: {axis}={_compact(row)!r} is no hole of either name; a length is an int"
            )
        if len({str(value) for value in row}) < len(row):
            raise BindingError(f"{rule}: {axis}={row!r} has a value twice")


def _stack(arrays: list[Any], lengths: list[int]) -> Any:
    if not lengths:
        return arrays[0]
    stack = jnp.stack if any(isinstance(array, jax.Array) for array in arrays) else np.stack
    return stack(arrays).reshape(*lengths, *arrays[0].shape)


def _unstack(array: Any, lengths: list[int]) -> list[Any]:
    return [array[index] for index in np.ndindex(*lengths)] if lengths else [array]


def _lazy(
    layout: Layout, sizes: Mapping[str, int], stack: Mapping[tuple[int, ...], Any], index: tuple[int, ...]
) -> LazyArray:
    """The array at a place in the stack that the layout has to its left, made of the stack to its right."""
    shape = [prod(sizes[axis] for axis in dim) for dim in layout.left[len(index) :]]
    here, dtype = tuple(slice(i, i + 1) for i in index), dtype_of_stack(stack)

    is_view = not index and all(len(dim) < 2 for dim in layout.left)
    if is_view and isinstance(alone := stack.get(()), np.ndarray):
        view = layout.inverse(alone)
        return LazyArray(tuple(shape), dtype, lambda: view, view.__getitem__, tied=True)

    def read(box: Box) -> np.ndarray:
        found = part(layout, sizes, stack, (*here, *box))
        return found[(0,) * len(here)].astype(dtype, copy=False)

    def write(out: np.ndarray, box: Box) -> None:
        into(out[(*(None for _ in here), ...)], layout, sizes, stack, (*here, *box))

    return from_parts(tuple(shape), dtype, read, tied=True, write=write)


def _compact(values: tuple[str | int, ...]) -> range | tuple[str | int, ...]:
    return range(len(values)) if values == tuple(range(len(values))) else values
