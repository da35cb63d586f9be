"""Together: steps that several processes take as one. All of them get through, or all raise, and none waits.

A process that fails would leave the others in the next collective for good. So each step ends with every
process telling the others whether it is well. They tell it through JAX's coordination service, which needs no
device, waits no longer than it is told to, and takes processes that are not all of them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxstate.errors import JaxstateError

PATIENCE = 600  # seconds; one process may have so much more to read or write than another
WORDS = 4000  # characters of a failure that the others are told

_WELL = "well"


def processes_of(shardings: Collection[Any]) -> tuple[int, ...]:
    """The processes whose devices these shardings name; always with this one, so that one means alone."""
    found = {int(device.process_index) for sharding in shardings for device in sharding.device_set}
    return tuple(sorted(found | {jax.process_index()}))


@contextmanager
def together(
    step: str, error: Callable[[str], Exception] = JaxstateError, processes: Collection[int] | None = None
) -> Iterator[None]:
    """Do what is inside in every process; if one of them fails there, all raise when they come out.

    Nothing inside is a collective in which a process that has failed before it would be missed.

    Args:
        step: what is done, in words that are the same everywhere.
        error: makes what the processes that are well raise for one that is not.
        processes: who takes part; by default all.

    Raises:
        Exception: in a process that fails its own, and in the others one that `error` makes, with the
            number of each process that failed, and what it said.

    >>> with together("alone there is nobody to tell"):
    ...     pass
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as found:
        failure = found
    try:
        words = exchanged(step, _said(failure), processes)
    except JaxstateError:
        if failure is None:
            raise
        words = {}
    if failure is not None:
        raise failure
    if lines := _lines(words):
        raise error(f"{step}: this process is well, and stops because another has failed:\n\t" + lines)


def alike(step: str, value: str, error: Callable[[str], Exception], processes: Any = None) -> None:
    """Raise in all processes unless all have the same text.

    Raises:
        Exception: that `error` makes, with the text of each process.
    """
    found = exchanged(step, value, processes)
    if len(set(found.values())) > 1:
        rows = (f"process {process}: {text[:200]}" for process, text in found.items())
        raise error(f"{step}: the processes differ:\n\t" + "\n\t".join(rows))


def exchanged(step: str, mine: str, processes: Collection[int] | None = None) -> Mapping[int, str]:
    """What each process has to say at this step, by its number.

    Raises:
        JaxstateError: a process is at another step; it did not come, or is no longer there.
    """
    everyone = tuple(sorted(processes or range(jax.process_count())))
    if everyone == (jax.process_index(),):
        return {jax.process_index(): mine}
    room = f"jaxstate/{'all' if len(everyone) == jax.process_count() else everyone}"
    found = _told(room, f"{step}\0{mine}", None if room == "jaxstate/all" else list(everyone), step)
    rows = {process: text.split("\0", 1) for process, text in found.items()}
    if len({there for there, _ in rows.values()}) > 1:
        places = "; ".join(f"process {process} is at: {there}" for process, (there, _) in rows.items())
        raise JaxstateError(
            f"the processes are not at the same step, and all of them call the same: {places}"
        )
    return {process: text for process, (_, text) in rows.items()}


def _told(room: str, text: str, processes: list[int] | None, step: str) -> dict[int, str]:
    """Put a text where all of a room see it, wait until all have done so, and read them.

    The number of the turn is counted where all the texts are, since nothing else lasts as long.
    """
    me, service = jax.process_index(), client()
    turn = service.key_value_increment(f"{room}/turn/{me}", 1)
    service.key_value_set(f"{room}/{turn}/{me}", text)
    try:
        service.wait_at_barrier(f"{room}/{turn}", PATIENCE * 1000, processes)
    except jax.errors.JaxRuntimeError as failed:
        here = {key.rpartition("/")[2] for key, _ in service.key_value_dir_get(f"{room}/{turn}/")}
        absent = sorted(set(map(str, processes or range(jax.process_count()))) - here)
        raise JaxstateError(
            f"{step}: process {', '.join(absent) or 'unknown'} did not come within {PATIENCE} seconds, or is "
            f"no longer there: {str(failed).splitlines()[0]}"
        ) from failed
    rows = service.key_value_dir_get(f"{room}/{turn}/")
    if turn > 1:
        service.key_value_delete(f"{room}/{turn - 1}/{me}")  # all have read it, or they would not be here
    return {int(key.rpartition("/")[2]): said for key, said in sorted(rows)}


def client() -> Any:
    """JAX's own client of the service through which its processes find each other."""
    # JAX has no public name for it; Orbax and Flax take it from here too.
    from jax._src import distributed

    if distributed.global_state.client is None:
        raise JaxstateError(
            "several processes find each other by jax.distributed.initialize(); call it first"
        )
    return distributed.global_state.client


def _said(failure: Exception | None) -> str:
    return _WELL if failure is None else f"{type(failure).__name__}: {failure}"[:WORDS]


def _lines(words: Mapping[int, str]) -> str:
    return "\n\t".join(f"process {process}: {text}" for process, text in words.items() if text != _WELL)
