"""Renaming: the names that a model gives its entries, and those that a file has for them.

A pattern stands for a module, or an entry, and everything below it. `{i}` in it is any one name, or a part
of one, and stands in the new name again: `{"layers_{i}": "encoder.layer.{i}"}`. Of several patterns that
fit, the most specific is taken: the one with the most names, then with the most letters.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from jaxstate.errors import BindingError, quoted
from jaxstate.template import Values, holes, names


@dataclass(frozen=True)
class Renaming:
    """A function of torch keys, said in patterns.

    Args:
        patterns: for a model's name the file's. "" is the root: `{"": "model"}` puts a prefix before
            everything, and `{"model": ""}` takes one away.

    Raises:
        BindingError: a hole that stands on one side only.

    >>> rename = Renaming({"layers_{i}": "encoder.layer.{i}", "layers_{i}.fc": "encoder.layer.{i}.dense"})
    >>> rename("layers_3.norm.weight"), rename("layers_3.fc.weight"), rename("head.bias")
    ('encoder.layer.3.norm.weight', 'encoder.layer.3.dense.weight', 'head.bias')
    """

    patterns: Mapping[str, str]

    def __post_init__(self):
        odd = [f'"{old}": "{new}"' for old, new in self.patterns.items() if set(holes(old)) ^ set(holes(new))]
        if odd:
            raise BindingError(f"rename: each {{hole}} stands on both sides, unlike in {', '.join(odd)}")

    def __call__(self, key: str) -> str:
        """The file's name of an entry, or of a family of entries whose holes are left as they are.

        Raises:
            BindingError: two patterns fit, equally specific, and say different things.
        """
        found = [(old, match) for old, regex in self._compiled if (match := regex.match(key))]
        best = [fit for fit in found if _rank(fit[0]) == max(_rank(old) for old, _ in found)]
        new = {self._filled(old, match, key) for old, match in best}
        if len(new) > 1:
            raise BindingError(f'rename: {quoted(old for old, _ in best)} fit "{key}" equally well')
        return new.pop() if new else key

    def family(self, template: str, values: Values) -> str:
        """The new template of a family of keys, such as the layers of a stack.

        Raises:
            BindingError: the members of the family get names that no template stands for.
        """
        new = self(template)
        if list(names(new, values)) != [self(key) for key in names(template, values)]:
            raise BindingError(
                f'rename: "{template}" is one leaf for all its layers, and gets names of several kinds: '
                f"{quoted(self(key) for key in names(template, values))}"
            )
        return new

    def check(self, keys: Iterable[str]) -> None:
        """Raise BindingError for patterns that fit none of these keys."""
        keys = list(keys)
        idle = [old for old, regex in self._compiled if not any(regex.match(key) for key in keys)]
        if idle:
            raise BindingError(
                f"rename: {quoted(idle)} fits no name of the model; it has {quoted(keys[:20])}"
            )

    @cached_property
    def _compiled(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(old, re.compile(_regex(old))) for old in self.patterns]

    def _filled(self, old: str, match: re.Match[str], key: str) -> str:
        new = self.patterns[old].format(**match.groupdict())
        rest = key[match.end() :].lstrip(".")
        return ".".join(part for part in (new, rest) if part)


def _regex(pattern: str) -> str:
    parts = [
        re.escape(text) + (f"(?P<{hole}>[^.]+)" if hole else "")
        for text, hole, *_ in Formatter().parse(pattern)
    ]
    return "".join(parts) + r"(?=\.|$)" if pattern else ""


def _rank(pattern: str) -> tuple[int, int]:
    letters = sum(len(text) for text, *_ in Formatter().parse(pattern))
    return (len(pattern.split(".")) if pattern else 0, letters)
