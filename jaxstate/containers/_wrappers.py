"""Wrappers: the names that `DataParallel`, `torch.compile` or FSDP put into the keys of a state_dict.

A wrapper is a module between a module and its parent, so it is in the key of everything below: that, and
not the name alone, is the evidence for it. `module` may be a model's own word, so it counts at the root only.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxstate.errors import CheckpointError, quoted

ROOT_ONLY = ("module",)  # DataParallel, DistributedDataParallel, DeepSpeed
ANYWHERE = (
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_fpw_module",  # FSDP before torch 2.0
    "_checkpoint_wrapped_module",  # torch.distributed's activation checkpointing
    "_forward_module",  # Lightning Fabric, and Lightning's DeepSpeed
)
_MAX_DEPTH = 200

Segments = tuple[str, ...]


@dataclass(frozen=True)
class Wrappers:
    """Which modules were wrapped, and in what: all that is needed to put the wrappers back.

    Args:
        at: pairs (path of the module without wrappers, its wrappers from the outside inwards). The path of
            the root is "".
    """

    at: tuple[tuple[str, Segments], ...] = ()

    @property
    def prefix(self) -> str:
        """What stood before every key.

        >>> Wrappers((("", ("module", "_orig_mod")),)).prefix
        'module._orig_mod.'
        """
        return "".join(f"{name}." for name in dict(self.at).get("", ()))

    def __bool__(self) -> bool:
        return bool(self.at)


def unwrap(state_dict: Mapping[str, Any]) -> tuple[Mapping[str, Any], Wrappers]:
    """A state_dict with the keys of the bare model, and what was taken out of them; `wrap` is the inverse.

    The values are the same objects. `_metadata` is renamed too.

    Args:
        state_dict: any; one without wrappers is returned as it is.

    >>> sd, wrappers = unwrap({"module.0._orig_mod.weight": 1, "module.0._orig_mod.bias": 2, "module.1": 3})
    >>> sd, wrappers.prefix
    ({'0.weight': 1, '0.bias': 2, '1': 3}, 'module.')
    >>> list(wrap(sd, wrappers))
    ['module.0._orig_mod.weight', 'module.0._orig_mod.bias', 'module.1']
    """
    wrappers = wrappers_in(state_dict)
    if not wrappers:
        return state_dict, wrappers
    at = dict(wrappers.at)
    bare = {key: _bare(key, at) for key in state_dict}
    return _renamed(state_dict, bare, lambda metadata: _bare_metadata(metadata, at)), wrappers


def wrap(state_dict: Mapping[str, Any], wrappers: Wrappers) -> Mapping[str, Any]:
    """The keys that the wrapped model has: the inverse of `unwrap`.

    Args:
        state_dict: with the keys of the bare model.
        wrappers: as `unwrap` or a `Checkpoint` gives them.

    Raises:
        CheckpointError: wrapped modules of which the state_dict has nothing, all of them.

    >>> wrap({"fc.weight": 1}, Wrappers((("fc", ("_orig_mod",)),)))
    {'fc._orig_mod.weight': 1}
    """
    at = dict(wrappers.at)
    lacking = [path for path in at if not any(_is_below(key, path) for key in state_dict)]
    if lacking:
        raise CheckpointError(f"these modules were wrapped, and the state_dict has none: {quoted(lacking)}")
    wrapped = {key: _wrapped(key, at) for key in state_dict}
    return _renamed(state_dict, wrapped, lambda metadata: _wrapped_metadata(metadata, at))


def wrappers_in(names: Mapping[str, Any] | Sequence[str]) -> Wrappers:
    """The wrappers that names of parameters have in them.

    >>> wrappers_in(["module.fc.weight", "module.fc.bias"]).at
    (('', ('module',)),)
    >>> wrappers_in(["module.fc.weight", "fc.bias"]).at
    ()
    """
    rows = [tuple(name.split(".")) for name in names]
    return Wrappers(tuple(_found(rows)) if all(len(row) <= _MAX_DEPTH for row in rows) else ())


def bare_name(name: str, wrappers: Wrappers) -> str:
    """The name of one parameter without the wrappers.

    >>> bare_name("module.fc.weight", Wrappers((("", ("module",)),)))
    'fc.weight'
    """
    return _bare(name, dict(wrappers.at))


def _found(rows: Sequence[Segments]) -> Iterator[tuple[str, Segments]]:
    """Goes down the tree of modules: at each, the rows below it, and how deep in them it lies."""
    todo = [("", rows, 0)] if rows else []
    while todo:
        path, below, depth = todo.pop()
        names = _common(below, depth, ROOT_ONLY + ANYWHERE if path == "" else ANYWHERE)
        if names:
            yield path, names
        children: dict[str, list[Segments]] = {}
        for row in below:
            if len(row) > depth + len(names) + 1:
                children.setdefault(row[depth + len(names)], []).append(row)
        start = depth + len(names)
        todo += [(_joined(path, name), rows, start + 1) for name, rows in reversed(children.items())]


def _common(rows: Sequence[Segments], depth: int, known: Sequence[str]) -> Segments:
    """The wrappers that all rows have from a depth on. The last segment is an entry, never a module."""
    names: list[str] = []
    while True:
        place = depth + len(names)
        firsts = {row[place] if len(row) > place + 1 else "" for row in rows}
        if len(firsts) != 1 or not firsts <= set(known):
            return tuple(names)
        names += firsts


def _bare(name: str, at: Mapping[str, Segments]) -> str:
    """What stands between a module and its wrapped content is skipped on the way down."""
    path, kept = "", []
    segments = name.split(".")
    while segments:
        count = len(at.get(path, ()))
        segments = segments[count:]
        if segments:
            kept.append(segments.pop(0))
            path = ".".join(kept)
    return ".".join(kept)


def _wrapped(name: str, at: Mapping[str, Segments]) -> str:
    made, path = [], ""
    for segment in name.split("."):
        made += [*at.get(path, ()), segment]
        path = _joined(path, segment)
    return ".".join(made)


def _renamed(state_dict: Mapping[str, Any], names: Mapping[str, str], of_metadata: Any) -> Mapping[str, Any]:
    """The same entries and attributes under other names."""
    entries = ((names[key], value) for key, value in state_dict.items())
    if not isinstance(state_dict, OrderedDict):
        return dict(entries)
    made = OrderedDict(entries)
    vars(made).update(vars(state_dict))
    if isinstance(getattr(state_dict, "_metadata", None), Mapping):
        made._metadata = of_metadata(state_dict._metadata)  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _bare_metadata(metadata: Mapping[str, Any], at: Mapping[str, Segments]) -> dict[str, Any]:
    """Of a module and its wrappers, which now have one name, the module's own: it comes last."""
    return OrderedDict((_bare(path, at), value) for path, value in metadata.items())


def _wrapped_metadata(metadata: Mapping[str, Any], at: Mapping[str, Segments]) -> dict[str, Any]:
    """Each wrapper gets the version that torch gives to a module without any of its own."""
    made: dict[str, Any] = OrderedDict()
    for path, value in metadata.items():
        outside = _wrapped(path, at) if path else ""
        for name in at.get(path, ()):
            made[outside] = {"version": 1}
            outside = _joined(outside, name)
        made[outside] = value
    return made


def _is_below(key: str, path: str) -> bool:
    return path == "" or key.startswith(path + ".")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
