"""Comparison: what a state_dict has and lacks beside a Binding, and raises nothing unless asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from jaxstate.errors import Mismatch, StateDictError, size_mismatch
from jaxstate.table import html_table

COLUMNS = ("key", "what", "in the file", "in the model")


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
    hints: tuple[str, ...] = ()  # what may be said to a Binding of what does not fit

    def __bool__(self) -> bool:
        return not (self.missing_keys or self.unexpected_keys or self.mismatched or self.problems)

    def error(self, name: str = "the model") -> StateDictError:
        """The one error that says all of it."""
        sizes = [size_mismatch(*mismatch) for mismatch in self.mismatched]
        problems = [*sizes, *self.problems, *self.hints]
        return StateDictError(name, self.missing_keys, self.unexpected_keys, problems)

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """A line for each key that does not fit, or was left alone."""
        return list(self._rows())

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield from ((key, "missing", "", "there") for key in self.missing_keys)
        yield from ((key, "unexpected", "there", "") for key in self.unexpected_keys)
        yield from ((m.key, "size mismatch", str(m.found), str(m.expected)) for m in self.mismatched)
        yield from ((key, "left alone", "", "there") for key in self.untouched_keys)
        yield from ((key, "left alone", "there", "") for key in self.ignored_keys)

    def _repr_html_(self) -> str:
        said = (
            ["&lt;All keys matched successfully&gt;"] if self else map(escape, [*self.problems, *self.hints])
        )
        rows = html_table(COLUMNS, self.rows) if self.rows else ""
        return "".join(f"<p>{line}</p>" for line in said) + rows

    def __str__(self) -> str:
        return "<All keys matched successfully>" if self else str(self.error())
