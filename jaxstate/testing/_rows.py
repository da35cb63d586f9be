"""Rows in another order: tokens, patches or positions that a layer puts elsewhere before it adds a table.

A table of positions that is added afterwards hides the order, so it is taken away again.
"""

from collections.abc import Iterator

import numpy as np

from jaxstate.testing._experiments import Suspicion
from jaxstate.testing._layers import Layer, Run

MOST = 12  # numbers of rows in one sentence


def row_suspicions(run: Run, layer: Layer) -> Iterator[Suspicion]:
    """torch's output with its rows in JAX's order, before each of its tables was added."""
    if layer.output is None or layer.output.theirs.ndim != 3:
        return
    theirs, ours = layer.output.theirs, layer.output.ours
    for key, table in _tables(run, layer, theirs.shape[1:]).items():
        order = order_of_rows((theirs - table)[0], (ours - table)[0])
        if order is not None:
            before = f' before it adds "{key}"' if key else ""
            turned = (theirs - table)[:, order] + table
            said = ", ".join(map(str, order[:MOST])) + ", ..." * (len(order) > MOST)
            yield Suspicion(
                f"has torch's rows in the order {said}{before}", "torch's order of rows", turned.copy
            )


def _tables(run: Run, layer: Layer, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Its entries that may be added to its rows, and none."""
    own = {key: a for key, a in run.entries.items() if key.startswith(f"{layer.theirs.name}.")}
    return {"": np.zeros(shape, np.float32)} | {
        k: a.reshape(shape) for k, a in own.items() if _fits(a, shape)
    }


def _fits(table: np.ndarray, shape: tuple[int, ...]) -> bool:
    return table.shape in (shape, (1, *shape))


def order_of_rows(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """Which of torch's rows each of JAX's is; None unless each is another one and the order differs.

    >>> rows = np.float32([[1, 2], [3, 4], [5, 7]])
    >>> order_of_rows(rows, rows[[2, 0, 1]]).tolist()
    [2, 0, 1]
    """
    nearest = np.array([np.argmin(np.abs(theirs - row).max(-1)) for row in ours])
    known = np.arange(len(theirs))
    return nearest if np.array_equal(np.sort(nearest), known) and np.any(nearest != known) else None
