"""Values inside a vmap, as they are once it is done: with the mapped axes in front.

A model that takes one example is called under `jax.vmap`, where its layers see no values. What they take and
give is handed through a function with a rule for vmap, which is told the whole batch.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

from jaxstate.testing._arrays import is_traced, named_live
from jaxstate.testing._calls import Call


def when_known(arrays: Mapping[str, Any], found: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Hand over arrays as soon as no vmap is around them; those in a jit or a gradient never get there.

    >>> import jax
    >>> def layer(x):
    ...     when_known({"x": x}, lambda known: print(known["x"].shape))
    ...     return 2 * x
    >>> jax.vmap(jax.vmap(layer))(np.ones((5, 3, 2))).shape
    (5, 3, 2)
    (5, 3, 2)
    """
    if not is_traced(arrays):
        found({name: np.array(a) for name, a in arrays.items()})
        return

    def ruled(size: int, batched: Any, arrays: Mapping[str, Any]) -> Any:
        when_known(arrays, found)
        return arrays, batched[0]

    handed = custom_vmap(lambda arrays: arrays)
    handed.def_vmap(ruled)
    handed(dict(arrays))


@dataclass(eq=False)
class Notes:
    """What has been called so far, and how often; without the keys of random numbers that it was given."""

    calls: list[Call] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, path: str, kind: str, inputs: Any, outputs: Any) -> None:
        """Note a call as soon as its values are known."""
        sides = {"in": _numbers(named_live(inputs)), "out": _numbers(named_live(outputs))}

        def found(known: Mapping[str, np.ndarray]) -> None:
            given, made = ({n: known[f"{side} {n}"] for n in arrays} for side, arrays in sides.items())
            self.calls.append(Call(path, kind, self.counts[path], given, made))
            self.counts[path] += 1

        when_known({f"{side} {n}": a for side, arrays in sides.items() for n, a in arrays.items()}, found)


def _numbers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    keys = jax.dtypes.prng_key
    return {name: a for name, a in arrays.items() if not jax.numpy.issubdtype(a.dtype, keys)}
