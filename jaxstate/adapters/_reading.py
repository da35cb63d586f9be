"""From what an adapter reads in a model to the Rules of its Binding.

An adapter answers with a list of `Layer` (a module whose kind is known, with its rules) and `Leaf` (an array
of a module that is not), in torch's order of registration. What does not depend on the library is done
here: rules that the caller gave, stacked layers, tied modules, and the refusal of what is not known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxstate.adapters._options import Options
from jaxstate.adapters._stacks import Stacks, find_stacks
from jaxstate.binding import AnyRule, matches
from jaxstate.errors import BindingError
from jaxstate.layout import Layout
from jaxstate.rules.apart import apart
from jaxstate.rules.blocks import Blocks
from jaxstate.rules.declared import JaxOnly, Sum, Tied
from jaxstate.rules.fused import Fused
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Rule
from jaxstate.rules.running import Running
from jaxstate.rules.spectral import Spectral
from jaxstate.settings import Settings

Key = tuple[str, ...]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layer:
    """A module that is known: all leaves below it have rules.

    Attributes:
        key: the module's name in torch, its parts.
        path: what stands before each leaf's name, with the last dot; "" if the rules' paths are whole.
        kind: "linear", "conv", "norm", ...: what it is to its neighbours.
        rules: between keys and paths relative to the module; or, where they depend on it, a function from
            the number of stacked axes to the rules.
        expected: each leaf's shape as the module declares it, without stacked axes.
        actual: each leaf's shape as it is.
        same_as: the key under which the very same module stood before, if it did.
        elsewhere: for leaves that other modules share, and go by another path, that path.
        settings: what the module is set to beside its weights.
    """

    key: Key
    path: str
    kind: str
    rules: Sequence[AnyRule] | Callable[[int], Sequence[AnyRule]]
    expected: Shapes
    actual: Shapes
    same_as: Key | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    settings: Settings | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """An array of a module that is not known.

    Attributes:
        key: the array's name in torch, its parts.
        path: its path.
        shape: as it is.
        owner: the class of the module that holds it.
        buffer: True if no optimizer trains it.
        same_as: the key under which the very same array stood before, if it did.
    """

    key: Key
    path: str
    shape: tuple[int, ...]
    owner: str
    buffer: bool = False
    same_as: Key | None = None


@dataclass(frozen=True)
class Reading:
    """What an adapter found in a model.

    Attributes:
        found: layers and other arrays, in torch's order of registration.
        leaves: every leaf by its path; abstract is enough.
        call: the model as a pure function of its flat leaves, for tracing; None where it has no call.
        stacked: `{module: axis}` for stacks that the library itself marks.
    """

    found: Sequence[Layer | Leaf]
    leaves: Mapping[str, Any]
    call: Callable[..., Any] | None = None
    stacked: Mapping[str, int] = field(default_factory=dict)


def rules_of(reading: Reading, options: Options) -> list[AnyRule]:
    """The rules of a whole model, in torch's order of registration.

    Raises:
        BindingError: leaves whose layout is not known, with the Rules to paste; stacks that can be read
            in several ways; rules of the caller that name no leaf.
    """
    found = reading.found
    _check_as_is(found, options.as_is)
    given = _Given(_given_rules(found, options.rules))
    stacks = find_stacks(
        [part for part in found if isinstance(part, Layer)], {**reading.stacked, **options.stacked}
    )
    own = [_own_rules(part, stacks, options.as_is) for part in found]
    bound = _first_of_each([rule for rules in own for rule in rules or () if isinstance(rule, Rule)])
    rules, unknown = [], []
    for part, known in zip(found, own, strict=True):
        if known is None and isinstance(part, Leaf) and not given.has(part.path):
            known = _tied_leaf(part, bound)
            unknown += [part] if not known else []
        kept = [one for rule in known or () for one in given.kept(rule, bound)]
        rules += [*given.rules_for(paths_of(part)), *kept]
    if unknown:
        raise BindingError(_unknown(unknown))
    return list(_shared_once([*rules, *given.rest()]))


def _first_of_each(rules: Sequence[Rule]) -> dict[tuple[str, ...], Rule]:
    """The first rule of each leaf; those of other layers that share it are ties to it."""
    first: dict[tuple[str, ...], Rule] = {}
    for rule in rules:
        first.setdefault(rule.paths, rule)
    return first


def _given_rules(found: Sequence[Layer | Leaf], rules: Sequence[AnyRule]) -> list[AnyRule]:
    """The caller's rules; in a model of layers, whose order is torch's, each layer's on its own."""
    modules = any(isinstance(part, Layer) for part in found)
    return [one for rule in rules for one in (apart(rule) if modules else [rule])]


def _check_as_is(found: Sequence[Layer | Leaf], patterns: Sequence[str]) -> None:
    paths = [part.path for part in found if isinstance(part, Leaf)]
    if idle := [pattern for pattern in patterns if not any(matches(path, [pattern]) for path in paths)]:
        raise BindingError(
            f"as_is={idle}: no array outside of known layers has such a path; there are {paths}"
        )


def _own_rules(part: Layer | Leaf, stacks: Stacks, as_is: Sequence[str]) -> list[AnyRule] | None:
    return _layer_rules(part, stacks) if isinstance(part, Layer) else _leaf_rules(part, stacks, as_is)


def _layer_rules(layer: Layer, stacks: Stacks) -> list[AnyRule]:
    rules = layer.rules(stacks.depth(layer.key)) if callable(layer.rules) else layer.rules
    placed = [_moved(stacks.place(rule, layer.key, layer.path), layer) for rule in rules]
    if layer.same_as is None:
        return placed
    first = [stacks.place(rule, layer.same_as, layer.path) for rule in rules]
    return [tie for new, old in zip(placed, first, strict=True) for tie in _ties(new, old)]


def _moved(rule: AnyRule, layer: Layer) -> AnyRule:
    """The rule with the path by which a shared leaf goes."""
    moved = {layer.path + own: place for own, place in layer.elsewhere.items()}
    if moved.keys().isdisjoint(rule.paths):
        return rule
    if isinstance(rule, Rule) and rule.path in moved:
        return rule.renamed(moved[rule.path])
    if isinstance(rule, Padded):
        return replace(rule, rule=_moved(rule.rule, layer))
    if isinstance(rule, Fused):
        return Fused([_moved(part, layer) for part in rule.parts], rule.axis)  # type: ignore[misc]
    if isinstance(rule, Running):
        return rule.moved(moved)
    shared = ", ".join(moved[path] for path in rule.paths if path in moved)
    raise BindingError(f"{rule} shares {shared} with another layer, and no entry of torch's is a part of two")


def _tied_leaf(leaf: Leaf, bound: Mapping[tuple[str, ...], Rule]) -> list[AnyRule]:
    """A second name of a layer's weight: whatever its layout is, it is that of the layer."""
    rule = bound.get((leaf.path,))
    return [Tied(".".join(leaf.key), rule.key)] if rule and not rule.names else []


def _shared_once(rules: Sequence[AnyRule]) -> Iterator[AnyRule]:
    """One rule for a leaf that several layers share, and ties of the other keys to the first.

    Raises:
        BindingError: layers that read one leaf in different layouts.
    """
    first: dict[tuple[str, ...], Rule] = {}
    for rule in rules:
        yield _tie(rule, first.setdefault(rule.paths, rule)) if isinstance(rule, Rule) else rule


def _tie(rule: Rule, owner: Rule) -> Rule | Tied:
    if rule.key == owner.key:
        return rule
    if not _same_layout(rule, owner):
        raise BindingError(
            f"{rule} and {owner} share a leaf and read it in different layouts: in torch these are "
            "two parameters, one the transpose of the other"
        )
    return Tied(rule.key, owner.key, dict(rule.names))


def _same_layout(one: Rule, other: Rule) -> bool:
    """True for the same rearrangement, whatever its axes are called."""
    return one.names == other.names and _numbered(one.layout) == _numbered(other.layout)


def _numbered(layout: Layout) -> tuple[Any, ...]:
    number = {axis: n for n, axis in enumerate(axis for dim in layout.left for axis in dim)}
    sides = [[[number[axis] for axis in dim] for dim in side] for side in (layout.left, layout.right)]
    return (*sides, sorted(number[axis] for axis in layout.flipped))


def _leaf_rules(leaf: Leaf, stacks: Stacks, as_is: Sequence[str]) -> list[AnyRule] | None:
    """An array without axes, or with one, has one layout; of any other it cannot be known."""
    rank = len(leaf.shape) - stacks.depth(leaf.key)
    if rank > 1 and not matches(leaf.path, as_is):
        return None
    if leaf.same_as is not None:
        return [Tied(".".join(leaf.key), ".".join(leaf.same_as))]
    axes = " ".join(f"a{n}" for n in range(rank)) if rank > 1 else "a" * rank
    rule = Rule(leaf.key[-1], "", f"{axes} -> {axes}", buffer=leaf.buffer)
    return [stacks.place(rule, leaf.key[:-1], leaf.path)]


def _ties(new: Any, old: Any) -> list[Tied]:
    if isinstance(new, JaxOnly):
        return []
    if isinstance(new, Sum | Running):
        return [tie for pair in zip(new.parts, old.parts, strict=True) for tie in _ties(*pair)]
    if isinstance(new, Spectral | Blocks | Fused | Padded):
        return [Tied(*pair) for pair in zip(new.keys, old.keys, strict=True)]
    axes = dict(new.names) if isinstance(new, Rule) else new.axes
    return [Tied(new.key, old.key, axes)]


def paths_of(part: Layer | Leaf) -> list[str]:
    """The paths of a layer's leaves, or of an array."""
    if isinstance(part, Leaf):
        return [part.path]
    return [part.elsewhere.get(name, part.path + name) for name in part.actual]


@dataclass
class _Given:
    """The caller's own rules; each is taken up where the first of its leaves is registered."""

    rules: Sequence[AnyRule]
    taken: set[int] = field(default_factory=set)

    def __post_init__(self):
        self.owner = {path: n for n, rule in enumerate(self.rules) for path in rule.paths}

    def has(self, path: str) -> bool:
        return path in self.owner

    def kept(self, rule: AnyRule, bound: Mapping[tuple[str, ...], Rule]) -> list[AnyRule]:
        """What stays of a rule that was read: all of it, or that it gives the caller's leaf a second name."""
        owners = [self.rules[self.owner[path]] for path in rule.paths if path in self.owner]
        if not owners:
            return [rule]
        first = bound.get(rule.paths)
        if not isinstance(rule, Rule) or first is None:
            return []
        said = {key for other in self.rules for key in other.keys}
        is_named = owners[0].keys == first.keys and said.isdisjoint(rule.keys)
        is_second = is_named and _same_layout(rule, first)
        return [Tied(rule.key, first.key, dict(rule.names))] if is_second else []

    def rules_for(self, paths: Sequence[str]) -> list[AnyRule]:
        numbers = dict.fromkeys(self.owner[path] for path in paths if path in self.owner)
        new = [n for n in numbers if n not in self.taken]
        self.taken |= set(new)
        return [self.rules[n] for n in new]

    def rest(self) -> list[AnyRule]:
        return [rule for n, rule in enumerate(self.rules) if n not in self.taken]


def _unknown(leaves: Sequence[Leaf]) -> str:
    lines = [
        f"{leaf.path} of shape {leaf.shape} in {leaf.owner}: its layout is not known. Paste and adapt:\n"
        f'\t\tRule("{".".join(leaf.key)}", "{leaf.path}", "{_axes(leaf)} -> {_axes(leaf)}")  # JAX -> torch'
        for leaf in leaves
    ]
    more = (
        'pass them as js.bind(model, rules=[...]), or as_is="path" where torch has the very same axes, or '
        "give a class its rules: js.bind(model, layers={Class: lambda module: [Rule(...), ...]}), or a "
        "method torch_rules(self)"
    )
    return "cannot bind without a guess:\n\t" + "\n\t".join([*lines, more])


def _axes(leaf: Leaf) -> str:
    return " ".join("abcdefgh"[: len(leaf.shape)])
