"""Save: a model, its optimizer and what belongs to both, as one checkpoint that is there whole or not at all.

Everything is looked at before Orbax is asked for anything: a save that Orbax gives up in the middle leaves
files and threads behind.
"""

import operator
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxstate import tree
from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.errors import CheckpointError
from jaxstate.optim._nest.flax_states import opened
from jaxstate.optim._torch_dict.groups_json import groups_to_json
from jaxstate.orbax._digests import digests
from jaxstate.orbax._engine import RECORD, write
from jaxstate.orbax._items import model_items, optimizer_leaves
from jaxstate.orbax._leaves import is_storable, kind_of, leaf_of, stored
from jaxstate.orbax._own import as_bytes, differing, held_of
from jaxstate.orbax._record import Record
from jaxstate.orbax._skeleton import skeleton
from jaxstate.together import alike, together


class Training(NamedTuple):
    """What one checkpoint holds; see `save` for each of them."""

    model: Any
    opt_state: Any = None
    step: int | None = None
    binding: Binding | None = None
    scheduler: Any = None
    rngs: Any = None
    extra: Mapping[str, Any] | None = None


def save(
    path: str | Path,
    model: Any,
    opt_state: Any = None,
    *,
    step: int | None = None,
    binding: Binding | None = None,
    scheduler: Any = None,
    rngs: Any = None,
    extra: Mapping[str, Any] | None = None,
    shared: bool = True,
) -> None:
    """Write a training as one Orbax checkpoint. It is there whole or not at all.

    Arrays keep every bit, wherever they lie; in several processes each calls this, and writes its own part.

    Args:
        path: a directory that does not exist yet, of one name in all processes.
        model: an NNX module, with its random state, a Linen model's variables, or any pytree that the
            binding fits.
        opt_state: any optimizer state, an `nnx.Optimizer` or a `TrainState`; jaxstate's own keep their
            param_groups verbatim. Of a `TrainState` the step and the optimizer are kept here, and the
            parameters come with `model`.
        step: how far training has come.
        binding: needed where the model does not tell its layers. One that was made `like=` a torch file
            takes that file's order, counters and `_metadata` along.
        scheduler: the state of a scheduler, which is torch's state_dict; or a dict of several.
        rngs: a pytree of random keys, typed or raw.
        extra: other plain values, such as `{"epoch": 3, "scaler": grad_scaler.state_dict(scale)}`.
        shared: whether all processes see the directory. If not, each writes what its devices hold, replicas
            too, on a disk of its own host, and `restore` gives it back to the same processes.

    Raises:
        CheckpointError: the directory exists, what Orbax cannot keep, by its path, or a disk that is full;
            another process has failed.
        BindingError: two leaves of one path; a model that does not tell its layers.

    >>> import tempfile, numpy as np
    >>> from jaxstate.orbax import restore
    >>> from jaxstate.binding import Rule
    >>> path, binding = tempfile.mkdtemp() + "/c", Binding((Rule("w", "w", "i o -> o i"),))
    >>> save(path, {"w": np.eye(2, 3)}, binding=binding, step=7)
    >>> again = restore(path)
    >>> bool((again.model["w"] == np.eye(2, 3)).all()), again.step
    (True, 7)
    """
    path, shared = new(path), shared or jax.process_count() == 1
    training = Training(model, opt_state, whole(step), binding, scheduler, rngs, extra)
    write(path, prepared(training, copy=False, shared=shared), shared)


def prepared(training: Training, copy: bool, shared: bool = True) -> dict[str, Any]:
    """What Orbax is to write, checked as a whole: the arrays of each item that has any, and the record.

    Args:
        training: all of it.
        copy: copy what the caller might change while it is written.
        shared: whether it is to be one checkpoint of all processes.

    Raises:
        CheckpointError: leaves that cannot be kept, all of them.
    """
    with together("js.orbax.save: looking at the leaves", CheckpointError):
        binding, items = _items(training)
        _check(items)
        arrays = {item: {p: stored(leaf, copy) for p, leaf in row.items()} for item, row in items.items()}
    alike("js.orbax.save: the leaves", _fingerprint(items), CheckpointError)
    record = _record(training, binding, items, arrays)
    kept = {item: {path: x for path, x in row.items() if x.size} for item, row in arrays.items()}
    kept = {item: row for item, row in kept.items() if row}
    return {**kept, RECORD: record.to_json()} if shared else _own(kept, record)


def _items(training: Training) -> tuple[Binding, dict[str, dict[str, Any]]]:
    leaves = adapter_of(training.model).leaves(training.model)
    binding = (training.binding or bind(training.model)).of(leaves)
    return binding, {
        **model_items(training.model, binding),
        "optimizer": optimizer_leaves(training.opt_state),
        "rngs": tree.flat(training.rngs),
    }


def _fingerprint(items: Mapping[str, Mapping[str, Any]]) -> str:
    """The same in all processes if their leaves are."""
    rows = [(item, path, str(kind_of(leaf))) for item, row in items.items() for path, leaf in row.items()]
    return f"{len(rows)} leaves, {zlib.crc32(repr(rows).encode()):08x}"


def _own(items: Mapping[str, Mapping[str, Any]], record: Record) -> dict[str, Any]:
    """The same for a folder that only this process sees: its own part, and what that is."""
    flat = {f"{item}/{path}": array for item, row in items.items() for path, array in row.items()}
    sums = {f"{item}/{p}": leaf.digests for item, row in record.leaves.items() for p, leaf in row.items()}
    with together("js.orbax.save: comparing replicas", CheckpointError):
        if wrong := differing(flat, sums):
            raise CheckpointError(
                f"of {', '.join(wrong)} this process has other values than another, and all of them have to "
                "have the same of what lies on several"
            )
    arrays = {
        item: {p: x if isinstance(x, jax.Array) else as_bytes(x) for p, x in row.items()}
        for item, row in items.items()
    }
    return {**arrays, RECORD: {**record.to_json(), "held": held_of(flat).to_json()}}


def whole(step: Any) -> int | None:
    """A step as a Python number. Raises CheckpointError for what is no whole number above zero, or zero."""
    try:
        number = None if step is None else operator.index(step)
    except TypeError as error:
        raise CheckpointError(f"a step is a whole number, not {step!r}") from error
    if number is not None and number < 0:
        raise CheckpointError(f"a step is not below zero, as {number} is")
    return number


def new(path: str | Path) -> Path:
    """The path, absolute. Raises CheckpointError if something is there, in any process."""
    path = Path(path).absolute()
    # One process may be about to write what another one has yet to look for.
    with together("js.orbax.save: looking at the folder", CheckpointError):
        if path.exists():
            raise CheckpointError(
                f"{path} exists; a checkpoint is never written over another: take a new name"
            )
    alike("js.orbax.save: the folder, which has one name in all processes", str(path), CheckpointError)
    return path


def _record(
    training: Training, binding: Binding, items: Mapping[str, Any], arrays: Mapping[str, Any]
) -> Record:
    flat = {f"{item}/{path}": array for item, row in arrays.items() for path, array in row.items()}
    sums = digests({name: array for name, array in flat.items() if array.size})
    leaves = {
        item: {
            path: leaf_of(leaf)._replace(digests=sums.get(f"{item}/{path}", ())) for path, leaf in row.items()
        }
        for item, row in items.items()
    }
    opt = opened(training.opt_state)
    return Record(
        training.step,
        binding,
        leaves,
        optimizer=None if training.opt_state is None else skeleton(opt),
        param_groups=groups_to_json(opt),
        rngs=skeleton(training.rngs),
        scheduler=training.scheduler,
        extra=None if training.extra is None else dict(training.extra),
    )


def _check(items: Mapping[str, Mapping[str, Any]]) -> None:
    lines = [
        f"{item}: {path or 'the whole tree'} is {_what(leaf)}"
        for item, row in items.items()
        for path, leaf in row.items()
        if not is_storable(leaf) or _is_local(leaf)
    ]
    if lines:
        raise CheckpointError("these leaves cannot be kept:\n\t" + "\n\t".join(lines))


def _is_local(leaf: Any) -> bool:
    return jax.process_count() > 1 and isinstance(leaf, jax.Array) and leaf.is_fully_addressable


def _what(leaf: Any) -> str:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "abstract, and has no values"
    if _is_local(leaf):
        return (
            "on this process alone, and the processes might not agree on it; make it an array of all of "
            "them, as jax.jit(tx.init, out_shardings=...) does, or one of numpy"
        )
    return f"a {type(leaf).__name__}, no array of numbers that Orbax knows"
