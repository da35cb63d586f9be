"""Equinox's side of a comparison: a model, or `(model, state)`, is run, or a copy of it is watched.

Modules are pytrees, taken apart and put together again on their way through a call, so no object stays the
same. The copy's modules are of classes derived from the user's, whose `__call__` notes what it takes and
gives; where a module stands is a static field of it, and survives. Nothing is left on the user's classes.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxstate.adapters import _equinox
from jaxstate.adapters._equinox_layers import kind_of
from jaxstate.adapters._equinox_state import parted as pair_of
from jaxstate.binding import Binding
from jaxstate.convert import bind
from jaxstate.errors import ParityError
from jaxstate.testing._arrays import named_arrays
from jaxstate.testing._calls import Call, Module
from jaxstate.testing._vmapped import Notes
from jaxstate.tree import children, dotted

Run = Callable[[Any], Any]

WORDS = {"nnx.max_pool": "eqx.nn.MaxPool", "nnx.avg_pool": "eqx.nn.AvgPool", "nnx.": "jax.nn."}

_PLACE = "_jaxstate_place"


def call(model: Any, *inputs: Any, **kwargs: Any) -> Any:
    """The model of the inputs as they are; for a batch of them a model is mapped, and the caller says how.

    Raises:
        ParityError: a stateful model, whose call only the caller knows.
    """
    if pair_of(model).state is not None:
        raise ParityError(
            "how a stateful model is called has to be said: call=lambda pair, x: jax.vmap("
            'eqx.nn.inference_mode(pair[0]), axis_name="batch", in_axes=(0, None), out_axes=(0, None))'
            "(x, pair[1])[0]"
        )
    return model(*inputs, **kwargs)


def outputs_of(model: Any, run: Run) -> dict[str, np.ndarray]:
    """What the model returns, as arrays by name; a State is none of it."""
    return named_arrays(_stateless(run(model)))


def drawing(model: Any) -> list[str]:
    """None that would not say so: its call is given the keys that it draws with."""
    return []


def tree_of(model: Any) -> Any:
    """What `state_dict` reads."""
    return model


def returned(model: Any, leaves: Mapping[str, Any], run: Run) -> Any:
    """What a model with these leaves returns; it may be traced."""
    return _stateless(run(_equinox.with_leaves(model, leaves)))


def parted(model: Any) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """What an optimizer trains, what it does not, and how both make a model again."""
    equinox, pair = sys.modules["equinox"], pair_of(model)
    params, rest = equinox.partition(pair.tree, equinox.is_inexact_array)
    arrays, static = equinox.partition((rest, pair.state), equinox.is_array)

    def make(params: Any, arrays: Any) -> Any:
        rest, state = equinox.combine(arrays, static)
        tree = equinox.combine(params, rest)
        return tree if pair.state is None else (tree, state)

    return params, arrays, make


def loss_and_rest(make: Any, params: Any, rest: Any, loss: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """A loss. It returns no State, so running statistics stay what they are."""
    return loss(make(params, rest), *batch), rest


def bound(model: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Binding:
    """The model's own reading. Channels are first as in torch, so that no flatten has to be found."""
    return bind(model)


def modules_of(model: Any, run: Run) -> list[Module]:
    """Every module, with the leaves below it by the names that a Binding gives them."""
    paths = list(_equinox.leaves(model))
    return [
        Module(path, node, _below(paths, path), kind_of(node) != "")
        for path, node in _modules(pair_of(model).tree)
    ]


def watched(model: Any, run: Run) -> list[Call]:
    """Run a copy of the model and note every call of every module in it, in the order in which they end.

    Nothing is jitted, since inside a jit there are no values. A model that does not run is watched until it
    stops; what it raised has been said by then.
    """
    pair, notes = pair_of(model), Notes()
    tree = _watching(pair.tree, (), notes)
    with jax.disable_jit(), suppress(Exception):
        run(tree if pair.state is None else (tree, pair.state))
    return notes.calls


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a module stands, and what is told when it is called. It is static: one is like no other."""

    path: str
    notes: Notes | None = None


def _watching(node: Any, path: tuple[Any, ...], notes: Notes) -> Any:
    """A copy of a model that notes the calls of its modules."""
    found, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    if [entry for entry, _ in found] == [()]:
        return node
    copy = treedef.unflatten([_watching(child, (*path, *entry), notes) for entry, child in found])
    if _is_watched(node) and (kind := _noting(type(node))) is not None:
        object.__setattr__(copy, "__class__", kind)
        object.__setattr__(copy, _PLACE, _Place(dotted(path), notes))
    return copy


@cache
def _noting(kind: type) -> Any:
    """A class of modules like those of another, whose calls are noted; None where none can be derived."""

    def noted(module: Any, *args: Any, **kwargs: Any) -> Any:
        place = getattr(module, _PLACE)
        outputs = super(derived, module).__call__(*args, **kwargs)  # type: ignore[misc]
        if place.notes is not None:
            place.notes.take(place.path, kind.__name__, _stateless((*args, kwargs)), _stateless(outputs))
        return outputs

    static = sys.modules["equinox"].field(static=True, default=_Place(""))
    body = {
        "__call__": noted,
        "__module__": kind.__module__,
        "__annotations__": {_PLACE: Any},
        _PLACE: static,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Equinox says of a class it has said of the user's own
            derived = type(kind)(kind.__name__, (kind,), body)
    except TypeError:
        return None
    return derived


def _modules(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every module with its path, outer ones first."""
    if _is_module(node):
        yield dotted(path), node
    for entry, child in children(node):
        yield from _modules(child, (*path, *entry))


def _is_module(node: Any) -> bool:
    return isinstance(node, sys.modules["equinox"].Module)


def _is_watched(node: Any) -> bool:
    nn = sys.modules["equinox"].nn
    return _is_module(node) and callable(node) and not isinstance(node, nn.Shared | nn.StateIndex)


def _below(paths: list[str], prefix: str) -> frozenset[str]:
    return frozenset(path for path in paths if not prefix or path.startswith(f"{prefix}."))


def _stateless(value: Any) -> Any:
    """A value, or values, without a State among them; one that is left is itself."""
    state = sys.modules["equinox"].nn.State
    if not isinstance(value, tuple) or not any(isinstance(part, state) for part in value):
        return value
    kept = tuple(part for part in value if not isinstance(part, state))
    return kept[0] if len(kept) == 1 else kept
