"""Labels: which dimension is a channel and which is spatial, once all facts of a trace are in.

A label passes to whatever is equal to its dimension, and to its kin. Where two axes of different kinds are
merged, the merged dimension is a mixture; what is cut out of a mixture, or made of it in an unknown way,
is lost.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from jaxstate.adapters._axes import Dim
from jaxstate.adapters._facts import Claim, Facts, Kin, Label

TOKEN = Label("s", -1, 99)  # spatial, but several axes were one before it was made


class Loss(NamedTuple):
    """Why a dimension's positions are not known; `mixed` if they were of several kinds."""

    why: str
    mixed: bool
    dim: Dim = ()


class Labels(NamedTuple):
    """The labels of a trace, by dimension; and the losses of each atom."""

    of: Mapping[Dim, Set[Label]]
    around: Mapping[int, Set[Claim]]
    lost: Mapping[int, Loss]

    def whole(self, atom: int) -> Set[Label]:
        """The labels that this atom bears alone."""
        return self.of.get((atom,), frozenset())

    def kinds(self, atom: int) -> set[str]:
        """Spatial, channel or batch, as its own labels say; else as those of what it is a part of do."""
        own = self.whole(atom) or {claim.label for claim in self.around.get(atom, ())}
        return {label.kind for label in own}

    def mixed(self, dim: Dim) -> bool:
        """Are spatial axes and channels merged here, in another order than torch's?"""
        kinds = [self.kinds(atom) for atom in dim]
        spatial = [atom for atom, kind in enumerate(kinds) if "s" in kind]
        channel = [atom for atom, kind in enumerate(kinds) if kind == {"c"}]
        return bool(spatial and channel) and max(channel) > min(spatial)


def labels(facts: Facts) -> Labels:
    """Give every label to all that is equal or akin, until nothing new is said."""
    resolve = facts.axes.resolve
    resolved = (kin._replace(source=resolve(kin.source), target=resolve(kin.target)) for kin in facts.kins)
    kins = list(dict.fromkeys(kin for kin in resolved if kin.source and kin.target))
    known = _spoken({Claim(resolve(dim), label) for dim, label in facts.claims if resolve(dim)}, kins)
    return known._replace(lost=_losses(known, _leaks(facts, kins)))


def _spoken(claims: set[Claim], kins: list[Kin]) -> Labels:
    """All that follows from these claims. A kin is looked at again when its atoms have a new label."""
    of, around, touching = defaultdict(set), defaultdict(set), defaultdict(dict)
    for kin in kins:
        for atom in (*kin.source, *kin.target):
            touching[atom][kin] = None
    known, waiting = Labels(of, around, {}), dict.fromkeys(kins)
    while claims or waiting:
        for claim in sorted(claims):
            of[claim.dim].add(claim.label)
            for atom in claim.dim:
                around[atom].add(claim)
                waiting |= touching[atom]
        kin = waiting.popitem()[0] if waiting else None
        claims = _passed(known, kin) if kin else set()
    return known


def _passed(known: Labels, kin: Kin) -> set[Claim]:
    """What kin learn of each other: a pool reads what a convolution wrote, or writes what one will read."""
    both = ((kin.source, kin.target), (kin.target, kin.source))
    heard = {Claim(b, label) for a, b in both for label in _common(known, a)}
    return {claim for claim in heard if claim.label not in known.of.get(claim.dim, ())}


def _common(known: Labels, dim: Dim) -> Set[Label]:
    """The labels of a dimension as a whole."""
    if dim in known.of:
        return known.of[dim]
    each = [known.whole(atom) or {claim.label for claim in known.around.get(atom, ())} for atom in dim]
    if same := frozenset.intersection(*map(frozenset, each)):
        return same
    return frozenset({TOKEN} if all("s" in known.kinds(atom) for atom in dim) else ())


class _Leak(NamedTuple):
    """Where positions are lost: a slice of a mixture, or anything at all in an unknown primitive."""

    sources: tuple[Dim, ...]
    targets: tuple[Dim, ...]
    why: str
    any_label: bool


def _leaks(facts: Facts, kins: Iterable) -> list[_Leak]:
    def resolved(dims: Iterable[Dim]) -> tuple[Dim, ...]:
        return tuple(map(facts.axes.resolve, dims))

    return [
        *(_Leak((kin.source,), (kin.target,), kin.why, False) for kin in kins if kin.indexed),
        *(_Leak(resolved(loss.sources), resolved(loss.targets), loss.why, True) for loss in facts.losses),
    ]


def _losses(known: Labels, leaks: list[_Leak]) -> dict[int, Loss]:
    """Downstream and upstream apart: what was concatenated with a mixture is no mixture itself."""
    back = [leak._replace(sources=leak.targets, targets=leak.sources) for leak in leaks]
    up, down = _spread(known, back), _spread(known, leaks)
    return {**up, **down, **{atom: loss for atom, loss in up.items() if loss.mixed}}


def _spread(known: Labels, leaks: list[_Leak]) -> dict[int, Loss]:
    lost: dict[int, Loss] = {}
    before = None
    while before != lost:
        before = dict(lost)
        for leak in leaks:
            if (loss := _loss(known, lost, leak)) is not None:
                for atom, whole in ((atom, target) for target in leak.targets for atom in target):
                    if atom not in lost or loss.mixed > lost[atom].mixed:
                        lost[atom] = loss._replace(dim=whole)
    return lost


def _loss(known: Labels, lost: Mapping[int, Loss], leak: _Leak) -> Loss | None:
    atoms = [atom for dim in leak.sources for atom in dim]
    earlier = [lost[atom] for atom in atoms if atom in lost]
    if any(known.mixed(dim) for dim in leak.sources):
        return Loss(leak.why, True)
    if earlier:
        return max(earlier, key=lambda loss: loss.mixed)
    if leak.any_label and any(known.kinds(atom) & {"s", "c"} for atom in atoms):
        return Loss(leak.why, False)
    return None
