"""Names with axes in them: `"h.{l}.fc.weight"` stands for one name for each value of `l`.

torch's keys and pytree paths are plain dotted strings; a hole `{axis}` turns one into a family of names.
Values run as indices do, the last hole fastest.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from string import Formatter

from jaxstate.errors import BindingError

Values = Mapping[str, Sequence[str | int]]


def holes(template: str) -> tuple[str, ...]:
    """The axes of a template, in order.

    >>> holes("enc.{l}.{qkv}.kernel")
    ('l', 'qkv')

    Raises:
        BindingError: braces that hold no axis name, or the same axis twice.
    """
    return _holes(template) if "{" in template or "}" in template else ()


@cache
def _holes(template: str) -> tuple[str, ...]:
    try:
        found = [name for _, name, *rest in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise BindingError(f'"{template}" is no template: {error}') from None
    if len(set(found)) < len(found) or not all(name.isidentifier() for name in found):
        raise BindingError(f'"{template}" is no template: each {{axis}} is a name of its own')
    return tuple(found)


def names(template: str, values: Values) -> list[str]:
    """Every name that a template stands for.

    >>> names("{l}.{p}", {"l": range(2), "p": ("w", "b")})
    ['0.w', '0.b', '1.w', '1.b']
    """
    if not (axes := holes(template)):
        return [template]
    rows = product(*(values[axis] for axis in axes))
    return [fill(template, dict(zip(axes, row, strict=True))) for row in rows]


def fill(template: str, values: Mapping[str, str | int]) -> str:
    """A template with some of its holes filled; the others stay.

    >>> fill("{l}.{p}", {"l": 3})
    '3.{p}'
    """
    for axis, value in values.items():
        template = template.replace(f"{{{axis}}}", str(value))
    return template


def registration_order(families: Sequence[tuple[str, Values]]) -> Iterator[str]:
    """The names of several families as torch registers them: module by module, not family by family.

    Neighbours that run over the same axis below the same prefix are the parameters of one stack of
    modules, so their names come layer by layer.

    >>> layers = {"l": range(2)}
    >>> list(registration_order([("h.{l}.w", layers), ("h.{l}.b", layers), ("head.w", {})]))
    ['h.0.w', 'h.0.b', 'h.1.w', 'h.1.b', 'head.w']
    """
    start = 0
    while start < len(families):
        template, values = families[start]
        if not holes(template):
            yield template
            start += 1
            continue
        stop = start + 1
        while stop < len(families) and _opening(*families[stop]) == _opening(template, values):
            stop += 1
        axis = holes(template)[0]
        for value in values[axis]:
            yield from registration_order([(fill(t, {axis: value}), v) for t, v in families[start:stop]])
        start = stop


def _opening(template: str, values: Values) -> tuple[str, tuple[str | int, ...]] | None:
    axes = holes(template)
    return (template[: template.index("{")], tuple(values[axes[0]])) if axes else None
