"""What a caller may say to `bind` where a model alone does not tell."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxstate.errors import BindingError
from jaxstate.rules.given import given_rules


@dataclass(frozen=True)
class Options:
    """How to read a model; the arguments of `jaxstate.bind`, by the same names."""

    inputs: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    rules: Sequence[Any] = ()
    layers: Mapping[type, Callable[[Any], Sequence[Any]]] = field(default_factory=dict)
    attention: str | None = None
    multilayer: Sequence[str] = ()
    stacked: Mapping[str, int] = field(default_factory=dict)
    as_is: Sequence[str] = ()
    flatten: Mapping[str, tuple[int, ...] | None] | None = None

    def __post_init__(self):
        if self.attention not in (None, "packed", "separate"):
            raise BindingError(f'attention="{self.attention}": say "packed", "separate" or nothing')
        object.__setattr__(self, "rules", given_rules(self.rules, "bind"))

    def rules_of(self, module: Any) -> Sequence[Any] | None:
        """The rules that the caller has for a module's class, else those that the class has itself.

        A library's wrapper around methods is passed by: Haiku's runs them inside a transform only.

        Raises:
            BindingError: what they return is no list of rules.
        """
        given = next((make for known, make in self.layers.items() if isinstance(module, known)), None)
        if given is not None:
            return given_rules(given(module), f"layers={{{type(module).__name__}: ...}}")
        own = getattr(type(module), "torch_rules", None)
        if own is None:
            return None
        return given_rules(inspect.unwrap(own)(module), f"{type(module).__name__}.torch_rules")

    @property
    def packed(self) -> bool | None:
        """Whether attention is read as torch's packed module; None if the shapes decide."""
        return {None: None, "packed": True, "separate": False}[self.attention]
