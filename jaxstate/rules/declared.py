"""What is no bijection of elements, and is therefore declared: four rules of their own kind.

`Tied` is a second key of one array. `TorchOnly` is an entry of the file with no leaf in the model, `JaxOnly`
a leaf with no entry in the file. `Sum` is several torch arrays that the model holds as their sum. Each
answers what `Rule` answers, and says which values it cannot take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.foreign import as_numpy
from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.rules.rule import Arrays, Entry, Rename, Rule
from jaxstate.template import names

Values = Mapping[str, Sequence[str | int]]


@dataclass(frozen=True)
class Tied(Entry):
    """Another key of an array that a Rule binds already, as in a language model's tied head.

    All keys are written, sharing one storage. A file may hold any of them; those it holds must agree.

    Args:
        key: the additional key, or a template of keys.
        to: the key, or template over the same axes, that a Rule of the same Binding writes.
        axes: for each hole the values it takes.

    >>> Tied("lm_head.weight", "wte.weight").pairs
    (('lm_head.weight', 'wte.weight'),)
    """

    key: str
    to: str
    axes: Values = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(names(self.key, self.axes))

    @property
    def families(self) -> list[tuple[str, Values]]:
        return [(self.key, self.axes)]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [(self.key, "", f"tied to {self.to}", "", "")]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each additional key beside the key that it repeats."""
        return tuple(zip(self.keys, names(self.to, self.axes), strict=True))

    def at(self, key: str, path: str) -> "Tied":
        return replace(self, key=key + self.key, to=key + self.to)

    def rekeyed(self, rename: Rename) -> "Tied":
        return replace(self, key=rename(self.key, self.axes), to=rename(self.to, self.axes))

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> "Tied":
        return replace(self.at(key, path), axes={axis: tuple(values), **self.axes})


@dataclass(frozen=True, eq=False)
class TorchOnly(Entry):
    """An entry of the file that the model has no leaf for: a counter, or a value that both sides compute.

    Args:
        key: torch's key, or a template of keys.
        value: what is written, until a file says otherwise (`Binding.like`).
        counter: True if any value may be read; False if a file must hold exactly `value`.
        axes: for each hole the values it takes.
        kept: what a file held, by key.

    >>> TorchOnly("bn.num_batches_tracked", np.int64(0), counter=True).state_dict({})
    {'bn.num_batches_tracked': array(0)}
    """

    key: str
    value: Any
    counter: bool = False
    axes: Values = field(default_factory=dict)
    kept: Arrays = field(default_factory=dict, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "value", np.asarray(self.value))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(names(self.key, self.axes))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(self.keys, np.shape(self.value))

    @property
    def families(self) -> list[tuple[str, Values]]:
        return [(self.key, self.axes)]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        kind = "counter" if self.counter else "constant"
        return [(self.key, "", f"torch only, {kind}", str(self.value.shape), str(self.value.dtype))]

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        return {key: np.array(self.kept.get(key, self.value)) for key in self.keys}

    def like(self, state_dict: Arrays) -> "TorchOnly":
        return replace(self, kept=kept_arrays(state_dict, self.keys))

    def refused_arrays(self, state_dict: Arrays) -> list[str]:
        return [
            f'"{key}" is a constant of the model and the file has another value; if the file is right, '
            f'bind with TorchOnly("{key}", value), if any value will do with counter=True'
            for key in self.keys
            if not self.counter and key in state_dict and not same_bits(state_dict[key], self.value)
        ]

    def at(self, key: str, path: str) -> "TorchOnly":
        return replace(self, key=key + self.key)

    def rekeyed(self, rename: Rename) -> "TorchOnly":
        new = replace(self, key=rename(self.key, self.axes))
        kept = {to: self.kept[key] for key, to in zip(self.keys, new.keys, strict=True) if key in self.kept}
        return replace(new, kept=kept)

    def stacked(
        self, key: str, path: str, axis: str, values: Sequence[str | int], position: int
    ) -> "TorchOnly":
        return replace(self.at(key, path), axes={axis: tuple(values), **self.axes})


@dataclass(frozen=True)
class JaxOnly(Entry):
    """A leaf that torch has no entry for, and that must hold one value: a bias that torch goes without.

    Args:
        path: the leaf's path.
        value: what every element is, on loading and on saving.
        shape, dtype: of the leaf, where known.

    >>> JaxOnly("cell.dense_h.bias", 0.0, (4,), "float32").leaves({})
    {'cell.dense_h.bias': array([0., 0., 0., 0.], dtype=float32)}
    """

    path: str
    value: float
    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [("", self.path, f"jax only, {self.value}", str(self.shape or ""), self.dtype or "")]

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        return {self.path: np.full(self.shape or (), self.value, self.dtype)}

    def of(self, leaves: Arrays) -> "JaxOnly":
        leaf = leaves[self.path]
        return replace(self, shape=tuple(leaf.shape), dtype=str(np.dtype(leaf.dtype)))

    def refused_leaves(self, leaves: Arrays) -> list[str]:
        if np.all(np.asarray(leaves[self.path]) == self.value):
            return []
        return [f"leaf {self.path} is not {self.value} everywhere, and torch's module has no entry for it"]

    def rekeyed(self, rename: Rename) -> "JaxOnly":
        return self

    def at(self, key: str, path: str) -> "JaxOnly":
        return replace(self, path=path + self.path)

    def stacked(
        self, key: str, path: str, axis: str, values: Sequence[str | int], position: int
    ) -> "JaxOnly":
        return self.at(key, path)


@dataclass(frozen=True, eq=False)
class Sum(Entry):
    """Several torch arrays that only act added up, and one leaf that is their sum: torch's two RNN biases.

    Exact for the function and lossy for the bits: a sum does not tell its terms. Written back, the first
    part that names a leaf gets all of it and later ones zeros, unless a file's terms still add up to it
    (`Binding.like`). The terms train differently from their sum, so no optimizer state crosses a Sum.

    Args:
        parts: Rules whose keys all differ and whose paths overlap.
        zeros: `(part, start, stop)` where elements of that part's torch array have no leaf to go to.
        kept: what a file held, by key.

    >>> bias = Sum((Rule("bias_ih", "bias", "k -> k"), Rule("bias_hh", "bias", "k -> k")))
    >>> bias.leaves({"bias_ih": np.float32([1, 2]), "bias_hh": np.float32([3, 4])})
    {'bias': array([4., 6.], dtype=float32)}
    """

    parts: tuple[Rule, ...]
    zeros: tuple[tuple[int, int, int], ...] = ()
    kept: Arrays = field(default_factory=dict, repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for part in self.parts for key in part.keys)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for part in self.parts for path in part.paths))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {key: shape for part in self.parts for key, shape in part.shapes.items()}

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.keys

    @property
    def families(self) -> list[tuple[str, Values]]:
        return [family for part in self.parts for family in part.families]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [
            (key, path, f"sum (lossy), {layout}", *rest)
            for part in self.parts
            for key, path, layout, *rest in part.rows
        ]

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        if self.kept and all(same_bits(leaf, leaves[path]) for path, leaf in self.leaves(self.kept).items()):
            return {key: np.array(array) for key, array in self.kept.items()}
        arrays, given = {}, set()
        for part in self.parts:
            own = {path: _zeros(leaves[path]) if path in given else leaves[path] for path in part.paths}
            arrays |= part.state_dict(own)
            given |= set(part.paths)
        return arrays

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for part in self.parts:
            for path, term in part.leaves(state_dict).items():
                term = _widened(term, part.dtype)
                sums[path] = sums[path] + term if path in sums else term
        return sums

    def lazy_leaves(self, state_dict: Arrays) -> dict[str, LazyArray]:
        terms: dict[str, list[tuple[LazyArray, str | None]]] = {path: [] for path in self.paths}
        for part in self.parts:
            for path, term in part.lazy_leaves(state_dict).items():
                terms[path].append((term, part.dtype))
        return {path: _lazy_sum(row) for path, row in terms.items()}

    def of(self, leaves: Arrays) -> "Sum":
        return replace(self, parts=tuple(part.of(leaves) for part in self.parts))

    def like(self, state_dict: Arrays) -> "Sum":
        return replace(self, kept=kept_arrays(state_dict, self.keys))

    def refused_arrays(self, state_dict: Arrays) -> list[str]:
        return [
            f'"{key}"[{start}:{stop}] is not zero, and the JAX module has no leaf for it; '
            "a module that has one (flax.linen.GRUCell, a cell of your own) can hold these weights"
            for part, start, stop in self.zeros
            for key in self.parts[part].keys
            if key in state_dict and np.any(as_numpy(state_dict[key])[start:stop])
        ]

    def at(self, key: str, path: str) -> "Sum":
        return replace(self, parts=tuple(part.at(key, path) for part in self.parts))

    def rekeyed(self, rename: Rename) -> "Sum":
        new = replace(self, parts=tuple(part.rekeyed(rename) for part in self.parts))
        kept = {to: self.kept[key] for key, to in zip(self.keys, new.keys, strict=True) if key in self.kept}
        return replace(new, kept=kept)

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> "Sum":
        parts = tuple(part.stacked(key, path, axis, values, position) for part in self.parts)
        return replace(self, parts=parts)


def same_bits(left: Any, right: Any) -> bool:
    """True if two arrays have the same shape, dtype and bytes; NaNs and signed zeros are told apart.

    >>> same_bits(np.float32([0.0]), np.float32([-0.0]))
    False
    """
    if left is right:
        return True
    left, right = as_numpy(left), as_numpy(right)
    same = left.shape == right.shape and left.dtype == right.dtype
    if same and left.strides == right.strides and left.ctypes.data == right.ctypes.data:
        return True  # one memory: what is tied in a file of torch's is not read twice, nor at all
    return same and np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


def _widened(term: Any, dtype: str | None) -> Any:
    """A term in the leaf's dtype if that holds it, so that a sum for a float32 leaf is no sum of bfloat16."""
    return term.astype(dtype) if dtype and np.can_cast(term.dtype, dtype, "safe") else term


def _lazy_sum(terms: Sequence[tuple[LazyArray, str | None]]) -> LazyArray:
    """The sum of terms, each in the dtype of its leaf if that holds it."""

    def read(box: Box) -> Any:
        first, *others = (_widened(term[box], dtype) for term, dtype in terms)
        return sum(others, start=first)

    empty = tuple(slice(0, 0, 1) for _ in terms[0][0].shape)
    return from_parts(terms[0][0].shape, read(empty).dtype, read)


def _zeros(leaf: Any) -> Any:
    return (jnp if isinstance(leaf, jax.Array) else np).zeros_like(leaf)


def kept_arrays(state_dict: Arrays, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Copies of what a file holds under these keys."""
    return {key: np.array(as_numpy(state_dict[key])) for key in keys if key in state_dict}
