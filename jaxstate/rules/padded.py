"""Padded: the rule of an array that is longer on one side, as a vocabulary rounded up to a good size.

What both sides have goes over as its Rule says. The padding has no counterpart, so it is declared: what
stands there, and whether anything else may be left out. Nothing is cut or made up that was not said.
"""

import cmath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.arrays.hosted import readable
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import BindingError
from jaxstate.rules.axes import array_dims, lengths_of, resized
from jaxstate.rules.declared import same_bits
from jaxstate.rules.joint import Joint
from jaxstate.rules.rule import Arrays, Entry, Rename, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Padded(Entry):
    """Bind arrays of which one side has more along an axis: the leaf, or torch's. The padding comes last.

    An optimizer's state of the padding is what it was before the first step, and on the way to torch must be.

    Args:
        rule: of what both sides have.
        axis: along which one is longer; it stands in the arrays of both, alone or in brackets.
        length: torch's, of that axis. JAX's is the leaf's.
        value: what stands in the padding; None for what the side that has it holds: the model's own values
            stay as they are when a file is loaded, the file's when it is written (`Binding.like`). The
            array's dtype must hold it: a float's up to rounding, which changes it by half of it at most (so
            0.1 in float32, but in float16 neither 1e9, an infinity there, nor 1e-9, a zero), an integer's and
            a bool's to the last digit. nan and inf are values of the floats that have them.
        drop: True if it may hold anything else, which is then left out on the way to the other side.
        here: JAX's length, where known; `of` fills it in.
        kept: the padding of a file, by key; `own` that of the model, by path.

    Raises:
        BindingError: an axis that the arrays do not have, a length that is none; from `of` and the two ways
            across, a value that the array's dtype does not hold.

    >>> rule = Padded(Rule("wte.weight", "wte.embedding", "v d -> v d"), "v", 3)
    >>> rule = rule.of({"wte.embedding": np.zeros((4, 2), "float32")})
    >>> rule.leaves({"wte.weight": np.ones((3, 2), "float32")})["wte.embedding"].T
    array([[1., 1., 1., 0.],
           [1., 1., 1., 0.]], dtype=float32)
    >>> rule.state_dict({"wte.embedding": np.zeros((4, 2))})["wte.weight"].shape
    (3, 2)
    """

    rule: Rule
    axis: str
    length: int
    value: float | None = 0.0
    drop: bool = False
    here: int | None = None
    kept: Arrays = field(default_factory=dict)
    own: Arrays = field(default_factory=dict)

    def __post_init__(self):
        for in_torch in (False, True):
            if not any(self.axis in dim for dim in array_dims(self.rule, in_torch)):
                raise BindingError(f'{self.rule!r} has no axis "{self.axis}" in the arrays of both sides')
        if isinstance(self.length, bool) or not hasattr(self.length, "__index__") or self.length < 0:
            raise BindingError(f"{self!r}: torch's length of {self.axis} is a number, not {self.length!r}")
        if self.value is not None and not isinstance(self.value, int | float | np.number):
            raise BindingError(
                f"{self!r}: what stands in a padding is one number, or None, not {self.value!r}"
            )

    def __repr__(self) -> str:
        changed = {"value": self.value} if self.value != 0.0 else {}
        options = {**changed, "drop": True} if self.drop else changed
        extra = "".join(f", {name}={value!r}" for name, value in options.items())
        return f'Padded({resized(self.rule, self.axis, None)!r}, "{self.axis}", {self.length}{extra})'

    @property
    def keys(self) -> tuple[str, ...]:
        return self.rule.keys

    @property
    def paths(self) -> tuple[str, ...]:
        return self.rule.paths

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(self.keys, self._joint.shape) if self._in_torch else self.rule.shapes

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.rule.trainable

    @property
    def families(self) -> list[tuple[str, Mapping[str, Sequence[str | int]]]]:
        return self.rule.families

    @property
    def rows(self) -> list[tuple[str, ...]]:
        what = "its own" if self.value is None else self.value
        where = "here" if self.here is None else f"{self.here} here"
        said = f"{self.axis}: {where}, {self.length} in torch, padded with {what}"
        ((key, path, layout, _, dtype),) = self.rule.rows
        shape = "" if self.here is None else str(self._leaf_shape)
        return [(key, path, f"{layout}, {said}{' or anything' * self.drop}", shape, dtype)]

    def state_dict(self, leaves: Arrays) -> dict[str, Any]:
        if self.here is None:
            return self.of(leaves).state_dict(leaves)
        if not self._in_torch:
            return self.rule.state_dict({path: self._joint.split(leaves[path])[0] for path in self.paths})
        arrays = self.rule.state_dict(leaves)
        return {key: self._joint.join([x, self._there(key, x.dtype)]) for key, x in arrays.items()}

    def leaves(self, state_dict: Arrays) -> dict[str, Any]:
        if self._in_torch:
            return self.rule.leaves({key: self._joint.split(state_dict[key])[0] for key in self.keys})
        found = self.rule.leaves(state_dict)
        return {path: self._joint.join([x, self._here(path, x.dtype)]) for path, x in found.items()}

    def lazy_state_dict(self, leaves: Arrays) -> dict[str, LazyArray]:
        if not self._in_torch:
            return self.rule.lazy_state_dict({path: self._lazy_parts(leaves[path])[0] for path in self.paths})
        arrays = self.rule.lazy_state_dict(leaves)
        return {key: self._joint.lazy_join([x, self._there(key, x.dtype)]) for key, x in arrays.items()}

    def lazy_leaves(self, state_dict: Arrays) -> dict[str, LazyArray]:
        if self._in_torch:
            return self.rule.lazy_leaves({key: self._lazy_parts(state_dict[key])[0] for key in self.keys})
        found = self.rule.lazy_leaves(state_dict)
        return {path: self._joint.lazy_join([x, self._here(path, x.dtype)]) for path, x in found.items()}

    def of(self, leaves: Arrays) -> "Padded":
        whole = resized(self.rule, self.axis, None).of(leaves)
        here = lengths_of(whole)[self.axis]
        core = resized(whole, self.axis, min(here, self.length), whole.shape)
        core = core.of({path: jax.ShapeDtypeStruct(core.shape or (), whole.dtype) for path in core.paths})
        new = replace(self, rule=core, here=here, own={})
        if not new._in_torch:
            new._check_held(np.dtype(whole.dtype))
        return replace(new, own=new._own_padding(leaves)) if self.value is None else new

    def like(self, state_dict: Arrays) -> "Padded":
        if not self._in_torch:
            return self
        found = {key: self._lazy_parts(state_dict[key])[1] for key in self.keys if key in state_dict}
        kept = {key: np.array(x) for key, x in found.items() if not self._is_said(x)}
        return replace(self, kept=kept)

    def started(self, value: Any) -> "Padded":
        """This rule for an optimizer's arrays, or for gradients: with what those of a padding hold."""
        return replace(self, value=value, kept={}, own={})

    def refused_arrays(self, state_dict: Arrays) -> list[str]:
        return [f'the padding of "{key}", {self._otherwise}' for key in self.odd_arrays(state_dict)]

    def refused_leaves(self, leaves: Arrays) -> list[str]:
        lost = [key for key in self.keys if self._in_torch and self.value is None and key not in self.kept]
        return [
            *(_lost(key) for key in lost),
            *(f"the padding of leaf {path}, {self._otherwise}" for path in self.odd_leaves(leaves)),
        ]

    def odd_arrays(self, state_dict: Arrays) -> list[str]:
        """The keys of torch's arrays that hold something else in their padding than may be left out."""
        return [key for key in self.keys if key in state_dict and self._is_odd(True, state_dict[key])]

    def odd_leaves(self, leaves: Arrays) -> list[str]:
        """The paths of the leaves that do."""
        return [path for path in self.paths if self._is_odd(False, leaves[path])]

    def at(self, key: str, path: str) -> "Padded":
        return replace(self, rule=self.rule.at(key, path))

    def rekeyed(self, rename: Rename) -> "Padded":
        new = replace(self, rule=self.rule.rekeyed(rename))
        kept = {to: self.kept[key] for key, to in zip(self.keys, new.keys, strict=True) if key in self.kept}
        return replace(new, kept=kept)

    def stacked(self, key: str, path: str, axis: str, values: Sequence[str | int], position: int) -> "Padded":
        return replace(self, rule=self.rule.stacked(key, path, axis, values, position), here=None)

    @property
    def _in_torch(self) -> bool:
        """True if it is torch's array that is longer."""
        return self.length > self._known_length

    @property
    def _known_length(self) -> int:
        if self.here is None:
            raise BindingError(f"{self!r} does not know its shape: Binding.of(leaves) tells it")
        return self.here

    @cached_property
    def _joint(self) -> Joint:
        """What both sides have, and behind it the padding."""
        core, sizes = min(self.length, self._known_length), lengths_of(self.rule)
        padding = max(self.length, self._known_length) - core
        return Joint.along(self.axis, array_dims(self.rule, self._in_torch), sizes, (core, padding))

    @property
    def _leaf_shape(self) -> tuple[int, ...] | None:
        return self.rule.shape if self._in_torch else self._joint.shape

    @property
    def _otherwise(self) -> str:
        core, padding = self._joint.lengths
        remedy = f"if it may be left out, bind with {replace(self, drop=True)!r}"
        return f"{self.axis} {core}:{core + padding}, is not {self.value} everywhere; {remedy}"

    def _is_odd(self, in_torch: bool, array: Any) -> bool:
        free = self.drop or self.value is None or self._in_torch != in_torch
        return (
            not free
            and not isinstance(array, jax.ShapeDtypeStruct)
            and not self._is_said(self._lazy_parts(array)[1])
        )

    def _lazy_parts(self, array: Any) -> list[LazyArray]:
        return self._joint.lazy_split(readable(array))

    def _is_said(self, padding: LazyArray) -> bool:
        """True if every element is what was declared, to the bit, in a dtype that holds it."""
        if self.value is None or not _holds(padding.dtype, self.value):
            return False
        return same_bits(padding, np.full(padding.shape, self.value, padding.dtype))

    def _check_held(self, dtype: np.dtype) -> None:
        if self.value is not None and not _holds(dtype, self.value):
            raise BindingError(
                f"{self!r}: no {dtype} is {self.value!r}; say a value= that {dtype} holds, or value=None for "
                "what the side that has the padding holds"
            )

    def _filled(self, dtype: np.dtype) -> np.ndarray:
        """A padding of what was declared."""
        self._check_held(dtype)
        return np.full(self._joint.piece(1), self.value, dtype)

    def _there(self, key: str, dtype: Any) -> np.ndarray:
        """The padding of torch's array."""
        if key in self.kept:
            return self.kept[key].astype(dtype)
        if self.value is None:
            raise BindingError(_lost(key))
        return self._filled(np.dtype(dtype))

    def _here(self, path: str, dtype: Any) -> np.ndarray:
        """The padding of a leaf, in a dtype that holds it, and what the file holds besides."""
        wanted = np.dtype(self.rule.dtype or dtype)
        dtype = _common(np.dtype(dtype), wanted)
        if self.value is not None:
            return self._filled(wanted).astype(dtype)
        if path not in self.own:
            raise BindingError(
                f"the padding of leaf {path} is its own, and the model is abstract: say value="
            )
        return np.asarray(self.own[path]).astype(dtype)

    def _own_padding(self, leaves: Arrays) -> dict[str, Any]:
        """What the padding of these leaves holds, if they are not abstract."""
        real = {p: leaves[p] for p in self.paths if not isinstance(leaves[p], jax.ShapeDtypeStruct)}
        return {} if self._in_torch else {path: self._joint.split(leaf)[1] for path, leaf in real.items()}


def _holds(dtype: np.dtype, value: Any) -> bool:
    """True if the dtype has this value: a float's up to rounding, any other's to the last digit.

    >>> _holds(np.dtype("float16"), 0.1), _holds(np.dtype("float16"), 1e9), _holds(np.dtype("int8"), 0.5)
    (True, False, False)
    """
    if isinstance(value, np.complexfloating):
        return np.issubdtype(dtype, np.complexfloating) and _rounds(dtype, value)
    if jnp.issubdtype(dtype, np.inexact):
        return _rounds(dtype, value)
    least, most = (0, 1) if dtype.kind == "b" else (int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max))
    with np.errstate(invalid="ignore"):  # an infinity leaves no remainder that is a number
        return bool(value % 1 == 0) and least <= value <= most


def _rounds(dtype: np.dtype, value: Any) -> bool:
    """True if rounding changes a value by half of it at most; it makes an infinity of none, and no zero."""
    try:
        with np.errstate(all="ignore"):
            value, found = complex(value), complex(np.full((), value, dtype).astype(np.complex128))
    except (OverflowError, TypeError):  # of an int that no float is; or none of 64 bits, for ml_dtypes
        return False
    if cmath.isnan(value):
        return cmath.isnan(found)
    return found == value or 2 * abs(found - value) <= abs(value) < inf


def _common(one: np.dtype, other: np.dtype) -> np.dtype:
    """A dtype that holds both: one of them, or of two formats of 16 bits the one of 32."""
    if np.can_cast(one, other, "safe"):
        return other
    return one if np.can_cast(other, one, "safe") else np.dtype(np.float32)


def _lost(key: str) -> str:
    return f'what stands in the padding of "{key}" is a file\'s: bind with like=state_dict'
