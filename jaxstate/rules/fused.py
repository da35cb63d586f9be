"""Fused: the rule of an array that is several others, one behind the other, of lengths that may differ.

Where all parts are alike, as in `in_proj_weight`, one Rule says it: their number is an axis. Queries with
more heads than keys have, a gate beside what it gates, the parts of a state-space model's projection are not
alike, and are Rules of their own here. It is still a bijection, so moments and gradients go the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from jaxstate.arrays.hosted import readable
from jaxstate.arrays.lazy import Box, LazyArray
from jaxstate.errors import BindingError, LayoutError
from jaxstate.layout import Side
from jaxstate.rules.axes import array_dims, lengths_of, resized
from jaxstate.rules.joint import Joint
from jaxstate.rules.rule import Arrays, Entry, Rename, Rule
from jaxstate.template import holes


@dataclass(frozen=True, init=False, repr=False)
class Fused(Entry):
    """Rules that all name one torch key: its array is what they write, joined along an axis. Or one path.

    Args:
        parts: Rules with the same key, in the order in which their arrays lie in torch's; or Rules with the
            same path, in that in which theirs lie in the leaf, each with its length of the axis.
        axis: along which they are joined. It stands on that side of each pattern, alone or in brackets.

    Raises:
        BindingError: parts that share neither key nor path, or have no such axis.

    >>> import numpy as np
    >>> q = Rule("qkv.weight", "q.kernel", "i o -> o i")
    >>> k = Rule("qkv.weight", "k.kernel", "i o -> o i")
    >>> leaves = {"q.kernel": np.random.rand(3, 4), "k.kernel": np.random.rand(3, 2)}
    >>> rule = Fused((q, k), "o").of(leaves)
    >>> rule.shapes
    {'qkv.weight': (6, 3)}
    >>> back = rule.leaves(rule.state_dict(leaves))
    >>> all(np.array_equal(back[path], leaves[path]) for path in rule.paths)
    True

    Heads that alternate, in each of two groups three of queries and one of keys, are joined inside of a
    dimension.

    >>> q = Rule("qkv.weight", "q.kernel", "i (g n d) -> (g n d) i", g=2, n=3)
    >>> k = Rule("qkv.weight", "k.kernel", "i (g n d) -> (g n d) i", g=2, n=1)
    >>> leaves = {"q.kernel": np.zeros((1, 6), int), "k.kernel": np.ones((1, 2), int)}
    >>> Fused((q, k), "n").of(leaves).state_dict(leaves)["qkv.weight"].T
    array([[0, 0, 0, 1, 0, 0, 0, 1]])

    A leaf in which torch's arrays lie one behind the other does not tell where one ends, so the Rules do.

    >>> q, k = Rule("q.weight", "qk", "i o -> o i", o=4), Rule("k.weight", "qk", "i o -> o i", o=2)
    >>> Fused((q, k), "o").of({"qk": np.zeros((3, 6))}).shapes
    {'q.weight': (4, 3), 'k.weight': (2, 3)}
    """

    parts: tuple[Rule, ...]
    axis: str

    def __init__(self, parts: Sequence[Rule], axis: str):
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "axis", axis)
        _check(self)

    def __repr__(self) -> str:
        return f'Fused([{", ".join(map(repr, self.parts))}], "{self.axis}")'

    @property
    def in_torch(self) -> bool:
        """True if it is torch's array that holds the parts, False if it is the leaf."""
        return len({part.key for part in self.parts}) == 1

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for part in self.parts for key in part.keys))

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for part in self.parts for path in part.paths))

    @property
    def buffer(self) -> bool:
        return self.parts[0].buffer

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        if self.in_torch:
            return dict.fromkeys(self.keys, self._joint.shape)
        return {key: shape for part in self.parts for key, shape in part.shapes.items()}

    @property
    def trainable(self) -> tuple[str, ...]:
        return () if self.buffer else self.keys

    @property
    def families(self) -> list[tuple[str, Mapping[str, Sequence[str | int]]]]:
        return list({part.key: family for part in self.parts for family in part.families}.values())

    @property
    def rows(self) -> list[tuple[str, ...]]:
        spans = self._spans if self._is_sized else [f"joined along {self.axis}"] * len(self.parts)
        rows = ((row, span) for part, span in zip(self.parts, spans, strict=True) for row in part.rows)
        return [(key, path, f"{layout}, {span}", *rest) for (key, path, layout, *rest), span in rows]

    @property
    def lengths(self) -> tuple[int, ...]:
        """How much of the axis each part has. Raises BindingError while shapes are not known."""
        return tuple(lengths_of(part)[self.axis] for part in self.parts)

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        if not self._is_sized:
            return self.of(leaves).state_dict(leaves)
        if not self.in_torch:
            return self._apart(leaves, self.paths, self._joint.split, "state_dict")
        written = [part.state_dict(leaves) for part in self.parts]
        return {key: self._joint.join([arrays[key] for arrays in written]) for key in self.keys}

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        if self.in_torch:
            return self._apart(state_dict, self.keys, self._joint.split, "leaves")
        read = [part.leaves(state_dict) for part in self.parts]
        return {path: self._joint.join([found[path] for found in read]) for path in self.paths}

    def lazy_state_dict(self, leaves: Arrays) -> dict[str, LazyArray]:
        if not self.in_torch:
            return self._apart(leaves, self.paths, self._lazy_split, "lazy_state_dict")
        written = [part.lazy_state_dict(leaves) for part in self.parts]
        return {key: self._joint.lazy_join([arrays[key] for arrays in written]) for key in self.keys}

    def lazy_leaves(self, state_dict: Arrays) -> dict[str, LazyArray]:
        if self.in_torch:
            return self._apart(state_dict, self.keys, self._lazy_split, "lazy_leaves")
        read = [part.lazy_leaves(state_dict) for part in self.parts]
        return {path: self._joint.lazy_join([found[path] for found in read]) for path in self.paths}

    def places(self, path: str, box: Box) -> list[tuple[str, Box]]:
        """Where torch's arrays have the values of a part of a leaf: keys, and a box of the array of each.

        >>> parts = (Rule("w", "q", "i o -> o i", shape=(2, 4)), Rule("w", "k", "i o -> o i", shape=(2, 3)))
        >>> Fused(parts, "o").places("k", (slice(0, 2), slice(1, 2)))
        [('w', (slice(5, 6, None), slice(0, 2, None)))]
        """
        if not self.in_torch:
            inner = [(self.parts[n], there) for n, there in self._joint.inward(box)]
            return [place for part, there in inner for place in part.places(path, there)]
        n = next(n for n, part in enumerate(self.parts) if path in part.paths)
        found = self.parts[n].places(path, box)
        return [(key, there) for key, inner in found for there in self._joint.outward(n, inner)]

    def of(self, leaves: Arrays) -> "Fused":
        if self.in_torch:
            rule = self._with(lambda part: part.of(leaves))
        else:
            lengths = [dict(part.sizes)[self.axis] for part in self.parts]
            rule = self._with(lambda part: _told(part, self.axis, lengths, leaves))
        _check_pieces(rule)
        return rule

    def at(self, key: str, path: str) -> "Fused":
        return self._with(lambda part: part.at(key, path))

    def rekeyed(self, rename: Rename) -> "Fused":
        return self._with(lambda part: part.rekeyed(rename))

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> "Fused":
        return self._with(lambda part: part.stacked(key, path, axis, values, position))

    def _with(self, change: Any) -> "Fused":
        return Fused([change(part) for part in self.parts], self.axis)

    def _apart(self, arrays: Arrays, names: Sequence[str], split: Any, move: str) -> dict[str, Any]:
        """What each Rule makes of its pieces of the arrays."""
        pieces = {name: split(arrays[name]) for name in names}
        own = [{name: row[n] for name, row in pieces.items()} for n in range(len(self.parts))]
        rows = [getattr(part, move)(arrays) for part, arrays in zip(self.parts, own, strict=True)]
        return {name: array for row in rows for name, array in row.items()}

    def _lazy_split(self, array: Any) -> list[LazyArray]:
        return self._joint.lazy_split(readable(array))

    @cached_property
    def _joint(self) -> Joint:
        first = self.parts[0]
        return Joint.along(self.axis, self._dims(first), lengths_of(first), self.lengths)

    def _dims(self, part: Rule) -> Side:
        return array_dims(part, self.in_torch)

    @property
    def _is_sized(self) -> bool:
        return all(part.shape is not None for part in self.parts)

    @property
    def _spans(self) -> list[str]:
        joint, start, spans = self._joint, 0, []
        for length in joint.lengths:
            spans.append(f"{self.axis} {start}:{start + length} of {sum(joint.lengths)}")
            start += length
        return spans


def _told(part: Rule, axis: str, lengths: Sequence[int], leaves: Arrays) -> Rule:
    """A part of a leaf: as the leaf is, but for the axis, of which the leaf has the lengths of all parts."""
    whole = resized(part, axis, sum(lengths))
    try:
        whole = whole.of(leaves)
    except (BindingError, LayoutError) as error:
        total = f"{' + '.join(map(str, lengths))} = {sum(lengths)}"
        raise BindingError(f"the parts of {part.path} have {total} of axis {axis}: {error}") from error
    own = resized(whole, axis, dict(part.sizes)[axis], whole.shape)
    return own.of({path: jax.ShapeDtypeStruct(own.shape or (), whole.dtype) for path in own.paths})


def _check(rule: Fused) -> None:
    """Raise BindingError unless the parts are Rules of one key or of one path that have the axis there."""
    parts, axis = rule.parts, rule.axis
    if not parts or not all(isinstance(part, Rule) for part in parts):
        raise BindingError(f"a Fused is made of Rules, not of {parts!r}")
    keys, paths = ([name(part) for part in parts] for name in (lambda p: p.key, lambda p: p.path))
    one, others = (keys, paths) if rule.in_torch else (paths, keys)
    if len(set(one)) > 1 or len(set(others)) < len(others):
        raise BindingError(
            f"the parts of a Fused have one key and different paths, or one path: {keys}, {paths}"
        )
    if len({(part.buffer, _shared(part)) for part in parts}) > 1:
        raise BindingError(
            f"the parts of {one[0]} are not all buffers, or do not all have the same holes: {parts}"
        )
    for part in parts:
        if not any(axis in dim for dim in array_dims(part, rule.in_torch)):
            side = "torch's" if rule.in_torch else "JAX's"
            raise BindingError(f'{part!r} has no axis "{axis}" in an array of {side}')
        if not rule.in_torch and axis not in dict(part.sizes):
            raise BindingError(f"{part!r} is a part of a leaf: say how long, {axis}=...")


def _shared(part: Rule) -> frozenset[str]:
    return frozenset(holes(part.key)) & frozenset(holes(part.path))


def _check_pieces(rule: Fused) -> None:
    """Raise BindingError unless the pieces have the same shape but for the axis."""
    joint = rule._joint
    for n, part in enumerate(rule.parts):
        own = Joint.along(rule.axis, rule._dims(part), lengths_of(part), [joint.lengths[n]])
        if (own.shape, own.dim, own.before, own.after) != (
            joint.piece(n),
            joint.dim,
            joint.before,
            joint.after,
        ):
            first = joint.piece(0)
            raise BindingError(
                f"{part!r} writes {own.shape}, which cannot be joined along {rule.axis} with the {first} of "
                f"{rule.parts[0]!r}"
            )
