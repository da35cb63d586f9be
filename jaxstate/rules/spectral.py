"""Spectral: the rule of a spectrally normalised weight.

Torch keeps both singular vectors, Flax one of them and the singular value. Both approach the largest value
of the weight by power iteration, and what one side does not store follows from the weight and `u`: `v` is
the normalised `W' u`, and `sigma` is `u' W v`. The sides agree once the iteration has converged, and not
before: Flax iterates in evaluation too, torch does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxstate.errors import BindingError
from jaxstate.rules.declared import kept_arrays, same_bits
from jaxstate.rules.rule import Arrays, Entry, Rename, Rule


@dataclass(frozen=True, eq=False)
class Spectral(Entry):
    """Bind a weight, its left singular vector, torch's right one and Flax's singular value.

    Args:
        weight: the rule of the weight; its last JAX axis is the one that `u` runs over.
        u: the rule of the left singular vector, `(1, o)` here and `(o,)` there.
        v: torch's key of the right singular vector.
        sigma: the path of the singular value, a scalar.
        kept: what a file held, by key.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
    """

    weight: Rule
    u: Rule
    v: str
    sigma: str
    kept: Arrays = field(default_factory=dict, repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.weight.keys, *self.u.keys, self.v)

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.weight.paths, *self.u.paths, self.sigma)

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.weight.keys

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        weight = self.weight.shapes[self.weight.key]
        size = int(np.prod(weight, dtype=int)) // weight[self._axis]
        return {**self.weight.shapes, **self.u.shapes, self.v: (size,)}

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        arrays = {**self.weight.state_dict(leaves), **self.u.state_dict(leaves)}
        if self.kept and all(same_bits(self.kept[key], array) for key, array in arrays.items()):
            return {**arrays, self.v: np.array(self.kept[self.v])}
        matrix, u = self._matrix(arrays), arrays[self.u.key]
        v = matrix.T @ u
        return {**arrays, self.v: v / np.maximum(np.sqrt((v * v).sum()), 1e-12).astype(v.dtype)}

    def lazy_state_dict(self, leaves: Arrays) -> dict[str, Any]:
        return {**super().lazy_state_dict(leaves), **self.weight.lazy_state_dict(leaves)}

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        sigma = state_dict[self.u.key] @ (self._matrix(state_dict) @ state_dict[self.v])
        return {**self.weight.leaves(state_dict), **self.u.leaves(state_dict), self.sigma: np.asarray(sigma)}

    def of(self, leaves: Arrays) -> "Spectral":
        return replace(self, weight=self.weight.of(leaves), u=self.u.of(leaves))

    def like(self, state_dict: Arrays) -> "Spectral":
        return replace(self, kept=kept_arrays(state_dict, self.keys))

    def at(self, key: str, path: str) -> "Spectral":
        weight, u = self.weight.at(key, path), self.u.at(key, path)
        return replace(self, weight=weight, u=u, v=key + self.v, sigma=path + self.sigma)

    def rekeyed(self, rename: Rename) -> "Spectral":
        new = replace(
            self, weight=self.weight.rekeyed(rename), u=self.u.rekeyed(rename), v=rename(self.v, {})
        )
        kept = {to: self.kept[key] for key, to in zip(self.keys, new.keys, strict=True) if key in self.kept}
        return replace(new, kept=kept)

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> Any:
        raise BindingError(f"a stack of spectrally normalised layers ({path}) has no rule: bind it unstacked")

    def trained(self) -> Rule:
        return self.weight

    @property
    def families(self) -> list[tuple[str, Mapping[str, Sequence[str | int]]]]:
        return [(key, {}) for key in self.keys]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return [*self.weight.rows, *self.u.rows, (self.v, self.sigma, "power iteration", "", "")]

    @property
    def _axis(self) -> int:
        """Where torch's weight has the axis that `u` runs over: behind the input axis if transposed."""
        return self.weight.layout.right.index(self.weight.layout.left[-1])

    def _matrix(self, arrays: Arrays) -> Any:
        weight = np.moveaxis(np.asarray(arrays[self.weight.key]), self._axis, 0)
        return weight.reshape(weight.shape[0], -1)
