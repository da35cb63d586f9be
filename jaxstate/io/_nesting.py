"""Nested objects as flat ones and back, as `torch.distributed.checkpoint` does both.

A dict is taken apart, and a list that holds a tensor, a dict or such a list; all else is one value. The flat
name joins the steps with dots, and the path keeps them apart. torch spells every key of a dict as text and
forgets an empty dict (`torch/distributed/checkpoint/_traverse.py`); where what it loses cannot be had back
from the rest, we refuse to write it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxstate.errors import FileError

from ._arrays import leaf
from ._walk import MAX_DEPTH, linked, spell, walk

Path = tuple[Any, ...]
"""Keys of dicts, as text, and indices of lists."""

EMPTY: dict = {}
"""The last step of a path that leads to an empty dict. torch passes over paths of names that it has not."""


def flat(obj: object) -> Iterator[tuple[Path, object]]:
    """The values of a nested object with their paths; EMPTY behind that of an empty dict.

    Raises:
        FileError: not a dict, or dicts with keys that would come back as others.

    >>> list(flat({"a": {"b.c": 1, "d": [2, 3]}, "e": [{"f": 4}]}))
    [(('a', 'b.c'), 1), (('a', 'd'), [2, 3]), (('e', 0, 'f'), 4)]
    """
    if not isinstance(obj, dict):
        raise FileError(f"a folder of this format holds a dict, not a {type(obj).__name__}")
    for _ in walk(obj):
        pass
    yield from _flat(obj, ())


def _flat(node: object, path: Path, ids: Mapping[str, int] | None = None) -> Iterator[tuple[Path, object]]:
    """The same below a path; `ids` are the whole numbers that keys of this node come back as."""
    if isinstance(node, dict):
        _check_keys(node, path, ids)
        if path and not node:
            yield (*path, EMPTY), node
        for key, value in node.items():
            yield from _flat(value, (*path, str(key)), _ids(node) if key == "state" else None)
    elif _is_taken_apart(node):
        for index, value in enumerate(node):  # pyright: ignore[reportArgumentType]
            yield from _flat(value, (*path, index))
    else:
        yield path, node


def _is_taken_apart(node: object) -> bool:
    return isinstance(node, list) and any(
        isinstance(item, dict) or _is_taken_apart(item) or _is_array(item) for item in node
    )


def _is_array(value: object) -> bool:
    try:
        return leaf(value) is not None
    except FileError:
        return True


def _check_keys(node: dict, path: Path, ids: Mapping[str, int] | None) -> None:
    back = _keys(node, ids or {})
    for key, found in zip(node, back, strict=True):
        if type(key) is not type(found) or key != found:
            raise FileError(
                f"{spell(linked(path))} has the key {str(key)[:80]!r} of type {type(key).__name__}, which "
                f"this format gives back as {found!r}. Where it is the state of an optimizer, go by names: "
                'jaxstate.optim.state_dict(..., keys="fqn")'
            )


def _keys(node: Iterable[object], ids: Mapping[str, int]) -> list[str] | list[int]:
    """The keys of a dict as they come back: as ids, where all are, or as text."""
    texts = [str(key) for key in node]
    return [ids[text] for text in texts] if all(text in ids for text in texts) else texts


class _Branch(dict):
    """A dict or list in the making, as against one that is a value."""

    __slots__ = ()


def nested(entries: Mapping[str, object], paths: Mapping[str, Path] | None) -> dict:
    """The object that flat entries were, in the order of their paths.

    Raises:
        FileError: an entry without a path; paths that lead through values, or to lists with gaps.

    >>> nested({"a.b": 1, "c.0": 2, "c.1": 3}, {"c.0": ("c", 0), "a.b": ("a", "b"), "c.1": ("c", 1)})
    {'c': [2, 3], 'a': {'b': 1}}
    """
    if paths is None:
        return dict(entries)
    if lost := [name for name in entries if name not in paths]:
        raise FileError(f'entry "{lost[0][:200]}" has no path in planner_data')
    root = _Branch()
    for name, path in paths.items():
        if name in entries:
            _put(root, path, entries[name])
        elif path and type(path[-1]) is dict and not path[-1]:
            _put(root, path[:-1], _Branch())
    made = _made(root, ())
    if type(made) is not dict:
        raise FileError("the paths in planner_data make a list, where a dict is due")
    return made


def _put(root: _Branch, path: Path, value: object) -> None:
    proper = all(type(step) is str or (type(step) is int and step >= 0) for step in path)
    if not (proper and 0 < len(path) <= MAX_DEPTH):
        raise FileError("a path in planner_data is empty, too long, or of other steps than names and indices")
    node = root
    for step in path[:-1]:
        node = node.setdefault(step, _Branch())
        if type(node) is not _Branch:
            raise FileError(f"a path in planner_data leads through the value at {_shown(path)}")
    if path[-1] in node:
        raise FileError(f"two paths in planner_data lead to {_shown(path)}")
    node[path[-1]] = value


def _shown(path: Path) -> str:
    return spell(linked(path), "obj")[:200]


def _made(node: _Branch, path: Path) -> dict | list:
    kinds = {type(step) for step in node}
    if len(kinds) > 1:
        raise FileError(f"{_shown(path)} has both names and indices in planner_data")
    filled = {step: _filled(value, (*path, step)) for step, value in node.items()}
    return _list(filled, path) if kinds == {int} else _with_ids(filled)


def _filled(value: object, path: Path) -> object:
    return _made(value, path) if type(value) is _Branch else value


def _list(items: Mapping[Any, object], path: Path) -> list:
    gaps = [index for index in range(len(items)) if index not in items]
    if gaps:
        raise FileError(f"{_shown(path)} lacks item {gaps[0]}: torch does not write empty dicts in a list")
    return [items[index] for index in range(len(items))]


# An optimizer's ids. They are whole numbers, and those of its groups were not made text.


def _with_ids(node: dict) -> dict:
    ids, state = _ids(node), node.get("state")
    if ids is None or not isinstance(state, dict):
        return node
    return {**node, "state": dict(zip(_keys(state, ids), state.values(), strict=True))}


def _ids(node: Mapping[Any, object]) -> Mapping[str, int] | None:
    """The ids in `param_groups` by their text, if this is an optimizer's state_dict that goes by ids.

    >>> _ids({"state": {}, "param_groups": [{"params": [0, 1]}]})
    {'0': 0, '1': 1}
    """
    groups = node.get("param_groups")
    if "state" not in node or not isinstance(groups, list):
        return None
    lists = [group.get("params") if isinstance(group, dict) else None for group in groups]
    if not all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in lists):
        return None
    return {str(i): i for i in _joined(lists)}


def _joined(lists: Iterable[Any]) -> Iterator[int]:
    for ids in lists:
        yield from ids
