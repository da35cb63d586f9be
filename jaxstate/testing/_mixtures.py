"""Mixtures: one array made of others that are known: pooled, added up, joined, multiplied."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from jaxstate.testing._rewrites import activations
from jaxstate.testing._torch_side import torch

MOST = 64  # arrays in which sums are looked for, the latest ones
FEW = 8  # the same where each has a factor, or an activation
ENOUGH = 16  # elements for each factor that is fitted to them
SAMPLES = 97  # elements that refute most mixtures


@dataclass(frozen=True, eq=False)
class Source:
    """An array that was there before, in words that follow "reads"."""

    words: str
    array: np.ndarray


def fitting(known: Sequence[Source], read: np.ndarray) -> list[Source]:
    """What has the shape of what is read, or is repeated in the batch."""
    whole = (s for s in known if _is_repeated(s.array.shape, read.shape))
    return [Source(s.words, np.broadcast_to(s.array, read.shape)) for s in whole]


def _is_repeated(shape: tuple[int, ...], read: tuple[int, ...]) -> bool:
    return shape == read or (len(read) > 1 and shape in ((1, *read[1:]), read[1:]))


def pooled(known: Sequence[Source], read: np.ndarray, rtol: float) -> Iterator[Source]:
    """One token of all, or a mean or maximum of them or of an image's pixels."""
    for source in known:
        array = source.array
        if read.ndim == 2 and array.ndim > 2 and len(array) == len(read):
            pools = ((words, a) for words, a in _pools(array) if a.shape == read.shape)
            yield from (Source(f"{words} of {source.words}", a) for words, a in pools)


def _pools(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for axes in (tuple(range(1, array.ndim - 1)), tuple(range(2, array.ndim))):
        yield "the mean", array.mean(axes)
        yield "the maximum", array.max(axes)
    if array.ndim == 3:
        yield from {"the first": array[:, 0], "the last": array[:, -1]}.items()


def summed(known: Sequence[Source], read: np.ndarray, rtol: float) -> Iterator[Source]:
    """Sums of two, as residuals and positions are; most are refuted by a few elements."""
    terms = fitting(known, read)[:MOST]
    few, expected = _sampled(terms, read)
    apart = np.abs(few[:, None] + few[None] - expected).max(-1, initial=0.0)
    for a, b in np.argwhere(apart <= 2 * rtol * np.abs(read).max()):
        if a <= b:
            one, other = terms[b], terms[a]  # the earlier one first
            yield Source(f"{one.words} + {other.words}", one.array + other.array)


def _sampled(terms: Sequence[Source], read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A few elements of each, (terms, elements), and of what is read."""
    places = np.random.default_rng(0).integers(0, read.size, SAMPLES)
    few = [term.array.reshape(-1)[places] for term in terms]
    return np.array(few, np.float64).reshape(len(few), SAMPLES), read.reshape(-1)[places]


def joined(known: Sequence[Source], read: np.ndarray, rtol: float) -> Iterator[Source]:
    """Two joined along their channels, as skips are: the last axis, or the first after the batch."""
    for axis in (-1, 1) if read.ndim > 2 else ():
        alike = [s for s in known if _differs_only_in(axis, s.array.shape, read.shape)][:MOST]
        for one, other in product(alike, alike):
            if one.array.shape[axis] + other.array.shape[axis] == read.shape[axis]:
                both = np.concatenate([one.array, other.array], axis)
                yield Source(f"{one.words} joined with {other.words}", both)


def _differs_only_in(axis: int, shape: tuple[int, ...], read: tuple[int, ...]) -> bool:
    return len(shape) == len(read) and np.delete(shape, axis).tolist() == np.delete(read, axis).tolist()


def mixed(known: Sequence[Source], read: np.ndarray, rtol: float) -> Iterator[Source]:
    """Sums of up to three, each with a factor: the least squares of a few elements tell it."""
    terms = fitting(known, read)[:FEW]
    few, expected = _sampled(terms, read)
    for count in [n for n in (1, 2, 3) if read.size >= ENOUGH * n]:
        for chosen in combinations(range(len(terms)), count):
            factors, *_ = np.linalg.lstsq(few[[*chosen]].T, expected, rcond=None)
            if np.abs(factors @ few[[*chosen]] - expected).max() <= 2 * rtol * np.abs(read).max():
                yield _mixture([terms[n] for n in chosen][::-1], factors[::-1])


def _mixture(terms: Sequence[Source], factors: np.ndarray) -> Source:
    once = [abs(factor - 1) < 1e-4 for factor in factors]
    parts = [
        t.words if plain else f"{f:.4g} times {t.words}"
        for t, f, plain in zip(terms, factors, once, strict=True)
    ]
    arrays = [t.array * (1.0 if plain else f) for t, f, plain in zip(terms, factors, once, strict=True)]
    return Source(" + ".join(parts), np.sum(arrays, 0))


def gated(known: Sequence[Source], read: np.ndarray, rtol: float) -> Iterator[Source]:
    """Products and sums of two of which an activation was taken, before or after."""
    terms = fitting(known, read)[:FEW]
    active = [term for plain in terms for term in _activated(plain)]
    yield from active
    for one, other in product(active, terms):
        yield Source(f"{one.words} * {other.words}", one.array * other.array)
        yield Source(f"{one.words} + {other.words}", one.array + other.array)
    for one, other in combinations(terms, 2):
        yield from _activated(Source(f"({other.words} + {one.words})", one.array + other.array))


def _activated(source: Source) -> Iterator[Source]:
    tensor = torch().from_numpy(np.array(source.array))
    for words, function in _functions().items():
        yield Source(f"{words} of {source.words}", function(tensor.clone()).numpy())


def _functions() -> Mapping[str, Any]:
    return {words: function for words, function in activations().items() if words != "nothing"}
