"""Algorithm: all that distinguishes one torch optimizer from another, as a value.

The machinery around it (groups, ids, states, files) asks nothing else, and knows no optimizer by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

Options = Mapping[str, Any]


def like_parameter(buffer: str, p: Any) -> jax.ShapeDtypeStruct | None:
    """A buffer of the parameter's shape and dtype."""
    return jax.ShapeDtypeStruct(p.shape, p.dtype)


def zero(buffer: str, options: Options) -> Any:
    """A buffer that starts at zero."""
    return 0


def none(state: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """The coefficients of a recursion that needs none."""
    return {}


def as_float32(step: int) -> np.ndarray:
    """A step as most optimizers write it, where adding one to 2**24 changes nothing."""
    return np.array(min(step, 2**24), np.float32)


@dataclass(frozen=True)
class Algorithm:
    """One optimizer of `torch.optim`.

    Args:
        name: the class in `torch.optim`.
        defaults: the keys of a param_group with torch's defaults, in torch's order. A key whose default
            is a number, or a tuple of them, is a hyper-parameter and travels as array leaves, unless it
            is a flag.
        flags: the keys that choose another recursion, or other shapes. They are static, and a file must
            agree with them.
        recursion: `(p, g, state of p, group) -> (update to add to p, new state of p)`, where the state of one
            parameter is torch's entry for it: `{"step": ..., "exp_avg": ..., ...}`, and the coefficients.
        buffers: the names of the arrays that torch keeps for a parameter, in order, given its group.
        check: raises torch's ValueErrors for options that torch's constructor refuses.
        filled: what torch fills in where a checkpoint of an older version lacks a key.
        counts: True if torch writes `step`; otherwise a step above 0 says that the buffers are filled.
        step: how torch writes it.
        eager: True if torch makes the entry of a parameter in the constructor; else at its first gradient.
        like: the shape and dtype of a buffer, given its name and the parameter (of which only these two are
            read); None where torch keeps none for this parameter.
        own: the buffers that are not shaped like their parameter. No Layout moves them.
        coefficients: `(state, group) -> {name: (n,)}`, what a step needs besides arrays, of n parameters at
            once: of their `step`, int32 (n,), which this step has counted, and of buffers of one number.
        start: what a buffer is full of before the first step, given its name and the constructor's options
            (a group has no say in torch); a complex one has it in both parts. What torch sets at the first
            step from an option that may have changed by then, the recursion sets where `step` is 0.
        complex: True if a complex parameter is to it a pair of real ones, each on its own.
        implied: the options that the name of the constructor says.
        constructor: the function of this package that makes it with these options.
        optax: the fields of the optax state with the same arithmetic, and the buffers that they are, given
            the options of a group. Raises OptimizerError if there is none.
        leaves: what the recursion takes. "model": the model's leaves, as it is the same in any layout.
            "torch": torch's own arrays, by torch's names. "bound": those too, made of the model's leaves
            by a Binding.
        sparse: True if gradients are sparse, and only what they specify is updated.
    """

    name: str
    defaults: tuple[tuple[str, Any], ...]
    flags: tuple[str, ...]
    recursion: Callable[[Any, Any, dict[str, Any], Any], tuple[Any, dict[str, Any]]]
    buffers: Callable[[Options], tuple[str, ...]]
    check: Callable[[Options], None]
    filled: tuple[tuple[str, Any], ...]
    counts: bool
    constructor: Callable[[Options], str]
    optax: Callable[[Options], tuple[tuple[str, str], ...]]
    step: Callable[[int], Any] = as_float32
    eager: bool = False
    like: Callable[[str, Any], jax.ShapeDtypeStruct | None] = like_parameter
    own: tuple[str, ...] = ()
    coefficients: Callable[[Mapping[str, Any], Any], dict[str, Any]] = none
    start: Callable[[str, Options], Any] = zero
    complex: bool = False
    implied: tuple[str, ...] = ()
    leaves: Literal["model", "torch", "bound"] = "model"
    sparse: bool = False

    def asks_for(self, options: Options) -> tuple[str, ...]:
        """The buffers that these options need and a group of the defaults might lack."""
        always = self.buffers(dict(self.defaults))
        return tuple(name for name in self.buffers(options) if name not in always)

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The keys whose values are numbers, and choose no recursion."""
        return tuple(key for key, value in self.defaults if is_numeric(value) and key not in self.flags)

    def call(self, options: Options) -> str:
        """The constructor call that makes these options; what is no number and at its default is left out."""
        chosen = [key for key, value in self.defaults if options.get(key, value) != value]
        shown = [key for key in options if key in self.hyperparameters or key in chosen]
        given = [f"{key}={options[key]!r}" for key in shown if key not in self.implied]
        return f"js.optim.{self.constructor(options)}({', '.join(given)})"


def is_numeric(value: Any) -> bool:
    """True for a number and for a tuple or list that holds one; a bool is none.

    >>> [is_numeric(value) for value in (0, 1e-8, (0.9, 0.999), True, None, "adam")]
    [True, True, True, False, False, False]
    """
    if isinstance(value, (tuple, list)):
        return any(is_numeric(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
