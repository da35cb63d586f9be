"""Where the leaves of one Linen layer stand: in several collections, and not always below the layer.

A BatchNorm keeps its scale in `params` and its mean in `batch_stats`. A module that is made inside a compact
method and handed to another, as the cell of an RNN, has its variables beside that other module. Rules name
leaves relative to the layer, so each name is looked up here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import linen as nn

from jaxstate.adapters._linen_trace import Path, Shape, Variable
from jaxstate.errors import BindingError
from jaxstate.rules.declared import JaxOnly, Sum
from jaxstate.rules.fused import Fused
from jaxstate.rules.padded import Padded
from jaxstate.rules.rule import Rule
from jaxstate.rules.spectral import Spectral

# What Flax itself puts on a module, beside the fields and attributes that users name.
_OWN = ("parent", "name", "scope", "_parent_ref", "_state", "_id", "_compact_name_scope_modules")


def attributes(module: Any) -> Iterator[tuple[Path, nn.Module]]:
    """The modules that a module holds in fields and `setup` attributes, lists and dictionaries, in order.

    One that it shares its scope with stands in its place: what that one holds is its own. One that it stands
    in itself is no part of it.
    """
    for parts, child in _held(module):
        if child.path == module.path:
            yield from attributes(child)
        elif module.path[: len(child.path)] != child.path:
            yield parts, child


def sharing(module: Any) -> Iterator[Any]:
    """A module, and those that have one scope with it (`nn.share_scope`)."""
    yield module
    for _, child in _held(module):
        if child.path == module.path:
            yield from sharing(child)


def mounts_of(module: nn.Module, prefix: str = "") -> dict[str, Path]:
    """The paths of a module and of all that it holds, by what stands before their leaves in a rule."""
    mounts = {prefix: module.path}
    for parts, child in attributes(module):
        mounts |= mounts_of(child, prefix + "".join(f"{part}." for part in parts))
    return mounts


@dataclass(frozen=True)
class Places:
    """The leaves of a layer by their names in its rules."""

    mounts: Mapping[str, Path]
    leaves: Mapping[str, Variable]

    @classmethod
    def of(cls, mounts: Mapping[str, Path], below: Mapping[Path, list[Variable]]) -> "Places":
        """Look up all leaves below the mounted modules; of two with one name the parameter is meant."""
        leaves: dict[str, Variable] = {}
        for prefix, path in mounts.items():
            for leaf in below.get(path, ()):
                leaves.setdefault(prefix + ".".join(leaf.names[len(path) :]), leaf)
        return cls(mounts, leaves)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes as the layer declares them, by name in a rule."""
        return {name: leaf.inside for name, leaf in self.leaves.items()}

    def locate(self, rule: Any) -> Any:
        """A rule of the layer, with whole paths in place of relative names.

        Raises:
            BindingError: the rule names a leaf that the layer does not have.
        """
        match rule:
            case Rule():
                return rule.renamed(self._path(rule.path, rule.paths[0]))
            case Sum():
                return replace(rule, parts=tuple(self.locate(part) for part in rule.parts))
            case Fused():
                return Fused([self.locate(part) for part in rule.parts], rule.axis)
            case Padded():
                return replace(rule, rule=self.locate(rule.rule))
            case Spectral():
                weight, u = self.locate(rule.weight), self.locate(rule.u)
                return replace(rule, weight=weight, u=u, sigma=self._path(rule.sigma, rule.sigma))
            case JaxOnly():
                return replace(rule, path=self._path(rule.path, rule.path))
        return rule

    def _path(self, template: str, name: str) -> str:
        if name not in self.leaves:
            raise BindingError(f'a rule names the leaf "{name}", and the layer has {sorted(self.leaves)}')
        leaf = self.leaves[name]
        mount = max((m for m in self.mounts if name.startswith(m) and self._fits(m, leaf)), key=len)
        return ".".join((leaf.collection, *self.mounts[mount], "")) + template[len(mount) :]

    def _fits(self, mount: str, leaf: Variable) -> bool:
        return leaf.names[: len(self.mounts[mount])] == self.mounts[mount]


def _held(module: Any) -> Iterator[tuple[Path, nn.Module]]:
    for name, value in vars(module).items() if module is not None else ():
        if name not in _OWN:
            yield from _modules_in((name,), value)


def _modules_in(parts: Path, value: Any) -> Iterator[tuple[Path, nn.Module]]:
    if isinstance(value, nn.Module):
        if value.scope is not None:
            yield parts, value
        return
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # type: ignore[attr-defined]
    items = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    for name, item in items:
        yield from _modules_in((*parts, str(name)), item)
