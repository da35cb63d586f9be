"""Stand-ins: other activations in the place of a torch module that has no weights.

Some modules compute their activation from multiplications and powers, where no function can be intercepted.
The module as a whole can: it is called, and another function of what it read is returned.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from jaxstate.testing._calls import Call
from jaxstate.testing._rewrites import activations
from jaxstate.testing._torch_side import torch


def activation_calls(module: Any, calls: Sequence[Call]) -> list[Call]:
    """Calls of modules without weights or children that keep the shape of what they read."""
    bare = {name for name, m in module.named_modules() if not [*m.parameters(), *m.children()]}
    return [c for c in calls if c.name in bare and c.input is not None and _shape(c.output) == c.input.shape]


def computed(call: Call) -> str:
    """Which activation a call computed, in words; the name of its class if none is known."""
    x, y = torch().from_numpy(np.array(call.input)), np.asarray(call.output)
    found = (words for words, f in activations().items() if np.allclose(f(x), y, atol=1e-6))
    return next(found, call.kind)


@contextmanager
def standing_in(
    module: Any, calls: Sequence[Call], function: Callable[[Any], Any], active: Callable[[], bool]
) -> Iterator[None]:
    """A context in which the modules of these calls return this function of what they read."""

    def instead(_: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        return function(args[0]) if active() and args else output

    names = {call.name for call in calls}
    hooks = [module.get_submodule(n).register_forward_hook(instead, with_kwargs=True) for n in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shape(array: np.ndarray | None) -> tuple[int, ...] | None:
    return None if array is None else array.shape
