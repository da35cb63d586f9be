"""Layers that a scan or a vmap stacked: one leaf for all of them, where torch has a module for each.

No library marks such leaves. What tells is that a leaf has an axis more than its module declares. The stack
is then the module that holds all such layers of one length, and torch counts it: `blocks.0.`, `blocks.1.`.
Which axis counts the layers is read from the shapes; where they fit in two ways, the caller is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxstate.errors import BindingError

Key = tuple[str, ...]
AXIS = "l"


@dataclass(frozen=True)
class Stack:
    """A module whose layers are stacked: how many there are, and which axis of each leaf counts them."""

    root: Key
    length: int
    positions: Mapping[str, int]  # by leaf; "" for leaves that are not declared


@dataclass(frozen=True)
class Stacks:
    """All stacks of a model."""

    stacks: tuple[Stack, ...]

    def of(self, key: Key) -> Stack | None:
        """The stack that a module stands in."""
        return next((stack for stack in self.stacks if key[: len(stack.root)] == stack.root), None)

    def depth(self, key: Key) -> int:
        """How many axes of this module's leaves are stacked ones."""
        return 0 if self.of(key) is None else 1

    def place(self, rule: Any, key: Key, path: str) -> Any:
        """A rule of a module that stands at a place, with its stack's axis if it is in one."""
        stack = self.of(key)
        if stack is None:
            return rule.at(_prefix(key), path)
        name = _prefix(stack.root) + f"{{{AXIS}}}." + _prefix(key[len(stack.root) :])
        positions = {stack.positions.get(path + leaf, stack.positions[""]) for leaf in rule.paths or [""]}
        if len(positions) > 1:
            raise BindingError(f"the leaves of {rule} are stacked along different axes: {sorted(positions)}")
        return rule.stacked(name, path, AXIS, range(stack.length), positions.pop())


def find_stacks(layers: Sequence[Any], given: Mapping[str, int]) -> Stacks:
    """The stacks of a model.

    Args:
        layers: what an adapter found, each with `key`, `path`, `expected` and `actual`.
        given: `{module: axis}` for stacks that the caller named; "" is the model itself.

    Raises:
        BindingError: a leaf that is not what its module declares; an axis that shapes do not tell.
    """
    named = tuple(
        _named_stack(layers, tuple(root.split(".")) if root else (), axis) for root, axis in given.items()
    )
    rest = [layer for layer in layers if layer.expected and Stacks(named).of(layer.key) is None]
    lengths = {id(layer): _lengths(layer) for layer in rest}
    stacked = [layer for layer in rest if lengths[id(layer)]]
    roots = _roots((), rest, {layer.key: lengths[id(layer)] for layer in stacked}) if stacked else []
    return Stacks((*named, *(_stack(root, [s for s in stacked if _below(s.key, root)]) for root in roots)))


def _lengths(layer: Any) -> frozenset[int]:
    """The lengths that the stack may have; empty if every leaf is as its module declares it."""
    lengths: set[int] | None = None
    for leaf, expected in layer.expected.items():
        actual = layer.actual[leaf]
        if actual == expected:
            found = set()
        elif not (found := {actual[n] for n in _fits(actual, expected)}):
            raise BindingError(
                f"leaf {layer.path}{leaf} has shape {actual}, and its module declares {expected}; "
                "one more axis would be a stack of layers, this is not"
            )
        lengths = found if lengths is None else lengths & found
    return frozenset(lengths or ())


def _fits(actual: tuple[int, ...], expected: tuple[int, ...]) -> list[int]:
    """The axes without which a leaf has the declared shape."""
    return [n for n in range(len(actual)) if actual[:n] + actual[n + 1 :] == expected]


def _roots(prefix: Key, layers: Sequence[Any], lengths: Mapping[Key, frozenset[int]]) -> list[Key]:
    """The lowest modules that hold whole stacks: all layers below are stacked, and by one length."""
    here = [layer.key for layer in layers if _below(layer.key, prefix)]
    common = frozenset.intersection(*(lengths.get(key, frozenset()) for key in here))
    if common and (prefix or () in here):
        return [_shared_prefix(here)]
    children = dict.fromkeys(key[: len(prefix) + 1] for key in here if key in lengths and key != prefix)
    return [root for child in children for root in _roots(child, layers, lengths)]


def _stack(root: Key, layers: Sequence[Any]) -> Stack:
    fits = {
        layer.path + leaf: (layer.actual[leaf], _fits(layer.actual[leaf], expected))
        for layer in layers
        for leaf, expected in layer.expected.items()
    }
    shared = set.intersection(*(set(positions) for _, positions in fits.values()))
    single = {leaf: positions[0] for leaf, (_, positions) in fits.items() if len(positions) == 1}
    if len(shared) > 1 or (not shared and len(single) < len(fits)):
        shape = next(shape for shape, positions in fits.values() if len(positions) > 1)
        raise BindingError(
            f"{'.'.join(root)} is a stack of layers, and its shapes, such as {shape}, do not tell which axis "
            f'counts them; say js.bind(model, stacked={{"{".".join(root)}": 0}}) if it is the first'
        )
    positions = {leaf: min(shared) for leaf in fits} if shared else single
    leaf, position = next(iter(positions.items()))
    return Stack(root, fits[leaf][0][position], {**positions, "": position})


def _named_stack(layers: Sequence[Any], root: Key, axis: int) -> Stack:
    leaves = {
        layer.path + leaf: layer.actual[leaf]
        for layer in layers
        if _below(layer.key, root)
        for leaf in layer.actual
    }
    if not leaves:
        raise BindingError(f'stacked={{"{".".join(root)}": {axis}}}: no layer has a name like that')
    lengths = {shape[axis] if -len(shape) <= axis < len(shape) else -1 for shape in leaves.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise BindingError(
            f'stacked={{"{".".join(root)}": {axis}}}: no one length along that axis in {leaves}'
        )
    positions = {leaf: axis % len(shape) for leaf, shape in leaves.items()}
    return Stack(root, lengths.pop(), {**positions, "": max(axis, 0)})


def _below(key: Key, root: Key) -> bool:
    return key[: len(root)] == root


def _shared_prefix(keys: Sequence[Key]) -> Key:
    shortest = min(keys, key=len)
    count = next((n for n, part in enumerate(shortest) if len({key[n] for key in keys}) > 1), len(shortest))
    return shortest[:count]


def _prefix(key: Key) -> str:
    return "".join(f"{part}." for part in key)
