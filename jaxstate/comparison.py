"""Comparison: what a state_dict has and lacks beside a Binding, and raises nothing unless asked."""

from dataclasses import dataclass

from jaxstate.errors import Mismatch, StateDictError, padded_rows, size_mismatch


@dataclass(frozen=True)
class Comparison:
    """How a state_dict fits a Binding: torch's three lists, and what else does not fit.

    True if everything does. Printed, it reads as `load_state_dict` would have complained.

    >>> print(Comparison(missing_keys=("fc.bias",)))
    Error(s) in loading state_dict for the model:
        Missing key(s) in state_dict: "fc.bias".
    """

    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    problems: tuple[str, ...] = ()
    untouched_keys: tuple[str, ...] = ()  # the model's, outside the patterns asked for
    ignored_keys: tuple[str, ...] = ()  # the file's, outside the patterns asked for

    def __bool__(self) -> bool:
        return not (self.missing_keys or self.unexpected_keys or self.mismatched or self.problems)

    def error(self, name: str = "the model") -> StateDictError:
        """The one error that says all of it."""
        sizes = [size_mismatch(*mismatch) for mismatch in self.mismatched]
        rows = [line for mismatch in self.mismatched if (line := padded_rows(*mismatch))]
        return StateDictError(name, self.missing_keys, self.unexpected_keys, [*sizes, *self.problems, *rows])

    def __str__(self) -> str:
        return "<All keys matched successfully>" if self else str(self.error())
