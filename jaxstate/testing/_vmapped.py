"""Values inside a vmap, as they are once it is done: with the mapped axes in front.

A model that takes one example is called under `jax.vmap`, where its layers see no values. What they take and
give is handed through a function with a rule for vmap, which is told the whole batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.custom_batching import custom_vmap

from jaxstate.testing._arrays import is_traced


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
