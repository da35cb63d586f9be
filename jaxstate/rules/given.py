"""Given rules: what a caller passes for rules is checked where it comes in; further on it would only fail."""

from collections.abc import Iterable
from typing import Any

from jaxstate.errors import BindingError
from jaxstate.rules.rule import Entry


def given_rules(rules: Any, where: str) -> tuple[Any, ...]:
    """The rules as a tuple.

    Args:
        rules: rules of any kind, in order.
        where: who has given them, for the message.

    Raises:
        BindingError: a rule that is not in a list, and what is no rule.

    >>> from jaxstate.rules.rule import Rule
    >>> given_rules([rule := Rule("w", "w", "a -> a")], "the caller")[0] is rule
    True
    """
    if isinstance(rules, Entry | str) or not isinstance(rules, Iterable):
        raise BindingError(f"{where}: rules come in a list, such as [Rule(...)], and this is {rules!r}")
    found = tuple(rules)
    if strange := [rule for rule in found if not isinstance(rule, Entry)]:
        raise BindingError(
            f'{where}: {strange[0]!r} is no rule; write Rule("torch.key", "path", "i o -> o i")'
        )
    return found
