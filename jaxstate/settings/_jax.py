"""Settings of a JAX layer: in torch's words, and how its library spells each.

Each library has its own defaults, so right weights give wrong outputs: an eps of 1e-6 in Flax and 1e-5 in
torch, a padding that is "SAME" here and 0 there. What only one side knows is left out.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from jaxstate.settings import _equinox, _flax, _haiku


@dataclass(frozen=True)
class Settings:
    """What a layer was constructed with, beside its weights.

    Attributes:
        kind: the name of its class.
        values: by torch's words.
        arguments: how the layer's library spells an argument, of its value in torch.
    """

    kind: str
    values: Mapping[str, Any]
    arguments: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)

    def spelled(self, setting: str, value: Any) -> str:
        """The call of the layer that has torch's value."""
        if setting == "computes in" and value is None:
            return f"{self.kind}(..., dtype=None)"
        words = self.arguments.get(setting, lambda v: f"{setting}={v}")(value)
        return f"{self.kind}(..., {words})"


def settings_of(module: Any) -> Settings:
    """What a module of NNX, Linen, Equinox or Haiku is set to; nothing of what is set in an unknown way.

    >>> from flax import nnx
    >>> found = settings_of(nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
    >>> found.values, found.spelled("eps", 1e-5)
    ({'eps': 1e-06}, 'LayerNorm(..., epsilon=1e-05)')
    """
    library = next((file for file in (_equinox, _haiku) if file.recognises(module)), _flax)
    values: dict[str, Any] = {}
    with suppress(AttributeError, TypeError, ValueError):  # a user's own class, or a function for a number
        values = library.settings(module)
    return Settings(type(module).__name__, values, library.ARGUMENTS)
