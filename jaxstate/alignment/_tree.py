"""A state_dict as a tree of modules: what kinds of entries a layer has, and which layers are below a module.

Both sides of an alignment are such trees. They speak torch's language already: an entry's kind is what
torch calls it, and its shape is torch's.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

Shape = tuple[int, ...]

# An older or another name of the same kind of entry; the layouts are those of the rules, on either side.
_KINDS = {
    **{name: name for name in ("weight", "bias", "running_mean", "running_var", "in_proj_weight")},
    **{name: name for name in ("in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")},
    **dict.fromkeys(("gamma", "scale", "kernel", "embedding"), "weight"),
    **dict.fromkeys(("beta", "offset"), "bias"),
    **dict.fromkeys(("weight_g", "parametrizations.weight.original0"), "magnitude"),
    **dict.fromkeys(("weight_v", "parametrizations.weight.original1"), "direction"),
    **dict.fromkeys(("weight_orig", "parametrizations.weight.original"), "original"),
    **{f"parametrizations.weight.0.{name}": name for name in ("_u", "_v")},
}
_GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


@dataclass(frozen=True, eq=False)
class Node:
    """A module, or one layer.

    Attributes:
        name: its dotted name from the root.
        profile: the layers below, each as its kinds of entries and their shapes, with their count.
        position: where its first entry stands in the state_dict.
        last: where its last one does.
        children: its modules; none for a layer.
        entries: the keys of a layer by their kind; none for a module.
        said: True if the model's caller chose its name, which then tells nothing of its neighbours'.
    """

    name: str
    profile: frozenset[tuple[tuple[tuple[str, Shape], ...], int]]
    position: int
    last: int
    children: tuple["Node", ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    said: bool = False

    @property
    def size(self) -> int:
        """How many layers are below."""
        return sum(count for _, count in self.profile)

    def relative(self, base: str) -> str:
        """The name below another module."""
        return self.name.removeprefix(base).removeprefix(".")


def split(key: str) -> tuple[str, str]:
    """The layer that an entry is of, and its kind; an entry of no known kind is a layer of its own.

    >>> split("h.0.ln.gamma"), split("conv.parametrizations.weight.original0"), split("vit.cls_token")
    (('h.0.ln', 'weight'), ('conv', 'magnitude'), ('vit.cls_token', ''))
    """
    start, mark, rest = key.rpartition("parametrizations.")
    layer, _, entry = (start[:-1], "", mark + rest) if mark else key.rpartition(".")
    kind = entry if entry.startswith(_GATES) else _KINDS.get(entry, "")
    return (layer, kind) if kind else (key, "")


def tree(
    shapes: Mapping[str, Shape], without: Collection[str] = (), said: frozenset[str] = frozenset()
) -> Node:
    """The tree of a state_dict's keys and shapes.

    Args:
        shapes: torch's shape of each key, in order.
        without: keys to leave out.
        said: keys whose names the caller chose.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        layer, kind = split(key)
        # Two spellings of one kind side by side are two parameters.
        name, kind = (layer, kind) if kind not in layers.get(layer, {}) else (key, "")
        if key not in without:
            layers.setdefault(name, {})[kind] = key
    place = {key: n for n, key in enumerate(shapes)}
    leaves = [_leaf(name, entries, shapes, place) for name, entries in layers.items()]
    chosen = [replace(leaf, said=not said.isdisjoint(leaf.entries.values())) for leaf in leaves]
    return _module("", chosen)


def _leaf(
    name: str, entries: Mapping[str, str], shapes: Mapping[str, Shape], place: Mapping[str, int]
) -> Node:
    kinds = tuple(sorted((kind, shapes[key]) for kind, key in entries.items()))
    places = [place[key] for key in entries.values()]
    return Node(name, frozenset({(kinds, 1)}), min(places), max(places), entries=entries)


def _module(name: str, leaves: list[Node]) -> Node:
    """A module of these layers; one that stands at the module's own name is a child like the others."""
    prefix = f"{name}." if name else ""
    groups: dict[str, list[Node]] = {}
    for leaf in leaves:
        rest = leaf.name.removeprefix(prefix) if leaf.name != name else ""
        groups.setdefault(rest.split(".")[0], []).append(leaf)
    children = tuple(
        group[0] if len(group) == 1 else _module(prefix + part, group) for part, group in groups.items()
    )
    counts = Counter()
    for child in children:
        counts.update(dict(child.profile))
    first = min((child.position for child in children), default=0)
    last = max((child.last for child in children), default=0)
    said = all(child.said for child in children)
    return Node(name, frozenset(counts.items()), first, last, children, said=said)
