"""ParamGroup: the parameters that share hyper-parameters, and torch's options for them.

Numbers are array leaves, so that another `lr` compiles nothing anew; only a weight decay that is 0 from the
start is none. All else is static and kept as it was given, in torch's order of keys: flags, `foreach`,
`initial_lr`, a `name`, whatever a file holds.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxstate.optim._algorithm import Algorithm
from jaxstate.optim._double import Double
from jaxstate.optim._zero import Zero

# Numbers that stand before a term of their own, which is left out where they are 0.
TERMS = ("weight_decay",)


class Verbatim(Mapping):
    """A frozen, ordered dict that tells 0, 0.0 and False apart, and so may steer a compilation cache.

    >>> Verbatim({"a": 0}) == Verbatim({"a": 0.0})
    False
    """

    def __init__(self, items: Mapping[str, Any]):
        self._items = copy.deepcopy(dict(items))

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verbatim) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return repr(self._items)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ParamGroup:
    """One group of an optimizer's state.

    Args:
        numbers: hyper-parameters, by torch's keys: a Double, a tuple of them, or Zero.
        options: all of torch's keys, in order; a number's place holds its Python type.
        paths: the leaves of this group, in leaf order.
        param_names: torch's names in the order of the ids, if the file that was loaded had them.
        injected: the numbers that the constructor was given as arrays, and puts in anew at every step.

    >>> import jaxstate.optim, jax.numpy as jnp
    >>> group = jaxstate.optim.sgd(lr=0.1, momentum=0.9).init({"w": jnp.ones(3)}).param_groups[0]
    >>> group.paths, group.to_torch()["lr"] == 0.1, group.changed(lr=0.05).to_torch()["lr"] == 0.05
    (('w',), True, True)
    >>> jax.tree.structure(group.changed(lr=0.05)) == jax.tree.structure(group)
    True
    """

    numbers: dict[str, Any]
    options: Verbatim = field(metadata={"static": True})
    paths: tuple[str, ...] = field(metadata={"static": True})
    param_names: tuple[str, ...] | None = field(default=None, metadata={"static": True})
    injected: tuple[str, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(
        cls,
        algorithm: Algorithm,
        options: Mapping[str, Any],
        paths: tuple[str, ...],
        dtype: Any = None,
        param_names: tuple[str, ...] | None = None,
    ) -> "ParamGroup":
        """The group with these options of torch's; numbers of a dtype, or of jax's widest."""
        numeric = {key: options[key] for key in algorithm.hyperparameters}
        kinds = {key: _kind(value) for key, value in numeric.items()}
        numbers = {
            key: Zero() if key in TERMS and _is_zero(value) else to_doubles(value, dtype)
            for key, value in numeric.items()
        }
        return cls(numbers, Verbatim({**options, **kinds}), paths, param_names)

    def __getitem__(self, key: str) -> Any:
        return self.numbers[key] if key in self.numbers else self.options[key]

    def to_torch(self) -> dict[str, Any]:
        """torch's options, in torch's order, with Python values of their own."""
        return {
            key: _from_doubles(kind, self.numbers[key]) if key in self.numbers else copy.deepcopy(kind)
            for key, kind in self.options.items()
        }

    def changed(self, **values: Any) -> "ParamGroup":
        """This group with other hyper-parameters, which may be traced. Leaves stay leaves, also at 0."""
        same = {key for key, x in values.items() if isinstance(self.numbers[key], Zero) and _is_zero(x)}
        numbers = {key: to_doubles(x, self.dtype) for key, x in values.items() if key not in same}
        return replace(self, numbers={**self.numbers, **numbers})

    def spelled_out(self) -> "ParamGroup":
        """This group with a leaf for every number, in the place of the others."""
        like = next(x for x in self.numbers.values() if isinstance(x, Double))
        zero = jax.tree.map(lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else 0 * x, like)
        return replace(self, numbers={k: zero if isinstance(x, Zero) else x for k, x in self.numbers.items()})

    def folded(self, like: "ParamGroup") -> "ParamGroup":
        """The inverse: without leaves for the zeros that another group has none for."""
        none = {key for key, x in like.numbers.items() if isinstance(x, Zero)}
        numbers = {key: Zero() if key in none and not _some(x) else x for key, x in self.numbers.items()}
        return replace(self, numbers=numbers)

    @property
    def dtype(self) -> Any:
        """The dtype of the numbers' parts."""
        return jax.tree.leaves(self.numbers)[0].dtype


def to_doubles(value: Any, dtype: Any = None) -> Any:
    """The Doubles of an option: one, or a tuple of them; None, in torch's `eps`, stays None."""
    if isinstance(value, (tuple, list)):
        return tuple(to_doubles(item, dtype) for item in value)
    return None if value is None else Double.of(value, dtype)


def _is_zero(value: Any) -> bool:
    """True for Python's numbers alone: an array may be another number in the next step."""
    return type(value) in (int, float) and value == 0


def _some(number: Any) -> bool:
    return any(np.any(np.asarray(part)) for part in jax.tree.leaves(number))


def _kind(value: Any) -> Any:
    """What an option is besides its value: int, float, a dtype for an array, a tuple or list of these."""
    if isinstance(value, (tuple, list)):
        return type(value)(_kind(item) for item in value)
    if isinstance(value, (np.ndarray, jax.Array)):
        return str(value.dtype)
    return int if isinstance(value, int) else float


def _from_doubles(kind: Any, doubles: Any) -> Any:
    if isinstance(kind, (tuple, list)):
        return type(kind)(_from_doubles(*pair) for pair in zip(kind, doubles, strict=True))
    if doubles is None:
        return None
    number = float(doubles)
    if isinstance(kind, str):
        return np.array(number, kind)
    return int(number) if kind is int and number.is_integer() else number
