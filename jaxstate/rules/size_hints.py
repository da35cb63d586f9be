"""Size hints: what a rule may say of an entry whose shape is not the model's, with the call to paste.

Nothing is concluded from sizes. Where one and the same axis differs in all that does not fit, it may be
padded on one side; where an array is joined of parts, it is told how long they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from jaxstate.errors import Mismatch
from jaxstate.rules.axes import array_dims, resized
from jaxstate.rules.declared import Tied
from jaxstate.rules.fused import Fused
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Rule


def size_hints(rules: Sequence[Any], mismatched: Sequence[Mismatch]) -> tuple[str, ...]:
    """Sentences about what does not fit, if there is anything to say.

    >>> rule = Rule("wte.weight", "wte.embedding", "v d -> v d", shape=(11, 4))
    >>> print(*size_hints([rule], [Mismatch("wte.weight", (16, 4), (11, 4))]))
    If the file is padded along v from 11 on, say so: rules=[Padded(Rule("wte.weight", "wte.embedding",
    "v d -> v d"), "v", 16)]
    """
    ties = {key: to for rule in rules if isinstance(rule, Tied) for key, to in rule.pairs}
    first = {ties.get(mismatch.key, mismatch.key): mismatch for mismatch in mismatched}
    pairs = [(rule, [first[key] for key in rule.keys if key in first]) for rule in rules]
    odd = [(rule, row[0]) for rule, row in pairs if row and rule.paths]
    joined = [line for rule, mismatch in odd if isinstance(rule, Fused) for line in _parts(rule, mismatch)]
    return (*joined, *_padding(odd))


def _padding(odd: Sequence[tuple[Any, Mismatch]]) -> Iterator[str]:
    """The Padded to bind with, if all differ in an axis of the same two lengths."""
    found = [_padded(rule, mismatch) for rule, mismatch in odd]
    lengths = {_lengths(mismatch) for _, mismatch in odd}
    if not found or None in found or len(lengths) > 1:
        return
    there, here = next(iter(lengths))
    side, start = "file" if there > here else "model", min(there, here)
    axes = ", ".join(sorted({rule.axis for rule in found if rule}))
    said = ", ".join(map(repr, found))
    yield f"If the {side} is padded along {axes} from {start} on, say so: rules=[{said}]"


def _padded(rule: Any, mismatch: Mismatch) -> Padded | None:
    inner = rule.rule if isinstance(rule, Padded) else rule
    if not isinstance(inner, Rule) or (at := _dimension(mismatch)) is None:
        return None
    ours, theirs = (array_dims(inner, in_torch) for in_torch in (False, True))
    axis, *others = theirs[at] or ("",)
    if others or not any(axis in dim for dim in ours):
        return None
    length = mismatch.found[at]
    same = isinstance(rule, Padded) and rule.axis == axis
    return replace(rule, length=length) if same else Padded(resized(inner, axis, None), axis, length)


def _dimension(mismatch: Mismatch) -> int | None:
    """The one dimension that differs."""
    _, found, expected = mismatch
    odd = [n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]]
    return odd[0] if len(found) == len(expected) and len(odd) == 1 else None


def _lengths(mismatch: Mismatch) -> tuple[int, int]:
    at = _dimension(mismatch)
    return (-1, -1) if at is None else (mismatch.found[at], mismatch.expected[at])


def _parts(rule: Fused, mismatch: Mismatch) -> Iterator[str]:
    if rule.in_torch:
        own = " + ".join(f"{part.path} {n}" for part, n in zip(rule.parts, rule.lengths, strict=True))
        yield f'The parts of "{mismatch.key}" are {own} = {sum(rule.lengths)} of axis {rule.axis}.'
