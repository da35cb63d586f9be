"""Foreign: checkpoints that other programs have written with Orbax, matched to templates by name.

Their trees are those of Flax: an NNX state, whose paths end in `value`, a pure dict, a Linen model's
variables, a `TrainState`; alone, or as items of a manager's step. A template fits at a place if all its paths
stand below it. Of the places that a model or an optimizer may have by name, one must fit; the moments of an
optimizer are called as the parameters are, so a place of any other name has to be said.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey

from jaxstate import tree
from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.errors import BindingError, CheckpointError, near_names
from jaxstate.orbax._engine import placeholder, read_tree, trees
from jaxstate.orbax._items import optimizer_leaves, random_leaves
from jaxstate.orbax._leaves import Kind, is_key, is_placeable, kind_of, place_of
from jaxstate.orbax._read import problems

UNNAMED = (None, "default", "state")  # names that programs do not choose
AROUND = frozenset({"model", "model_state", "params", "state", "train_state", "variables"})
OPTIMIZERS = frozenset({"opt", "opt_state", "optimizer", "state", "train_state", "tx_state"})
_STEPS = frozenset(Kind((), dtype) for dtype in ("int32", "int64", "uint32"))
BESIDE = OPTIMIZERS | {"step", "epoch", "metrics", "rng", "rngs"}

Leaves = Mapping[str, Any]
Items = dict[str, Leaves]


@dataclass(frozen=True)
class Found:
    """What a checkpoint of another program holds of what is asked for.

    Args:
        leaves: by item and path.
        templates: for each of them.
        step: what it calls so, or the name of its folder.
        binding: of the template, if it tells its layers.
    """

    leaves: Items
    templates: Items
    step: int | None
    binding: Binding | None


@dataclass(frozen=True)
class Stored:
    """A leaf in the metadata: which tree it is in, where it stands in the order of its leaves, its kind."""

    name: str | None
    index: int
    kind: Kind


def find(path: Path, model: Any, opt_state: Any, at: str | None, cast: bool) -> Found:
    """Read what the templates ask for.

    Raises:
        CheckpointError: no place that fits or more than one; leaves of another shape or dtype; leaves of the
            model's that it does not have.
    """
    metadata = trees(path)
    stored = _stored(metadata)
    if model is None and opt_state is None:
        raise CheckpointError(
            f"{path} was written by another program and needs templates; it has {_outline(stored)}"
        )
    templates: Items = {}
    chosen: dict[str, dict[str, Stored]] = {}
    for item, wanted, around, place in _wanted(model, opt_state, at):
        prefix, rows = _placed(path, stored, wanted, around, place)
        templates[item], chosen[item] = wanted, {p: rows[prefix + p] for p in wanted}
        if item == "params":
            templates["random"] = _random(path, model, prefix, rows, wanted)
            chosen["random"] = {p: rows[prefix + p] for p in templates["random"]}
        else:
            _check_optimizer(path, prefix, rows, wanted)
    _check(path, chosen, templates, cast)
    if (step := stored.get("step")) is not None and step.kind in _STEPS:
        chosen["step"] = {"step": step}
    found = _read(path, metadata, chosen, templates | {"step": {"step": 0}})
    count = int(found.pop("step")["step"]) if "step" in found else _number(path.name)
    return Found(found, templates, count, _binding(model))


def _wanted(
    model: Any, opt_state: Any, at: str | None
) -> Iterator[tuple[str, Leaves, frozenset[str], str | None]]:
    """What is asked for, and where it may be: names of places, or the place that was said."""
    if model is not None:
        yield "params", adapter_of(model).leaves(model), AROUND, at
    if opt_state is not None:
        yield "optimizer", optimizer_leaves(opt_state), OPTIMIZERS, None


def _random(path: Path, model: Any, prefix: str, rows: Mapping[str, Stored], wanted: Leaves) -> Leaves:
    """The template's random state where it is stored; otherwise it stays, if there is any.

    Raises:
        CheckpointError: leaves beside the model's that it does not have; random state without a value.
    """
    random = random_leaves(model)
    found = {p: leaf for p, leaf in random.items() if prefix + p in rows}
    empty = [p for p, x in random.items() if p not in found and isinstance(x, jax.ShapeDtypeStruct)]
    known = {prefix + p for p in (*wanted, *found)}
    loose = [p for p in rows if p.startswith(prefix) and p not in known]
    if not prefix:
        tops = set(map(_top, wanted))
        loose = [p for p in loose if _top(p) in tops or _top(p) not in BESIDE]
    lines = [f"{p} is random state, abstract in the template and not in the checkpoint" for p in empty]
    _refuse(path, loose, lines)
    return found


def _check_optimizer(path: Path, prefix: str, rows: Mapping[str, Stored], wanted: Leaves) -> None:
    """Refuse leaves of an optimizer that the template does not have, though it has none at all."""
    known = {prefix + p for p in wanted}
    loose = [p for p in rows if p.startswith(prefix) and p not in known]
    tops = set(map(_top, wanted)) or {"opt", "opt_state", "optimizer", "tx_state"}
    _refuse(path, loose if prefix else [p for p in loose if _top(p) in tops], [])


def _refuse(path: Path, loose: Iterable[str], lines: list[str]) -> None:
    lines = [*(f"{p} is in the checkpoint and not in the template" for p in loose), *lines]
    if lines:
        raise CheckpointError(f"{path} does not fit the template:\n\t" + "\n\t".join(lines))


def _top(path: str) -> str:
    return path.partition(".")[0]


def _check(path: Path, chosen: Mapping[str, Mapping[str, Stored]], templates: Items, cast: bool) -> None:
    """Compare kinds. A key's is compared when it is read, since metadata tell of its data only."""
    lines = []
    for item, rows in chosen.items():
        likes = {p: leaf for p, leaf in templates[item].items() if not is_key(leaf)}
        kinds = {p: rows[p].kind for p in likes}
        lines += [f"{item}: {problem}" for problem in problems(kinds, likes, cast)]
    _refuse(path, (), lines)


def _placed(
    path: Path, stored: Mapping[str, Stored], wanted: Mapping[str, Any], around: Iterable[str], at: str | None
) -> tuple[str, Mapping[str, Stored]]:
    """The one place that fits, as a prefix of paths, and the paths in the reading in which it does."""
    fits = []
    for rows in _readings(stored):
        every = {p: _places(rows, p) for p in wanted}
        fits += [(prefix, rows) for prefix in set.intersection(*every.values())] if every else [("", rows)]
    known = [
        (p, rows)
        for p, rows in fits
        if (set(p.split(".")[:-1]) <= set(around) if at is None else p == _under(at))
    ]
    if len(known) == 1:
        return known[0]
    what = "fits at several places" if known else "does not fit at any place that is known by its name"
    others = sorted({prefix.rstrip(".") for prefix, _ in fits})
    hint = f"; it fits at {others}: say at=..." if others else ""
    raise CheckpointError(f"the template {what} in {path}{hint}\n\t" + _comparison(stored, wanted))


def _readings(stored: Mapping[str, Stored]) -> list[dict[str, Stored]]:
    """The paths as they are, and without the `value` in which NNX keeps an array."""
    short = {path.removesuffix(".value"): leaf for path, leaf in stored.items()}
    if len(short) < len(stored) or set(short) == set(stored):
        return [dict(stored)]
    return [dict(stored), short]


def _places(rows: Mapping[str, Stored], wanted: str) -> set[str]:
    ends = f".{wanted}"
    return {path.removesuffix(wanted) for path in rows if path == wanted or path.endswith(ends)}


def _under(at: str) -> str:
    return f"{at}." if at else ""


def _comparison(stored: Mapping[str, Stored], wanted: Mapping[str, Any]) -> str:
    ends = {path.removesuffix(".value") for path in stored}
    missing = [p for p in wanted if not any(path == p or path.endswith(f".{p}") for path in ends)]
    near = [f"did you mean {found} for {p}?" for p, found in near_names(missing, ends).items()]
    lines = [f"{p} is not in the checkpoint" for p in missing[:20]]
    return "\n\t".join([*lines, *near, f"the checkpoint has {_outline(stored)}"])


def _outline(stored: Mapping[str, Stored]) -> str:
    rows = [f"{path} {leaf.kind}" for path, leaf in stored.items()]
    return ", ".join(rows[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")


def _stored(metadata: Mapping[str | None, Any]) -> dict[str, Stored]:
    """Every leaf of a checkpoint's trees by path, behind its tree's name if a program has chosen that."""
    pairs = []
    for name, metas in metadata.items():
        front = () if name in UNNAMED else (DictKey(name),)
        rows = jax.tree_util.tree_flatten_with_path(metas)[0]
        pairs += [(tree.dotted((*front, *key)), Stored(name, i, _kind(x))) for i, (key, x) in enumerate(rows)]
    return tree.unique(pairs)


def _kind(meta: Any) -> Kind:
    """The kind that metadata tell; of a number there is the type alone."""
    if hasattr(meta, "shape") and hasattr(meta, "dtype"):
        return Kind(tuple(meta.shape), np.dtype(meta.dtype).name)
    return kind_of(meta) if isinstance(meta, bool | int | float) else Kind((), type(meta).__name__)


def _read(
    path: Path,
    metadata: Mapping[str | None, Any],
    chosen: Mapping[str, Mapping[str, Stored]],
    templates: Items,
) -> dict[str, Any]:
    """The chosen leaves, in the dtypes that are stored; the rest of each tree is not read."""
    made: dict[str, dict[str, Any]] = {item: {} for item in chosen}
    for name, metas in metadata.items():
        rows = [(item, p, x) for item, row in chosen.items() for p, x in row.items() if x.name == name]
        if not rows:
            continue
        targets = {x.index: _target(x.kind, templates[item][p]) for item, p, x in rows}
        leaves, treedef = jax.tree.flatten(metas)
        skipped = placeholder()
        wanted = treedef.unflatten([targets.get(i, skipped) for i in range(len(leaves))])
        found = jax.tree.leaves(read_tree(path, name, wanted))
        for item, p, x in rows:
            made[item][p] = _checked(found[x.index], targets[x.index], p)
    return made


def _target(kind: Kind, template: Any) -> Any:
    place = place_of(template)
    if is_key(template):
        return jax.ShapeDtypeStruct(template.shape, template.dtype, sharding=place)
    if place is None or not is_placeable(kind.dtype):
        return np.empty(kind.shape, kind.dtype)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=place)


def _checked(leaf: Any, target: Any, path: str) -> Any:
    if not hasattr(leaf, "shape") or kind_of(leaf) != kind_of(target):
        raise CheckpointError(
            f"Orbax has read {type(leaf).__name__} for {path}, and {kind_of(target)} is due"
        )
    return leaf


def _number(name: str) -> int | None:
    return int(name) if name.isdecimal() else None


def _binding(model: Any) -> Binding | None:
    try:
        return None if model is None else bind(model)
    except BindingError:
        return None
