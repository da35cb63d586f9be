"""Facts: what a trace says of dimensions, beyond which are equal. Recorded here, weighed in `_verdict`.

A convolution names the dimensions it reads and writes. A pooling or a slice makes another dimension of
the same kind. A primitive that nobody described makes dimensions of which nothing is known. All of it is
written down in the order of the program and read at its end, when every equation is in.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxstate.adapters._axes import Axes, Dim


class Label(NamedTuple):
    """What a convolution calls a dimension: batch "n", channel "c", or spatial "s", one of `rank` axes."""

    kind: str
    axis: int = 0
    rank: int = 0

    @property
    def name(self) -> str:
        """The axis as a layout writes it: c; w, h w or d h w."""
        if self.kind != "s":
            return self.kind
        return "dhw"[self.axis - self.rank] if self.rank <= 3 else f"s{self.axis}"


class Claim(NamedTuple):
    """A dimension that has a label."""

    dim: Dim
    label: Label


class Kin(NamedTuple):
    """Two dimensions of one kind, not of the same positions: `target` was made from `source`.

    `indexed`: positions of one come from positions of the other, as a slice does it; were the source a
    mixture of axes, it could be told from the target no more. A matrix product only keeps the kind.
    """

    source: Dim
    target: Dim
    why: str
    indexed: bool = True


class Lost(NamedTuple):
    """Dimensions that a primitive made of others in a way that is not known here."""

    sources: tuple[Dim, ...]
    targets: tuple[Dim, ...]
    why: str


class Pointwise(NamedTuple):
    """A product with a leaf that kept some dimensions beside those that it made."""

    kept: tuple[Dim, ...]
    made: tuple[Dim, ...]


class Value(NamedTuple):
    """An array of the trace: its dimensions, and whether it depends on leaves and on inputs."""

    dims: tuple[Dim, ...]
    of_leaf: bool = False
    of_input: bool = False


@dataclass(frozen=True)
class Facts:
    """Everything that one trace says. The lists grow while it is read."""

    axes: Axes = field(default_factory=Axes)
    claims: list[Claim] = field(default_factory=list)
    kins: list[Kin] = field(default_factory=list)
    losses: list[Lost] = field(default_factory=list)
    pointwise: list[Pointwise] = field(default_factory=list)
    merges: list[tuple[Dim, ...]] = field(default_factory=list)  # the dimensions a reshape made

    def fresh(self, shape: Iterable[int]) -> tuple[Dim, ...]:
        """Dimensions that nothing is known of."""
        return tuple(self.axes.fresh(length) for length in shape)

    def equal(self, a: Dim, b: Dim, why: str) -> Dim:
        """Two dimensions index the same positions; what cannot be factored alike is only kin, both ways."""
        if (rest := self.axes.match(a, b)) is not None:
            left, right = rest
            self.kins.extend([Kin(left, right, why), Kin(right, left, why)])
        return a

    def equal_all(self, left: Sequence[Dim], right: Sequence[Dim], why: str) -> None:
        """Arrays of one shape index the same positions."""
        for a, b in zip(left, right, strict=True):
            self.equal(a, b, why)

    def kin(self, source: Dim, target: Dim, why: str, indexed: bool = True) -> Dim:
        """The target is made from the source, position by position or not."""
        self.kins.append(Kin(source, target, why, indexed))
        return target

    def lose(self, sources: Iterable[Dim], targets: Iterable[Dim], why: str) -> None:
        """The targets are made from the sources, nobody knows how."""
        self.losses.append(Lost(tuple(sources), tuple(targets), why))
