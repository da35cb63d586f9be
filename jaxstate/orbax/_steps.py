"""Steps: the checkpoints of a training of several processes, in a folder of all or in one of each.

Orbax has such an object of its own, in which a process that fails waits for the others and they for it. Here
the processes tell each other. A step counts if it is whole on all hosts and of one save: that is agreed upon
when a training begins and after every save. What else a host has is left of a save that another one did not
live through.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxstate.errors import CheckpointError
from jaxstate.orbax._engine import RECORD, begin, named, read_record, remove_begun, steps_in
from jaxstate.together import exchanged


class Step(NamedTuple):
    """A step that is whole on all hosts, and what was measured there."""

    step: int
    metrics: Mapping[str, float]


class Keep(NamedTuple):
    """Which steps to keep; with no number at all, every one.

    Attributes:
        last: how many of the latest.
        best: how many of the best, by this metric, and whether less is better.
        multiples: those that this divides.
    """

    last: int | None
    best: tuple[int, str, bool] | None
    multiples: int | None

    def kept(self, steps: list[Step]) -> set[int]:
        """Those of these steps, given in order, that are kept.

        >>> Keep(1, (1, "loss", True), 4).kept([Step(n, {"loss": abs(n - 3)}) for n in range(1, 7)])
        {3, 4, 6}
        """
        if self == Keep(None, None, None):
            return {found.step for found in steps}
        last = steps[-self.last :] if self.last else []
        multiples = [found for found in steps if self.multiples and found.step % self.multiples == 0]
        return {found.step for found in (*last, *self._best(steps), *multiples)}

    def _best(self, steps: list[Step]) -> list[Step]:
        if self.best is None:
            return []
        count, metric, less = self.best
        measured = [found for found in steps if metric in found.metrics]
        return sorted(measured, key=lambda found: found.metrics[metric], reverse=not less)[:count]


class Steps:
    """What a Checkpointer asks of Orbax's, for several processes.

    Args:
        folder: it is there; what was begun in it is removed.
        keep: which steps.
        shared: whether all processes see the folder.

    Raises:
        CheckpointError: they do not, and were to.
    """

    def __init__(self, folder: Path, keep: Keep, shared: bool):
        self._folder, self._keep, self._shared = folder, keep, shared
        self._removes = jax.process_index() == 0 or not shared
        if self._removes:
            remove_begun(folder / "*")
        self.checkpoints = list(_whole_on_all(folder, shared))
        self._begun: tuple[Step, ...] = ()

    def save_checkpointables_async(self, step: int, items: dict[str, Any], metrics: Any) -> Any:
        """Begin to write a step; if this host alone has it, what it has goes."""
        path = self._folder / str(step)
        if not self._shared and path.exists():
            _remove_left(path)
        self._begun = (Step(step, metrics or {}),)
        return begin(path, {**items, RECORD: {**items[RECORD], "metrics": metrics or {}}}, self._shared)

    def wait(self) -> None:
        """Nothing is under way that its response does not tell of."""

    def settle(self) -> None:
        """The step that was begun is whole on all hosts: remove those that it supersedes."""
        steps = [*self.checkpoints, *self._begun]
        kept = self._keep.kept(steps)
        for found in (found for found in steps if self._removes and found.step not in kept):
            shutil.rmtree(self._folder / str(found.step), ignore_errors=True)
        self.checkpoints = [found for found in steps if found.step in kept]
        for found in (found for found in self._begun if self._removes and found.step in kept):
            _note(self._folder / str(found.step), found.metrics)

    def close(self) -> None:
        """There is nothing to let go of."""


def _remove_left(path: Path) -> None:
    if (read_record(path) or {}).get("held") is None:
        raise CheckpointError(f"{path} is a checkpoint of all hosts, and none is written over")
    shutil.rmtree(path)


def _whole_on_all(folder: Path, shared: bool) -> Iterator[Step]:
    """The steps that every host has of the same save, in order."""
    mine = dict(_records(folder))
    told = json.dumps({step: crc for step, (crc, _) in mine.items()})
    texts = exchanged("js.orbax.Checkpointer: looking for steps", told)
    if shared and len(set(texts.values())) > 1:
        raise CheckpointError(
            f"the processes do not see the same in {folder}; if each has one on a disk of its own, say "
            "shared=False"
        )
    rows = [{int(step): crc for step, crc in json.loads(text).items()} for text in texts.values()]
    for step, (crc, metrics) in sorted(mine.items()):
        if all(row.get(step) == crc for row in rows):
            yield Step(step, metrics)


def _records(folder: Path) -> Iterator[tuple[int, tuple[int, Mapping[str, float]]]]:
    """Each step with a checksum that is the same on all hosts, and its metrics; those that can be read."""
    for step in steps_in(folder):
        path = folder / str(step)
        with suppress(CheckpointError), named("a step without a record"):
            found = read_record(path) or {"crc32": 0}
            yield step, (found["crc32"], found["metrics"] if "metrics" in found else _metrics(path))


def _note(path: Path, metrics: Mapping[str, float]) -> None:
    """Put the metrics, if there are any, where Orbax's own checkpointer looks for them."""
    if not metrics:
        return
    (path / "metrics").mkdir(exist_ok=True)
    (path / "metrics" / "metrics").write_text(json.dumps(dict(metrics)))


def _metrics(path: Path) -> Mapping[str, float]:
    """What Orbax's own checkpointer has noted beside a step."""
    file = path / "metrics" / "metrics"
    return json.loads(file.read_text()) if file.is_file() else {}
