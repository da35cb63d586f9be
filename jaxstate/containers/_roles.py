"""Roles: which place in a checkpoint is which part. A tool says it, the caller may say it, nothing guesses.

A file is a dict of places, a folder is a mapping of file names; both are taken apart alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxstate.containers._checkpoint import Checkpoint, Recognised, said
from jaxstate.containers._kinds import is_number, is_optimizer
from jaxstate.containers._optimizer_names import unwrap_optimizer
from jaxstate.containers._wrappers import Wrappers, unwrap
from jaxstate.errors import CheckpointError, near_names

ONE = ("model", "ema", "scaler", "epoch", "step")
MANY = ("optimizer", "scheduler")
PERHAPS = "perhaps a model"
"""The role of a state_dict under a name that says nothing: it is listed, and never taken unasked."""

Contents = Mapping[Any, Any]
Roles = Mapping[Any, str]
Asked = Mapping[str, str]


class Part(NamedTuple):
    """One part of a checkpoint: what it is for, where it stands, what it is."""

    role: str
    place: str
    value: Any


def none_told(contents: Contents) -> Sequence[Part]:
    return ()


class Tool(NamedTuple):
    """What a tool's checkpoints look like.

    Attributes:
        name: of the tool.
        evidence: what in the contents tells that this tool wrote them; "" if it did not.
        roles: the role of each place; those without one are extra.
        told: parts that lie deeper; they stay in `extra` too.
    """

    name: str
    evidence: Callable[[Contents], str]
    roles: Callable[[Contents], Roles]
    told: Callable[[Contents], Sequence[Part]] = none_told


def taken_apart(tool: Recognised, contents: Contents, roles: Roles, told: Sequence[Part], asked: Asked):
    """The contents as a Checkpoint.

    Args:
        tool: who wrote them.
        contents: values by place.
        roles: the role of each place, as the tool has it.
        told: parts that lie deeper; what stands at a place of its own goes before them.
        asked: the place of a role, as the caller has it.

    Raises:
        CheckpointError: several places for one part, or one that is asked for and not there; all of them.
    """
    if problems := [line for role in ONE for line in _problems(role, contents, roles, asked)]:
        raise CheckpointError("\n\t".join([f"a checkpoint of {tool}:", *problems]))
    ones = {role: place for role in ONE for place in _places(role, roles, asked)[:1]}
    manys = [(role, place) for place, role in roles.items() if role in MANY and place not in ones.values()]
    found = [Part(role, place, contents[place]) for role, place in ones.items()]
    found += [part for role, place in manys for part in _spread(role, place, contents[place])]
    deeper = [part for part in told if part.role not in ones]
    used = {*ones.values(), *(place for _, place in manys)}
    return _made(tool, [*found, *deeper], {k: value for k, value in contents.items() if k not in used})


def _made(tool: Recognised, parts: Sequence[Part], extra: Mapping[Any, Any]) -> Checkpoint:
    bare = [_unwrapped(part) for part in parts]
    ones = {part.role: part for part, _ in bare if part.role in ONE}
    many = {role: {part.place: part.value for part, _ in bare if part.role == role} for role in MANY}
    return Checkpoint(
        tool,
        **{role: part.value for role, part in ones.items()},
        optimizers=many["optimizer"],
        schedulers=many["scheduler"],
        extra=extra,
        places={role: part.place for role, part in ones.items()},
        wrappers={part.place: wrappers for part, wrappers in bare if wrappers},
    )


def _unwrapped(part: Part) -> tuple[Part, Wrappers]:
    if part.role not in ("model", "ema", "optimizer") or not isinstance(part.value, Mapping):
        return part, Wrappers()
    value, wrappers = (unwrap_optimizer if part.role == "optimizer" else unwrap)(part.value)
    return part._replace(value=value), wrappers


def _spread(role: str, place: Any, value: Any) -> Iterator[Part]:
    """The parts at one place: lists and dicts of several are several parts."""
    if isinstance(value, list | tuple):
        yield from (Part(role, f"{place}[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, Mapping) and value and all(map(is_optimizer, value.values())):
        yield from (Part(role, f"{place}.{name}", item) for name, item in value.items())
    else:
        yield Part(role, place, value)


def _places(role: str, roles: Roles, asked: Asked) -> list[Any]:
    elsewhere = [place for other, place in asked.items() if other != role]
    found = [place for place, known in roles.items() if known == role and place not in elsewhere]
    return [asked[role]] if role in asked else found


def _problems(role: str, contents: Contents, roles: Roles, asked: Asked) -> Iterator[str]:
    places = _places(role, roles, asked)
    if len(places) == 1:
        yield from _misfits(role, places[0], contents)
    elif len(places) > 1 and not _agree([contents[place] for place in places]):
        yield _ambiguous(f"several may be the {role}", role, places, contents)
    elif role == "model" and not places and (perhaps := _places(PERHAPS, roles, asked)):
        yield _ambiguous(
            "nothing has a name that is usual for a model, and these may be one", role, perhaps, contents
        )


def _misfits(role: str, place: str, contents: Contents) -> Iterator[str]:
    if place not in contents:
        near = near_names([place], [str(name) for name in contents]).get(place)
        yield f'{role}="{place}": there is no such place' + (f'; did you mean "{near}"?' if near else "")
    elif role in ("model", "ema", "scaler") and not _has_names(contents[place]):
        yield f'{role}="{place}": no state_dict, but {said(contents[place])}'
    elif role in ("epoch", "step") and not is_number(contents[place]):
        yield f'{role}="{place}": no number, but {said(contents[place])}'


def _has_names(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _agree(values: Sequence[Any]) -> bool:
    return all(map(is_number, values)) and len({float(value) for value in values}) == 1


def _ambiguous(what: str, role: str, places: Sequence[Any], contents: Contents) -> str:
    listed = "".join(f'\n\t\t{role}="{place}": {said(contents[place])}' for place in places)
    return f"{what}; choose by an argument of load_checkpoint:{listed}"
