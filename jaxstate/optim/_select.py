"""Selection: which parameters go into which group, said by torch's names.

torch takes lists of tensors; here a group says `"params": "*.bias"`, several such patterns, or a predicate
of the name. Each parameter must be chosen by exactly one group.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxstate.binding import Binding, matches
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._parameters import Parameters

Selector = str | Sequence[str] | Callable[[str], bool]


def select(
    paths: Sequence[str], selectors: Sequence[Selector], binding: Binding | None = None
) -> list[tuple[str, ...]]:
    """The paths that each selector chooses, in the order given.

    Args:
        paths: dotted paths of the parameters.
        selectors: shell patterns in which `*` crosses dots, or predicates.
        binding: if given, selectors see torch's keys; otherwise paths.

    Raises:
        OptimizerError: parameters that no selector or more than one chooses, a pattern that chooses none,
            keys of one leaf in different groups.

    >>> select(["fc.bias", "fc.kernel"], ["*.bias", lambda name: name.endswith("kernel")])
    [('fc.bias',), ('fc.kernel',)]
    """
    selectors, names = [checked_selector(selector) for selector in selectors], _names(paths, binding)
    every = list(dict.fromkeys(name for row in names.values() for name in row))
    chosen = {name: [i for i, s in enumerate(selectors) if _chooses(s, name)] for name in every}
    problems = [*_not_once(chosen), *_torn(names, chosen), *_idle(selectors, every)]
    if problems:
        raise OptimizerError("param_groups do not divide the parameters:\n\t" + "\n\t".join(problems))
    group = {path: chosen[row[0]][0] for path, row in names.items()}
    return [tuple(path for path in paths if group[path] == i) for i in range(len(selectors))]


def selected(paths: Sequence[str], selector: Selector, binding: Binding | None = None) -> tuple[str, ...]:
    """The paths that one selector chooses, in the order given.

    Raises:
        OptimizerError: a pattern that chooses none, a leaf of which it chooses a part of the keys.

    >>> selected(["fc.bias", "fc.kernel"], "*.bias")
    ('fc.bias',)
    """
    selector, names = checked_selector(selector), _names(paths, binding)
    every = list(dict.fromkeys(name for row in names.values() for name in row))
    chosen = {name: [int(_chooses(selector, name))] for name in every}
    if problems := [*_torn(names, chosen), *_idle([selector], every)]:
        raise OptimizerError("params of the group:\n\t" + "\n\t".join(problems))
    return tuple(path for path, row in names.items() if chosen[row[0]] == [1])


def checked_selector(selector: Any) -> Selector:
    """The selector, with its patterns in a tuple, of whatever they come.

    Raises:
        OptimizerError: what is no name and no predicate; a set, in torch's words.

    >>> checked_selector(name for name in ("*.bias", "*.scale"))
    ('*.bias', '*.scale')
    """
    if isinstance(selector, set | frozenset):
        raise OptimizerError(
            "optimizer parameters need to be organized in ordered collections, but the ordering of "
            "tensors in sets will change between runs. Please use a list instead."
        )
    given: Any = selector
    if isinstance(selector, str) or callable(selector):
        return given
    patterns = tuple(selector) if isinstance(selector, Iterable) else (selector,)
    if isinstance(selector, Mapping) or not all(isinstance(pattern, str) for pattern in patterns):
        raise OptimizerError(
            'parameters are chosen by a pattern of names, such as "*.bias", a list of patterns, or a '
            f"predicate of a name, not by {selector!r}"
        )
    return patterns


def _names(paths: Sequence[str], binding: Binding | None) -> dict[str, tuple[str, ...]]:
    """What selectors call each path; a leaf that torch has no key for goes by its path."""
    if binding is None:
        return {path: (path,) for path in paths}
    keys_of = Parameters.of(binding, paths).keys_of
    return {path: keys_of[path] or (path,) for path in paths}


def _chooses(selector: Any, name: str) -> bool:
    if callable(selector):
        return bool(selector(name))
    return matches(name, _patterns(selector))


def _patterns(selector: Any) -> list[str]:
    return [selector] if isinstance(selector, str) else list(selector)


def _not_once(chosen: Mapping[str, Sequence[int]]) -> list[str]:
    none = [name for name, groups in chosen.items() if not groups]
    twice = {name: groups for name, groups in chosen.items() if len(groups) > 1}
    return [
        *([f"no group chooses {quoted(none)}"] if none else []),
        *(["some parameters appear in more than one parameter group"] if twice else []),
        *(f'groups {", ".join(map(str, groups))} all choose "{name}"' for name, groups in twice.items()),
    ]


def _torn(names: Mapping[str, Sequence[str]], chosen: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        f"{quoted(row)} are one leaf, {path}, and fall into different groups"
        for path, row in names.items()
        if len({tuple(chosen[name]) for name in row}) > 1
    ]


def _idle(selectors: Sequence[Selector], names: Sequence[str]) -> list[str]:
    return [
        f'"{pattern}" of group {i} matches none of {quoted(names[:20])}'
        for i, selector in enumerate(selectors)
        if not callable(selector)
        for pattern in _patterns(selector)
        if not any(matches(name, [pattern]) for name in names)
    ]
