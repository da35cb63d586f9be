"""Variants: the ways in which a weight goes wrong and still has the right shape.

Each is a torch array as a mistaken port would hold it, with words for the mistake. They are tried on what a
JAX model holds, and, where that cannot be read, on torch's own layer, to see whether it then gives JAX's
output.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np

Variant = tuple[str, np.ndarray]

MOST_HEADS = 4  # all orders of so few heads are tried


def variants(
    tail: str,
    array: np.ndarray,
    blocks: Sequence[str] = (),
    heads: int = 0,
    depth: int = 0,
    images: Sequence[tuple] = (),
) -> Iterator[Variant]:
    """Mistaken forms of one entry.

    Args:
        tail: its name in its module.
        array: in torch's layout.
        blocks: names of what one of its axes consists of: gates, or query, key and value.
        heads, depth: of attention; 0 if unknown. Keys may have fewer heads, of the same depth.
        images: shapes (C, H, W) that a layer may have flattened to its columns.
    """
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        yield "transposed", array.T
    yield from _spatial(array) if array.ndim > 2 else ()
    yield from _ordered(array, blocks) if blocks else ()
    yield from _regrouped(array, max(1, len(blocks)), heads, depth) if heads > 1 or depth else ()
    yield from _flattened(array, images) if array.ndim == 2 else ()
    yield "zero everywhere", np.zeros_like(array)
    yield from _counted(array) if array.ndim > 1 else ()
    if array.ndim == 1 and tail == "weight":
        yield "one larger than torch's, as where a layer computes 1 + scale", array + 1
        yield "one smaller than torch's, as where a layer computes 1 + scale", array - 1


def explained(held: np.ndarray, key: str, entries: Mapping[str, np.ndarray], own: Iterator[Variant]) -> str:
    """What a leaf holds in place of torch's entry, in words."""
    others = ((f'replaced by torch\'s "{other}"', a) for other, a in entries.items() if other != key)
    turned = (
        (f'replaced by torch\'s "{other}" transposed', a.T) for other, a in entries.items() if a.ndim == 2
    )
    own_words = ((f"{words}", a) for words, a in own)
    for words, candidate in (*own_words, *others, *turned):
        if candidate.shape == held.shape and np.array_equal(candidate, held):
            return words
    same = np.array_equal(np.sort(held, axis=None), np.sort(entries[key], axis=None))
    return "with its values in another order" if same else "with other values"


def _spatial(array: np.ndarray) -> Iterator[Variant]:
    space = tuple(range(2, array.ndim))
    yield "flipped in space", np.flip(array, space)
    if array.ndim > 3 and len({array.shape[n] for n in space}) == 1:
        yield "with its spatial axes reversed", np.transpose(array, (0, 1, *reversed(space)))
    if array.shape[0] == array.shape[1]:
        yield "with inputs and outputs swapped", np.swapaxes(array, 0, 1)
        yield "flipped in space, with inputs and outputs swapped", np.flip(np.swapaxes(array, 0, 1), space)


def _counted(array: np.ndarray) -> Iterator[Variant]:
    """Rows that are counted from another number, as positions are."""
    for by in (1, -1, 2, -2):
        yield f"with its rows shifted by {by}", np.roll(array, by, -2)


def _ordered(array: np.ndarray, blocks: Sequence[str]) -> Iterator[Variant]:
    """The blocks of an axis in another order; torch has them in rows, and GPT-2's layer in columns."""
    for axis in [n for n in range(min(2, array.ndim)) if array.shape[n] % len(blocks) == 0]:
        parts = np.split(array, len(blocks), axis)
        for order in permutations(range(len(blocks))):
            if order != tuple(range(len(blocks))):
                words = ", ".join(blocks[n] for n in order)
                yield (
                    f"in the order {words} where torch has {', '.join(blocks)}",
                    np.concatenate([parts[n] for n in order], axis),
                )


def _regrouped(array: np.ndarray, blocks: int, heads: int, depth: int) -> Iterator[Variant]:
    """Rows of queries, keys and values, or columns of the output, divided into heads in another way."""
    for axis in range(min(2, array.ndim)):
        rows = np.moveaxis(array, axis, 0)
        for count in sorted({blocks, 1}, reverse=True):
            n = len(rows) // (count * depth) if depth else heads
            if n > 1 and len(rows) % (count * n) == 0:
                yield from ((words, np.moveaxis(a, 0, axis)) for words, a in _turned(rows, count, n))


def _turned(rows: np.ndarray, count: int, heads: int) -> Iterator[Variant]:
    split = rows.reshape(count, heads, -1, *rows.shape[1:])
    turned = rows.reshape(count, -1, heads, *rows.shape[1:])
    yield "with heads innermost", np.swapaxes(split, 1, 2).reshape(rows.shape)
    yield "with heads outermost", np.swapaxes(turned, 1, 2).reshape(rows.shape)
    for order in permutations(range(heads)) if heads <= MOST_HEADS else ():
        for part in range(count):
            moved = split.copy()
            moved[part] = split[part][list(order)]
            yield f"with its heads in the order {order}", moved.reshape(rows.shape)
        yield f"with its heads in the order {order}", split[:, list(order)].reshape(rows.shape)


def _flattened(array: np.ndarray, images: Sequence[tuple]) -> Iterator[Variant]:
    """The columns as they meet a vector that was flattened channels last."""
    for c, *space in images:
        if c * int(np.prod(space)) == array.shape[1]:
            image = array.reshape(-1, c, *space)
            yield _order_words(c, space), np.moveaxis(image, 1, -1).reshape(array.shape)
            last = array.reshape(-1, *space, c)
            yield _order_words(c, space), np.moveaxis(last, -1, 1).reshape(array.shape)


def _order_words(channels: int, space: Sequence[int]) -> str:
    return f"with the flattened image (C, H, W) = {(channels, *space)} in the other order"
