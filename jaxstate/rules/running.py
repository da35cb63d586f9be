"""Running: the rule of running statistics of which JAX keeps more than torch.

Torch moves its statistics by a fixed part of each batch. Others start from nothing and remove the bias of
that start, `average = hidden / (1 - decay ** count)`, or take the first batch whole; so they also keep how
often that was. After many batches all of them move alike, and that is how torch's statistics are read: as
averages of so many batches that no bias is left. Training then goes on as in torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxstate.rules.rule import Arrays, Entry, Rename, Rule

MANY = 2**30  # batches: any decay to this power is zero in float32, and as many again can be counted


@dataclass(frozen=True, eq=False)
class Running(Entry):
    """Bind running statistics, and what JAX keeps beside them.

    Args:
        parts: the Rules of the statistics themselves.
        copies: `{leaf: leaf of a part}` for what equals a statistic before its bias is removed.
        marks: `{leaf: value}` for counters and flags, with the value that says: many batches.
        unset: `{leaf: value}` for those marks that say with it that there was no batch yet.
        count: the counter among the marks by which the parts are biased themselves; "" if they are not.
        decay: what is kept of an average at each batch; it matters with `count` only.
        shapes_of: shape and dtype of the marks, where known; `of` fills them in.

    >>> rule = Running((Rule("running_mean", "mean", "c -> c"),), marks={"first": 0}, unset={"first": 1})
    >>> leaves = {"mean": np.float32([3, 4]), "first": np.array(False)}
    >>> back = rule.of(leaves).leaves(rule.state_dict(leaves))
    >>> all(np.array_equal(back[path], leaves[path]) for path in leaves)
    True
    """

    parts: tuple[Rule, ...]
    copies: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, int] = field(default_factory=dict)
    unset: Mapping[str, int] = field(default_factory=dict)
    count: str = ""
    decay: float = 0.0
    shapes_of: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for part in self.parts for key in part.keys)

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.value_paths, *self.marks)

    @property
    def value_paths(self) -> tuple[str, ...]:
        return (*(path for part in self.parts for path in part.paths), *self.copies)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {key: shape for part in self.parts for key, shape in part.shapes.items()}

    @property
    def families(self) -> list[tuple[str, Mapping[str, Sequence[str | int]]]]:
        return [family for part in self.parts for family in part.families]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        own = [row for part in self.parts for row in part.rows]
        copies = [("", path, "the same, before its bias is removed", "", "") for path in self.copies]
        marks = [
            ("", path, f"jax only, {value} for many batches", "", "") for path, value in self.marks.items()
        ]
        return [*own, *copies, *marks]

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        return {k: v for part in self.parts for k, v in part.state_dict(self._unbiased(part, leaves)).items()}

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        own = {path: leaf for part in self.parts for path, leaf in part.leaves(state_dict).items()}
        copies = {path: np.array(own[of]) for path, of in self.copies.items()}
        marks = {path: np.full(*self._filled(path, value)) for path, value in self.marks.items()}
        return {**own, **copies, **marks}

    def of(self, leaves: Arrays) -> "Running":
        kinds = {path: (tuple(leaves[path].shape), str(leaves[path].dtype)) for path in self.marks}
        return replace(self, parts=tuple(part.of(leaves) for part in self.parts), shapes_of=kinds)

    def refused_leaves(self, leaves: Arrays) -> list[str]:
        return [
            f"leaf {path} says that there was no batch yet, so {self.parts[0].path} is no statistic; torch "
            "starts from mean 0 and variance 1: run a batch, or load a state_dict first"
            for path, value in self.unset.items()
            if np.any(np.asarray(leaves[path]) == value)
        ]

    def at(self, key: str, path: str) -> "Running":
        return self._renamed([part.at(key, path) for part in self.parts], lambda name: path + name)

    def rekeyed(self, rename: Rename) -> "Running":
        return replace(self, parts=tuple(part.rekeyed(rename) for part in self.parts))

    def moved(self, places: Mapping[str, str]) -> "Running":
        """This rule for leaves that go by other paths."""
        parts = [part.renamed(places.get(part.path, part.path)) for part in self.parts]
        return self._renamed(parts, lambda name: places.get(name, name))

    def stacked(
        self, key: str, path: str, axis: str, values: Sequence[str | int], position: int
    ) -> "Running":
        parts = [part.stacked(key, path, axis, values, position) for part in self.parts]
        return replace(self._renamed(parts, lambda name: path + name), shapes_of={})

    def _renamed(self, parts: Sequence[Rule], name: Any) -> "Running":
        return replace(
            self,
            parts=tuple(parts),
            copies={name(path): name(of) for path, of in self.copies.items()},
            marks={name(path): value for path, value in self.marks.items()},
            unset={name(path): value for path, value in self.unset.items()},
            count=self.count and name(self.count),
            shapes_of={name(path): kind for path, kind in self.shapes_of.items()},
        )

    def _unbiased(self, part: Rule, leaves: Arrays) -> Arrays:
        """The leaves of a part, divided by `1 - decay ** count`, or after no batch as they are."""
        if not self.count:
            return leaves
        count = np.asarray(leaves[self.count])
        found = {path: np.asarray(leaves[path]) for path in part.paths}
        return {path: leaf / _scale(self.decay, count, leaf) for path, leaf in found.items()}

    def _filled(self, path: str, value: int) -> tuple[tuple[int, ...], int, str]:
        shape, dtype = self.shapes_of.get(path, ((), "int32"))
        return shape, value, dtype


def _scale(decay: float, count: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """What a leaf is divided by; the counts of a stack stand before the axes of its statistics."""
    count = count.reshape(count.shape + (1,) * (leaf.ndim - count.ndim))
    kept = np.power(np.asarray(decay, np.result_type(leaf.dtype, np.float32)), count)
    return np.where(count == 0, 1, 1 - kept).astype(leaf.dtype)
