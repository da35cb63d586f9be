"""Read: the leaves of a checkpoint, each where it is wanted, compared with what the record says of it.

Orbax casts and narrows without a word, and checks no sum. So leaves are read in the dtype that they were
stored in, their sums are compared, and whatever is to be another dtype is made that here.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxstate.errors import CheckpointError, near_names
from jaxstate.orbax._digests import damaged
from jaxstate.orbax._engine import read, read_region
from jaxstate.orbax._leaves import (
    NUMBERS,
    Kind,
    Leaf,
    empty,
    is_placeable,
    kind_of,
    place_of,
    placed,
    target,
    unstored,
)
from jaxstate.orbax._own import Held, bytes_target, from_bytes
from jaxstate.together import together

Items = Mapping[str, Mapping[str, Any]]


def read_leaves(
    path: Path,
    leaves: Mapping[str, Mapping[str, Leaf]],
    places: Mapping[str, Mapping[str, Sharding | None]],
    held: Held | None = None,
) -> dict[str, dict[str, Any]]:
    """These leaves of a checkpoint, bit for bit as they were saved, in these places; None means numpy.

    Args:
        path: of the checkpoint.
        leaves: what the record says of all of them.
        places: of those that are read.
        held: what the folder holds, if only this host sees it.

    Raises:
        CheckpointError: leaves that are not what was written, by name.
    """
    rows = [(item, p, leaves[item][p], place) for item, row in places.items() for p, place in row.items()]
    plain = frozenset() if held is None else held.plain
    targets: dict[str, dict[str, Any]] = {}
    for item, p, leaf, place in rows:
        aim = bytes_target(leaf.stored) if f"{item}/{p}" in plain else target(leaf, place)
        None if leaf.is_empty else targets.setdefault(item, {}).update({p: aim})
    with together("js.orbax.restore: reading", CheckpointError):
        found = read(path, targets)
        arrays = {(item, p): found[item][p] for item, row in targets.items() for p in row}
        by_name = {(item, p): leaf for item, p, leaf, _ in rows}
        for name in [name for name in arrays if "/".join(name) in plain]:
            arrays[name] = from_bytes(arrays[name], by_name[name].stored)
        _check_kinds(path, arrays, by_name)
    _check_whole(path, arrays, by_name, held)
    made: dict[str, dict[str, Any]] = {item: {} for item in places}
    for item, p, leaf, place in rows:
        array = empty(leaf, place) if leaf.is_empty else placed(arrays[item, p], leaf, place)
        made[item][p] = unstored(array, leaf)
    return made


def problems(stored: Mapping[str, Kind], templates: Mapping[str, Any], cast: bool) -> Iterator[str]:
    """A sentence for each leaf of one item that a template lacks, has besides, or has otherwise."""
    missing = [path for path in templates if path not in stored]
    loose = [path for path in stored if path not in templates]
    yield from (f"{path} is not in the checkpoint" for path in missing)
    yield from (f"{path} is in the checkpoint and not in the template" for path in loose)
    near = near_names(missing, loose)
    yield from (f"did you mean {found} for {path}?" for path, found in near.items())
    for path in [path for path in templates if path in stored]:
        yield from (f"{path} {problem}" for problem in _unfit(stored[path], templates[path], cast))


def fitted(leaf: Any, template: Any, cast: bool, where: str) -> Any:
    """The leaf as its template is: of its dtype, or a number of Python's.

    Raises:
        CheckpointError: whole numbers that the template's dtype does not hold.
    """
    if type(template) in NUMBERS.values():
        return type(template)(np.asarray(leaf)[()])
    dtype = kind_of(template).dtype
    if kind_of(leaf).dtype != dtype:
        leaf = _cast(leaf, np.dtype(dtype), where)
    place = place_of(template)
    return leaf if place is None or isinstance(leaf, jax.Array) else jax.device_put(leaf, place)


def _cast(leaf: Any, dtype: np.dtype, where: str) -> Any:
    new = leaf.astype(dtype)
    if dtype.kind in "iu" and not bool((np.asarray(new) == np.asarray(leaf)).all()):
        raise CheckpointError(f"{where} has values that {dtype} does not hold")
    return new


def _unfit(stored: Kind, template: Any, cast: bool) -> Iterator[str]:
    wanted = kind_of(template)
    if type(template) in NUMBERS.values():
        if stored.shape != () or _family(stored.dtype) != _family(wanted.dtype):
            yield f"is {stored} in the checkpoint and a Python {type(template).__name__} in the template"
        return
    differ = stored.shape != wanted.shape or (stored.dtype != wanted.dtype and not cast)
    if differ or _family(stored.dtype) != _family(wanted.dtype):
        close = stored.shape == wanted.shape and not cast and _family(stored.dtype) == _family(wanted.dtype)
        hint = "; pass cast=True to convert it" if close else ""
        yield f"is {stored} in the checkpoint and {wanted} in the template{hint}"
    elif (
        place_of(template) is not None
        and not wanted.dtype.startswith("key<")
        and not is_placeable(wanted.dtype)
    ):
        yield f"is to be {wanted}, which JAX makes only with jax_enable_x64"


def _family(dtype: str) -> str:
    """Dtypes among which a cast may round and does nothing else."""
    if dtype.startswith("key<") or dtype == "bool":
        return dtype
    kinds = (("integer", jax.numpy.integer), ("complex", jax.numpy.complexfloating))
    return next((name for name, kind in kinds if jax.numpy.issubdtype(np.dtype(dtype), kind)), "float")


def _check_kinds(path: Path, arrays: Mapping[Any, Any], leaves: Mapping[Any, Leaf]) -> None:
    found = {name: kind_of(x) if hasattr(x, "shape") else type(x).__name__ for name, x in arrays.items()}
    lines = [
        f"{_listed([name])} is {kind}, and {leaves[name].stored} was saved"
        for name, kind in found.items()
        if kind != leaves[name].stored
    ]
    if lines:
        raise CheckpointError(
            f"{path} holds other arrays than its record says:\n\t" + "\n\t".join(lines) + "\n"
            "restore another step, or a copy of this one"
        )


def _check_whole(
    path: Path, arrays: Mapping[Any, Any], leaves: Mapping[Any, Leaf], held: Held | None
) -> None:
    names = {"/".join(name): name for name in arrays}
    sums = {text: leaves[name].digests for text, name in names.items()}
    missing = partial(read_region, path)
    here = None if held is None else held.regions
    if bad := damaged({text: arrays[name] for text, name in names.items()}, sums, missing, here):
        raise CheckpointError(
            f"{path} is damaged: {_listed(names[text] for text in bad)} "
            "are not the values that were saved; restore another step, or a copy of this one"
        )


def _listed(names: Any) -> str:
    return ", ".join(f"{item}: {path}" for item, path in names)
