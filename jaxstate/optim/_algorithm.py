"""Algorithm: all that distinguishes one torch optimizer from another, as a value.

The machinery around it (groups, ids, states, files) asks nothing else, and knows no optimizer by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Options = Mapping[str, Any]


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
            parameter is torch's entry for it: `{"step": ..., "exp_avg": ..., ...}`.
        buffers: the names of the arrays that torch keeps for a parameter, in order, given its group.
        check: raises torch's ValueErrors for options that torch's constructor refuses.
        filled: what torch fills in where a checkpoint of an older version lacks a key.
        counts: True if torch writes `step`; otherwise a step above 0 says that the buffers are filled.
        constructor: the function of this package that makes it with these options.
        optax: the fields of the optax state with the same arithmetic, and the buffers that they are, given
            the options of a group. Raises OptimizerError if there is none.
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

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The keys whose values are numbers that may change."""
        return tuple(k for k, value in self.defaults if is_numeric(value) and k not in self.flags)

    def call(self, options: Options) -> str:
        """The constructor call that makes these options; what is no number and at its default is left out."""
        chosen = [key for key, value in self.defaults if options.get(key, value) != value]
        shown = [key for key in options if key in self.hyperparameters or key in chosen]
        given = [f"{key}={options[key]!r}" for key in shown if key != "decoupled_weight_decay"]
        return f"js.optim.{self.constructor(options)}({', '.join(given)})"


def is_numeric(value: Any) -> bool:
    """True for a number and for a tuple or list that holds one; a bool is none.

    >>> [is_numeric(value) for value in (0, 1e-8, (0.9, 0.999), True, None, "adam")]
    [True, True, True, False, False, False]
    """
    if isinstance(value, (tuple, list)):
        return any(is_numeric(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
