"""Verdict: what the labels of a leaf's dimension mean for torch: a permutation, nothing, or a question.

torch flattens an image as channels first, then its spatial axes in order. A dimension that merges a
channel with spatial axes in any other order is permuted, where each of its atoms is known for what it is
and nothing says that torch held the image channels-last there itself, as a transformer does.
"""

from typing import NamedTuple

from jaxstate.adapters._axes import Dim
from jaxstate.adapters._facts import Claim, Facts, Label
from jaxstate.adapters._labels import TOKEN, Labels, Loss
from jaxstate.adapters._merged import Merged


class _Atom(NamedTuple):
    """One atom of a leaf's dimension: "s", "c", "?" for both at once, "" for neither; and its axis."""

    atom: int
    kind: str
    axis: Claim | None  # the whole axis that it is a part of, where all of it is in this dimension
    labels: frozenset[Label]


def verdict(facts: Facts, known: Labels, dim: Dim) -> Merged | str | None:
    """The axes to permute, or why they cannot be told, or None where there is nothing to do."""
    if mixture := _lost_mixture(known, dim):
        return f"image axes merged with channels pass through `{mixture.why}`, which is not followed"
    atoms = [_atom(known, atom, dim) for atom in dim]
    if len(dim) < 2 or not _matters(known, atoms) or _in_order(atoms):
        return None
    return _refusal(facts, known, atoms) or _merged(facts, atoms)


def axis_name(known: Labels, dim: Dim) -> str:
    """The name of the one image axis that a dimension is, or ""."""
    atoms = [_atom(known, atom, dim) for atom in dim]
    claims = {atom.axis for atom in atoms}
    claim = claims.pop() if len(claims) == 1 else None
    return claim.label.name if claim and claim.dim == dim and atoms[0].kind != "?" else ""


def _lost_mixture(known: Labels, dim: Dim) -> Loss | None:
    """A mixture that was lost, unless this dimension is but a well-known part of it."""
    losses = [(atom, known.lost[atom]) for atom in dim if atom in known.lost]
    mixtures = [
        loss for atom, loss in losses if loss.mixed and (set(loss.dim) <= set(dim) or not known.whole(atom))
    ]
    return next(iter(mixtures), None)


def _atom(known: Labels, atom: int, dim: Dim) -> _Atom:
    claims = [claim for claim in known.around.get(atom, ()) if claim.label.kind in "sc"]
    kinds = _kinds(known, atom, claims)
    kind = "?" if len(kinds) > 1 else "".join(kinds)
    own = [claim for claim in claims if claim.label.kind == kind and not _mixture(known, claim)]
    rank = max((claim.label.rank for claim in own), default=0)
    finest = [claim for claim in own if claim.label.rank == rank]
    whole = [claim for claim in finest if set(claim.dim) <= set(dim)]
    axis = max(whole, key=lambda claim: (len(claim.dim), claim), default=None)
    return _Atom(atom, kind, axis, frozenset(claim.label for claim in finest))


def _kinds(known: Labels, atom: int, claims: list[Claim]) -> set[str]:
    """What an atom is by its own labels; else, as part of larger dimensions, spatial before channel."""
    own = {label.kind for label in known.whole(atom)} & {"s", "c"}
    parts = {claim.label.kind for claim in claims if len(claim.dim) > 1 and not _mixture(known, claim)}
    against = {claim.label.kind for claim in claims if _contradicted(known, claim)}
    if own or against:
        return own | against
    return {"s"} if "s" in parts else parts


def _inside(known: Labels, claim: Claim) -> set[str]:
    return {label.kind for atom in claim.dim for label in known.whole(atom)} & {"s", "c"}


def _mixture(known: Labels, claim: Claim) -> bool:
    """A dimension read as one axis that is several: features and channels read by a 1d convolution."""
    return len(claim.dim) > 1 and len(_inside(known, claim)) > 1


def _contradicted(known: Labels, claim: Claim) -> bool:
    """A dimension read as a channel that is made of spatial axes only, or the reverse."""
    inside = _inside(known, claim)
    return len(claim.dim) > 1 and bool(inside) and claim.label.kind not in inside


def _matters(known: Labels, atoms: list[_Atom]) -> bool:
    kinds = {atom.kind for atom in atoms}
    if kinds & {"s", "?"}:
        return kinds != {"s"}
    lost = [atom for atom in atoms if not atom.kind and atom.atom in known.lost]
    return bool(lost) and (len(lost) > 1 or "c" in kinds)


def _in_order(atoms: list[_Atom]) -> bool:
    """Channels, then spatial axes in their order: torch's order, whoever made it."""
    places = [_place(atom) for atom in atoms]
    spatial = [atom.labels for atom in atoms if atom.kind == "s"]
    known = all(atom.kind != "?" for atom in atoms) and all(len(labels) == 1 for labels in spatial)
    return known and bool(spatial) and places == sorted(places)


def _place(atom: _Atom) -> tuple[bool, int]:
    return atom.kind == "s", min((label.axis for label in atom.labels if atom.kind == "s"), default=0)


def _refusal(facts: Facts, known: Labels, atoms: list[_Atom]) -> str | None:
    """Why the order cannot be told."""
    axes, spatial = _axes(atoms), [_place(atom) for atom in atoms if atom.kind == "s"]
    if any(atom.kind == "?" or len(atom.labels) > 1 for atom in atoms):
        return "it is used in two ways that contradict each other"
    if unknown := [atom for atom in atoms if not atom.kind]:
        return _unknown(facts, known, unknown)
    whole = all(atom.axis for atom in atoms)
    if not whole or [atom for axis in axes for atom in axis.dim] != [atom.atom for atom in atoms]:
        return "it merges parts of image axes"
    if len({axis.label for axis in axes}) < len(axes):
        return "it merges two axes of the same kind"
    if spatial != sorted(spatial):
        return "it merges spatial axes in another order than a convolution has them"
    if any(TOKEN in atom.labels for atom in atoms) or _tokens(facts, known, atoms):
        return "the image's pixels are a sequence here, and torch may hold its channels last too"
    if _pointwise(facts, atoms):
        return "a linear layer made the channels, and torch may hold them last there too"
    return None


def _unknown(facts: Facts, known: Labels, unknown: list[_Atom]) -> str:
    length = facts.axes.length(tuple(atom.atom for atom in unknown[:1]))
    lost = [known.lost[atom.atom].why for atom in unknown if atom.atom in known.lost]
    where = f", lost in `{lost[0]}`, which is not followed" if lost else ""
    return f"it merges image axes with an axis of length {length} that is of no known kind{where}"


def _split(atoms: list[_Atom]) -> tuple[set[int], set[int]]:
    spatial = {atom.atom for atom in atoms if atom.kind == "s"}
    return spatial, {atom.atom for atom in atoms} - spatial


def _tokens(facts: Facts, known: Labels, atoms: list[_Atom]) -> bool:
    """Was there an array with all these pixels in one dimension, and these channels in another?"""
    spatial, channel = _split(atoms)
    arrays = [[set(facts.axes.resolve(dim)) for dim in dims] for dims in facts.merges]
    several = len({atom.labels for atom in atoms if atom.kind == "s"}) > 1
    return several and any(
        spatial in dims and any(dim & channel and not dim & spatial for dim in dims) for dims in arrays
    )


def _pointwise(facts: Facts, atoms: list[_Atom]) -> bool:
    """Did a linear layer make these channels while it kept these pixels?"""
    spatial, channel = _split(atoms)

    def within(dims: tuple[Dim, ...], wanted: set[int]) -> bool:
        return bool({atom for dim in dims for atom in facts.axes.resolve(dim)} & wanted)

    return any(within(fact.kept, spatial) and within(fact.made, channel) for fact in facts.pointwise)


def _merged(facts: Facts, atoms: list[_Atom]) -> Merged:
    axes = _axes(atoms)
    ordered = sorted(axes, key=lambda axis: (axis.label.kind == "s", axis.label.axis))
    lengths = tuple((axis.label.name, facts.axes.length(axis.dim)) for axis in axes)
    return Merged(lengths, tuple(axis.label.name for axis in ordered))


def _axes(atoms: list[_Atom]) -> list[Claim]:
    """The whole axes that these atoms are of, in the order in which they come."""
    return list(dict.fromkeys(atom.axis for atom in atoms if atom.axis))
