"""The pairing with the most evidence, and whether another has as much."""

from collections.abc import Sequence

import numpy as np


def best(scores: Sequence[Sequence[float]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pair rows and columns so that the sum of scores is greatest.

    Args:
        scores: a row for each thing on one side, a column for each on the other.

    Returns:
        the pairs that stand in every best pairing, and the others of one of the best.

    A best pairing is the only one if going round any cycle of exchanges loses: the longest path from each
    pair back to itself, by Floyd and Warshall's recursion over max and +, is negative.

    >>> best([[1, 0], [0, 0]])
    ([(0, 0), (1, 1)], [])
    >>> best([[0, 0], [0, 0]])
    ([], [(0, 0), (1, 1)])
    """
    from scipy.optimize import linear_sum_assignment  # takes longer to import than all of jaxstate

    rows, columns = len(scores), len(scores[0])
    table = np.zeros((max(rows, columns),) * 2)
    table[:rows, :columns] = scores
    mine, theirs = linear_sum_assignment(table, maximize=True)
    gain = table[:, theirs] - table[mine, theirs][:, None]  # of giving each row another row's column
    np.fill_diagonal(gain, -np.inf)
    for via in range(len(gain)):
        gain = np.maximum(gain, gain[:, via, None] + gain[None, via, :])
    real = [(int(i), int(j)) for i, j in zip(mine, theirs, strict=True) if i < rows and j < columns]
    certain = [pair for pair in real if gain[pair[0], pair[0]] < -1e-9]
    return certain, [pair for pair in real if pair not in certain]
