"""Checkpoint: the parts of what a training tool wrote, each by its place in the file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from math import prod
from typing import Any, NamedTuple

from jaxstate.containers._kinds import is_averaged, is_optimizer, is_state_dict
from jaxstate.containers._wrappers import Wrappers
from jaxstate.errors import CheckpointError, quoted
from jaxstate.table import html_table, table

COLUMNS = ("part", "place", "what")


class Recognised(NamedTuple):
    """Which tool wrote a checkpoint, and by what that was seen."""

    name: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.name} ({self.evidence})"


@dataclass(frozen=True, repr=False, eq=False)
class Checkpoint:
    """What a training tool wrote, part by part; together the parts are all of it.

    Args:
        tool: who wrote it, with the evidence.
        model: its state_dict, without the wrappers of `DataParallel` and its kin; None if there is none.
        optimizers: state_dicts by their places.
        schedulers: state_dicts by their places.
        scaler: the state_dict of `GradScaler`; None if there is none.
        ema: the average of the weights, as it stands: that of an `AveragedModel` keeps its `n_averaged`.
        epoch, step: as the file has them: whether they count what is done or what comes next, the tool
            decides. None if the file does not say.
        extra: everything else, verbatim, by place; of a folder, other files are paths.
        places: where the model, the average, the scaler, the epoch and the step stand.
        wrappers: what was taken out of the keys of a part, by its place: `containers.wrap` puts it back.
    """

    tool: Recognised
    model: Any = None
    optimizers: Mapping[str, Any] = field(default_factory=dict)
    schedulers: Mapping[str, Any] = field(default_factory=dict)
    scaler: Any = None
    ema: Any = None
    epoch: Any = None
    step: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    wrappers: Mapping[str, Wrappers] = field(default_factory=dict)

    @property
    def optimizer(self) -> Any:
        """The only optimizer.

        Raises:
            CheckpointError: there is none, or several.
        """
        return _only("optimizer", self.optimizers)

    @property
    def scheduler(self) -> Any:
        """The only scheduler.

        Raises:
            CheckpointError: there is none, or several.
        """
        return _only("scheduler", self.schedulers)

    @property
    def prefix(self) -> str:
        """What stood before every key of the model; `js.state_dict(model, prefix=...)` writes it again."""
        return self.wrappers.get(self.places.get("model", ""), Wrappers()).prefix

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """A line for each part: what it is for, its place, and what stands there."""
        return [(part, str(place)[:80], what) for part, place, what in self._rows()]

    def __str__(self) -> str:
        return f"Checkpoint of {self.tool}\n\n{table(COLUMNS, self.rows)}"

    def _repr_html_(self) -> str:
        return f"<p>Checkpoint of {escape(str(self.tool))}</p>{html_table(COLUMNS, self.rows)}"

    __repr__ = __str__

    def _rows(self) -> Iterator[tuple[str, Any, str]]:
        if self.model is not None:
            yield "model", self.places.get("model", ""), said(self.model)
        for part in ("optimizer", "scheduler"):
            found = getattr(self, f"{part}s")
            yield from ((part, place, said(value)) for place, value in found.items())
        for part in ("scaler", "ema", "epoch", "step"):
            if (value := getattr(self, part)) is not None:
                yield part, self.places.get(part, ""), said(value)
        yield from (("extra", place, said(value)) for place, value in self.extra.items())
        yield from (("wrappers", place, _taken(wrappers)) for place, wrappers in self.wrappers.items())


def said(value: Any) -> str:
    """What a part is, in a few words; a file may nest it without end, so nothing is printed whole.

    >>> said({"state": {0: {}}, "param_groups": [{"params": [0], "lr": 0.1}]})
    'optimizer, 1 state in 1 group'
    >>> said([1, 2]), said("x" * 100)[-4:]
    ('list of 2', "...'")
    """
    if is_optimizer(value) and "state" in value:
        return f"optimizer, {_many(value['state'], 'state')} in {_many(value['param_groups'], 'group')}"
    if is_averaged(value) or is_state_dict(value):
        return f"state_dict, {_many(value, 'entry', 'entries')}, {_numbers(value)} numbers"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape:
        return f"array of shape {tuple(value.shape)}, {value.dtype}"
    return _short(value)


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > 60:
        return repr(value[:60] + "...")
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    huge = isinstance(value, int) and value.bit_length() > 256  # Python refuses to spell the very long ones
    return "a huge number" if huge else repr(value)[:80]


def _many(values: Any, one: str, several: str = "") -> str:
    return f"{len(values)} {one if len(values) == 1 else several or one + 's'}"


def _numbers(state_dict: Mapping[str, Any]) -> str:
    return f"{sum(prod(getattr(value, 'shape', ())) for value in state_dict.values()):,}"


def _taken(wrappers: Wrappers) -> str:
    inner = len(wrappers.at) - bool(wrappers.prefix)
    said = [f'"{wrappers.prefix}" before every key'] if wrappers.prefix else []
    return "; ".join(said + ([f"{_many(range(inner), 'module')} inside"] if inner else []))


def _only(part: str, found: Mapping[str, Any]) -> Any:
    if len(found) != 1:
        what = f"{len(found)} {part}s: {quoted(found)}" if found else f"no {part}"
        choose = f'; take one, ckpt.{part}s["{next(iter(found))}"]' if found else ""
        raise CheckpointError(f"the checkpoint holds {what}{choose}")
    return next(iter(found.values()))
