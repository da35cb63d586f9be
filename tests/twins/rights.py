"""A twin that is right: torch's module, what was loaded from it, and what it would be with other weights."""

import functools
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flax import nnx
from twin import Twin, built, randomized

import jaxstate as js


@dataclass(frozen=True)
class Right:
    """Attributes:
    theirs: torch's module.
    template: the abstract model.
    binding: the right one.
    entries: torch's state_dict, as arrays.
    """

    name: str
    twin: Twin
    theirs: torch.nn.Module
    template: nnx.Module
    binding: js.Binding
    entries: dict[str, np.ndarray]

    @cached_property
    def weights(self) -> list[str]:
        """The keys of arrays of numbers, each leaf once."""
        bound = {key for key, _ in self._owners()}
        return [key for key in self.entries if key in bound and self.entries[key].dtype.kind == "f"]

    def file(self, changed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """torch's entries with others among them; tied ones are the same still."""
        ties = [pair for rule in self.binding.rules if isinstance(rule, js.Tied) for pair in rule.pairs]
        return {**self.entries, **changed, **{key: changed[to] for key, to in ties if to in changed}}

    def _owners(self):
        for rule in self.binding.rules:
            if rule.paths:
                yield from ((key, rule.paths) for key in rule.keys)

    def owner(self, key: str) -> str:
        return key.rpartition(".")[0]

    @cached_property
    def heads(self) -> int:
        return getattr(importlib.import_module(f"{self.name}_twin"), "HEADS", 0)

    @cached_property
    def groups(self) -> int:
        """How many heads keys and values have."""
        return getattr(importlib.import_module(f"{self.name}_twin"), "GROUPS", self.heads)

    def uses(self, target: str) -> bool:
        """True if the model's file calls this function, or defines it."""
        source = inspect.getsource(importlib.import_module(f"{self.name}_twin"))
        return target.removeprefix("flax.").removeprefix(f"{self.name}_twin.") in source

    @cached_property
    def lists(self) -> list[tuple[str, int]]:
        """Names of lists, outermost, with how many layers they have."""
        found = [re.match(r"(.*?)\.(\d+)\.", key) for key in self.weights]
        counts = Counter((m[1], m[2]) for m in found if m)
        lengths = Counter(prefix for prefix, _ in counts)
        return [(prefix, n) for prefix, n in lengths.items() if n > 1]

    @cached_property
    def model(self) -> nnx.Module:
        return js.load_state_dict(self.template, self.entries, self.binding)

    @cached_property
    def layers(self) -> list[tuple[str, nnx.Module]]:
        """Layers with a torch module of their own, by their paths."""
        pairs = [(".".join(map(str, path)), m) for path, m in nnx.iter_modules(self.model)]
        order = list(self.names)
        return sorted(((p, m) for p, m in pairs if p in self.names), key=lambda pair: order.index(pair[0]))

    @cached_property
    def names(self) -> dict[str, str]:
        """torch's module for each path of a layer."""
        return {paths[0].rpartition(".")[0]: self.owner(key) for key, paths in self._owners()}

    def rekeyed(self, rename: Callable[[str], str]) -> js.Binding | None:
        """A Binding that has other keys for leaves; None where one of them is a part of a leaf."""
        parts = [key for rule in self.binding.rules if len(rule.keys) > 1 for key in rule.keys]
        if any(rename(key) != key for key in parts):
            return None
        with suppress(js.BindingError):
            return js.Binding(tuple(rule.rekeyed(lambda key, _: rename(key)) for rule in self.binding.rules))
        return None

    def laid_out(self, key: str, change: Callable[[str, str], str]) -> js.Binding | None:
        """A Binding with another layout for a key; None where the layout is not a plain one."""
        rule = next(rule for rule in self.binding.rules if key in rule.keys)
        if not isinstance(rule, js.Rule) or rule.names or rule.sizes:
            return None
        left, right = rule.pattern.split(" -> ")
        other = js.Rule(rule.key, rule.path, change(left, right), buffer=rule.buffer, shape=rule.shape)
        return js.Binding(tuple(other if r is rule else r for r in self.binding.rules))

    @cached_property
    def calls(self) -> Callable[..., Any]:
        names = list(self.twin.inputs)
        return lambda module, *xs: self.twin.reference(module, **dict(zip(names, xs, strict=True)))

    def first_module(self, changed: dict[str, np.ndarray]) -> list[str]:
        """The torch modules with weights whose output changes first if torch holds other weights."""
        before, after = self._outputs(self.entries), self._outputs(self.file(changed))
        for (name, one), (_, other) in zip(before, after, strict=True):
            if not np.array_equal(one, other):
                return [name]
        return []

    def _outputs(self, entries: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        module, found = self.loaded_torch(entries), []
        for name, sub in module.named_modules():
            if next(sub.parameters(recurse=False), None) is not None:
                sub.register_forward_hook(lambda m, _, out, name=name: found.append((name, _first(out))))
        with torch.no_grad():
            self.calls(module, *(torch.from_numpy(v) for v in self.twin.inputs.values()))
        return found

    def loaded_torch(self, entries: dict[str, np.ndarray]) -> torch.nn.Module:
        module = self.twin.theirs().eval()
        module.load_state_dict({key: torch.from_numpy(np.array(a)) for key, a in entries.items()})
        return module


def _first(value: Any) -> np.ndarray:
    while not isinstance(value, torch.Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value.numpy().copy()


@functools.cache
def right(name: str) -> Right:
    twin = importlib.import_module(f"{name}_twin").TWIN
    theirs, template = randomized(twin.theirs()), built(twin.ours)
    entries = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    return Right(name, twin, theirs, template, js.bind(template, like=entries, **twin.options), entries)
