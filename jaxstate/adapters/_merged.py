"""Merged: one dimension of a leaf that holds several image axes, as JAX orders them and as torch does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Merged:
    """The axes merged in one dimension of a leaf: in JAX's order with their lengths, and in torch's.

    >>> from jaxstate.layout import Layout
    >>> rows = Merged((("h", 5), ("w", 5), ("c", 16)), ("c", "h", "w"))
    >>> Layout(f"{rows.left} o -> o {rows.right}", **rows.sizes)
    Layout("(h w c) o -> o (c h w)", c=16, h=5, w=5)
    """

    axes: tuple[tuple[str, int], ...]
    torch: tuple[str, ...]

    @property
    def left(self) -> str:
        """The dimension as JAX merges it, in einops notation."""
        return f"({' '.join(name for name, _ in self.axes)})"

    @property
    def right(self) -> str:
        """The dimension as torch merges it."""
        return f"({' '.join(self.torch)})"

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each axis."""
        return dict(self.axes)

    def prefixed(self, prefix: str) -> "Merged":
        """The same with other names, for a layout that has an h, w or c of its own.

        >>> Merged((("w", 3), ("c", 2)), ("c", "w")).prefixed("in_").right
        '(in_c in_w)'
        """
        axes = tuple((prefix + name, size) for name, size in self.axes)
        return Merged(axes, tuple(prefix + name for name in self.torch))
