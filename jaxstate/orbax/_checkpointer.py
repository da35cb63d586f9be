"""Checkpointer: the checkpoints of a training, one folder a step, written while training goes on.

A step's folder is what `save` writes, and `restore` reads it. It has a temporary name until it is whole, so
the latest step is always a whole one, whatever became of the program that was writing.
"""

import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxstate.binding import Binding
from jaxstate.errors import CheckpointError
from jaxstate.orbax._engine import named, saving, sequence
from jaxstate.orbax._progress import following
from jaxstate.orbax._restore import Place, Restored, restore
from jaxstate.orbax._save import Training, prepared, whole
from jaxstate.orbax._steps import Keep, Steps
from jaxstate.together import together


class Best(NamedTuple):
    """Which checkpoints are the best: the `count` with the least, or the greatest, of a metric.

    Args:
        metric: the name that `save(step, ..., metrics={name: number})` gives it.
        count: how many are kept.
        mode: "min" or "max"; a `Checkpointer` refuses another.

    >>> import tempfile, numpy as np
    >>> from jaxstate.binding import Rule
    >>> model, binding = {"w": np.zeros(3)}, Binding((Rule("w", "w", "a -> a"),))
    >>> with Checkpointer(tempfile.mkdtemp(), best=Best("accuracy", mode="max")) as checkpoints:
    ...     for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
    ...         _ = checkpoints.save(step, model, binding=binding, metrics={"accuracy": accuracy})
    ...     checkpoints.wait()
    ...     checkpoints.steps  # the best one, and the latest, where a training goes on
    [2, 3]
    """

    metric: str
    count: int = 1
    mode: Literal["min", "max"] = "min"


class Checkpointer:
    """Save every so many steps, keep a few, go on from the latest.

    Args:
        folder: where the steps are; it is made if it is not there.
        every: `save` does nothing at steps that this does not divide.
        keep: how many of the latest to keep; by default all, or one if something else is said below.
        best: keep these besides: `Best("loss")`, `Best("accuracy", 3, "max")`. `save` then needs the metric.
        keep_every: keep the steps that this divides besides.
        progress: show how far a save is, while `wait` waits for it.
        shared: whether all processes see the folder. If not, each has its own, of the same name, on a disk of
            its host, and writes what its devices hold; a step counts if it is whole on all of them.

    In several processes each makes one and calls the same: a failure in one is an error in all.

    Raises:
        CheckpointError: numbers below one; a mode of `best` that is neither "min" nor "max"; a folder that
            cannot be used.

    >>> import tempfile, numpy as np
    >>> from jaxstate.binding import Rule
    >>> model, binding = {"w": np.zeros(3)}, Binding((Rule("w", "w", "a -> a"),))
    >>> with Checkpointer(tempfile.mkdtemp(), every=10, keep=2) as checkpoints:
    ...     for step in range(1, 41):
    ...         model = {"w": model["w"] + 1}
    ...         _ = checkpoints.save(step, model, binding=binding)
    ...     checkpoints.wait()
    ...     checkpoints.steps, checkpoints.restore(model).model["w"].tolist()
    ([30, 40], [40.0, 40.0, 40.0])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 1,
        keep: int | None = None,
        best: Best | None = None,
        keep_every: int | None = None,
        progress: bool = False,
        shared: bool = True,
    ):
        numbers = {"every": every, "keep": keep, "keep_every": keep_every, "best.count": best and best.count}
        if wrong := [f"{name}={n}" for name, n in numbers.items() if n is not None and n < 1]:
            raise CheckpointError(f"{', '.join(wrong)}: these are counts, of one at least")
        if best is not None and best.mode not in ("min", "max"):
            raise CheckpointError(f'{best}: the mode is "min" or "max"')
        if keep is None and (best or keep_every):
            keep = 1  # the latest is where a training goes on
        self.folder = Path(folder).absolute()
        self.every = every
        self.best = best
        self._progress = progress
        self._pending: tuple[int, Any, int] | None = None
        self._shared = shared or jax.process_count() == 1
        if jax.process_count() == 1:
            measure = best and (best.count, lambda found: found[best.metric], best.mode == "min")
            self._make = partial(sequence, self.folder, every, keep, measure, keep_every)
        else:
            measure = best and (best.count, best.metric, best.mode == "min")
            self._make = partial(Steps, self.folder, Keep(keep, measure, keep_every), shared)
        self._engine = self._begun()

    @property
    def steps(self) -> list[int]:
        """The steps that are there and whole, in order."""
        return [found.step for found in self._engine.checkpoints]

    @property
    def latest(self) -> int | None:
        """The last of them; None if there is none."""
        return max(self.steps, default=None)

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """What was measured at each step."""
        return {found.step: dict(found.metrics or {}) for found in self._engine.checkpoints}

    def save(
        self,
        step: int,
        model: Any,
        opt_state: Any = None,
        *,
        binding: Binding | None = None,
        scheduler: Any = None,
        rngs: Any = None,
        extra: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Begin to save, and come back as soon as nothing that was given is needed any more.

        A save that has not ended is waited for first; if it failed, this says so.

        Args:
            step: of the training; above the latest one.
            model, opt_state, binding, scheduler, rngs, extra: as for `jaxstate.orbax.save`.
            metrics: numbers by name, kept with the step.

        Returns:
            True if this step is one to be saved.

        Raises:
            CheckpointError: what `save` refuses; a step that is there; a metric that is missing or no
                finite number; the failure of the save before.
        """
        if whole(step) is None:
            raise CheckpointError("a checkpoint of a training is of a step")
        if (step := operator.index(step)) % self.every:
            return False
        self.wait()
        with together("js.orbax.Checkpointer: looking at the step", CheckpointError):
            self._check_new(step)
            measured = self._measured(metrics)
        training = Training(model, opt_state, step, binding, scheduler, rngs, extra)
        items = prepared(training, copy=True, shared=self._shared)
        with self._saving(step):
            response = self._engine.save_checkpointables_async(step, items, metrics=measured)
        self._pending = (step, response, _size(items))
        return True

    def restore(
        self,
        model: Any = None,
        opt_state: Any = None,
        *,
        step: int | None = None,
        rngs: Any = None,
        sharding: Place | None = None,
        cast: bool = False,
    ) -> Restored:
        """Read a step, by default the latest; otherwise as `jaxstate.orbax.restore`.

        Raises:
            CheckpointError: there is no such step; what `restore` refuses.
        """
        self.wait()
        chosen = self.latest if step is None else step
        if chosen not in self.steps:
            wanted = "no checkpoint" if step is None else f"no step {step}"
            raise CheckpointError(f"{self.folder} has {wanted}; its steps are {self.steps}")
        path = self.folder / str(chosen)
        return restore(path, model, opt_state, rngs=rngs, sharding=sharding, cast=cast)

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CheckpointError: it failed. The steps before it are whole.
        """
        if self._pending is None:
            return
        (step, response, size), self._pending = self._pending, None
        with self._saving(step), following(self._progress, self.folder, step, size):
            response.result()
            self._engine.wait()
        if jax.process_count() > 1:
            self._engine.settle()

    def close(self) -> None:
        """Wait, and let go. Raises CheckpointError if the save that was under way failed."""
        try:
            self.wait()
        finally:
            self._engine.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
            return
        with suppress(CheckpointError):  # the error that is on its way out came first
            self.close()

    def _begun(self) -> Any:
        what = f"{self.folder} cannot be used"
        with together("js.orbax.Checkpointer: making the folder", CheckpointError), named(what):
            self.folder.mkdir(parents=True, exist_ok=True)
        with named(what):
            return self._make()

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Name the step in every failure, after which Orbax's object would only repeat it: take another."""
        try:
            path, what = self.folder / str(step), f"step {step} was not saved"
            with saving(path, self._shared, what):
                yield
        except CheckpointError:
            with suppress(Exception):
                self._engine.close()
            self._engine = self._begun()
            raise

    def _check_new(self, step: int) -> None:
        if step in self.steps:
            raise CheckpointError(f"{self.folder} has step {step} already, and none is written over")
        if self.latest is not None and step < self.latest:
            raise CheckpointError(
                f"{self.folder} has step {self.latest}, and steps go up: step {step} would count as older; "
                "take another folder for a training that has branched off"
            )

    def _measured(self, metrics: Mapping[str, float] | None) -> dict[str, float] | None:
        """The metrics as JSON keeps them."""
        found = {name: float(value) for name, value in (metrics or {}).items()}
        if self.best is not None and not math.isfinite(found.get(self.best.metric, math.nan)):
            raise CheckpointError(
                f'the best checkpoints go by "{self.best.metric}", and it is {found.get(self.best.metric)}; '
                f"save(step, ..., metrics={{{self.best.metric!r}: ...}})"
            )
        return found or None


def _size(items: Mapping[str, Any]) -> int:
    return sum(getattr(leaf, "nbytes", 0) for row in items.values() for leaf in row.values())
