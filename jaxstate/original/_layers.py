"""Layers of a JAX model as torch's modules: what each is set to, and under which names torch has it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxstate.adapters._reading import Layer, Reading
from jaxstate.binding import Binding
from jaxstate.errors import BindingError
from jaxstate.settings import Settings


@dataclass(frozen=True)
class Known:
    """A layer.

    Attributes:
        names: of torch's modules that it is; a stack is several.
        path: of its leaves, up to their own names.
        kind: "linear", "embedding", ..., as an adapter calls it.
        settings: what it is set to.
    """

    names: tuple[str, ...]
    path: str
    kind: str
    settings: Settings


def layers_of(reading: Reading, binding: Binding) -> list[Known]:
    """Every layer that was read, by the names that its binding gives it in the end."""
    keys = {path: rule.keys for rule in binding.rules for path in rule.paths}
    return [_known(part, keys) for part in reading.found if isinstance(part, Layer)]


def _known(layer: Layer, keys: Mapping[str, tuple[str, ...]]) -> Known:
    paths = [layer.elsewhere.get(leaf, layer.path + leaf) for leaf in layer.actual]
    tails = sorted(_tails(layer), key=len, reverse=True)
    owners = (_owner(key, tails) for path in paths for key in keys.get(path, ()))
    names = tuple(dict.fromkeys(owner for owner in owners if owner is not None))
    path = (paths or [layer.path])[0].rpartition(".")[0]
    return Known(names, path, layer.kind, layer.settings or Settings("", {}))


def _tails(layer: Layer) -> Iterator[str]:
    """The keys of a layer's entries in its own torch module."""
    try:
        rules: Any = layer.rules(0) if callable(layer.rules) else layer.rules
    except BindingError:  # rules of a stack that depend on how deep it is
        return
    yield from (key for rule in rules for key in rule.keys)


def _owner(key: str, tails: list[str]) -> str | None:
    """The module whose entry this key is."""
    tail = next((tail for tail in tails if key == tail or key.endswith(f".{tail}")), None)
    return None if tail is None else key.removesuffix(tail).removesuffix(".")
