"""Attention, computed from what its projections returned: one way to attend is one value.

Both sides' projections and what their output projections read are recorded. What lies in between is a handful
of decisions, and each has a field here. With all of them a way is a plain function of queries, keys and
values, so that one can ask which way a model goes, without knowing the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # of queries, keys and values: (batch, time, features)

FAR = -1e30  # what a finite mask adds where it hides
HIDDEN = -1e3  # and at most that, of any library: 10000, 1e9, the least float


@dataclass(frozen=True)
class Attention:
    """One way to attend.

    Attributes:
        heads: of the queries.
        reading: which of the recorded arrays are the queries, keys and values.
        split: how features are divided into heads.
        merge: how heads become features again.
        groups: which queries share a head of keys.
        scale: of the logits.
        mask: what is attended to.
        bias: what else is added to the logits.
        rotary: which features are turned by their position.
        frequencies: by how much.
        softmax: the axis over which the weights sum to one.
    """

    heads: int
    reading: str = "query, key, value"
    split: str = "(heads, depth)"
    merge: str = "(time, heads, depth)"
    groups: str = "repeated"
    scale: str = "1 / sqrt(depth)"
    mask: str = "everything"
    bias: str = ""
    rotary: str = "nothing"
    frequencies: str = "10000"
    softmax: str = "keys"


@dataclass(frozen=True, eq=False)
class Recorded:
    """What was recorded around one attention.

    Attributes:
        readings: queries, keys and values, by words for what they were taken to be.
        masks: additive, by the names of the arguments that they were: (batch or 1, heads or 1, time, time).
        frequencies: angles per position, one for each pair of features, where torch holds them.
    """

    readings: Mapping[str, Arrays]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    frequencies: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def logits(self) -> int:
        """How many logits each head has."""
        query, key, _ = next(iter(self.readings.values()))
        return len(query) * query.shape[1] * key.shape[1]

    def of_first(self) -> "Recorded":
        """The same of the first element of the batch, which is enough to refute a way."""
        cut = {words: tuple(a[:1] for a in arrays) for words, arrays in self.readings.items()}
        return Recorded(cut, {name: a[:1] for name, a in self.masks.items()}, self.frequencies)  # type: ignore


def fits(way: Attention, seen: Recorded) -> bool:
    """True if the features divide into so many heads, the keys' too, and what was recorded is for as many."""
    query, key, value = seen.readings[way.reading]
    depth, rest = divmod(query.shape[-1], way.heads)
    if rest or key.shape[-1] % depth or value.shape[-1] % (key.shape[-1] // depth):
        return False
    turned = 2 * len(frequencies(way, depth, seen)) if way.rotary != "nothing" else 0
    masks = [
        seen.masks[name] for name in (way.bias, way.mask.removesuffix(" the other way")) if name in seen.masks
    ]
    own = all(mask.shape[1] in (1, way.heads) for mask in masks)
    return own and way.heads % (key.shape[-1] // depth) == 0 and turned <= depth


def attended(way: Attention, seen: Recorded) -> np.ndarray:
    """What the output projection reads, (batch, time, features), in float64.

    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 2, 5, 4))
    >>> seen = Recorded({"query, key, value": (query, key, value)})
    >>> one = attended(Attention(heads=1, scale="1"), seen)
    >>> weights = np.exp(query @ key.swapaxes(1, 2))
    >>> np.allclose(one, weights / weights.sum(-1, keepdims=True) @ value)
    True
    """
    query, key, value = (a.astype(np.float64) for a in seen.readings[way.reading])
    depth = query.shape[-1] // way.heads
    own = key.shape[-1] // depth
    query, key = divided(query, way.heads, way.split), divided(key, own, way.split)
    query = query if "keys alone" in way.rotary else turned(query, way, seen)
    key = key if "queries alone" in way.rotary else turned(key, way, seen)
    key, value = (shared(a, way.heads // own, way.groups) for a in (key, divided(value, own, way.split)))
    with np.errstate(invalid="ignore", over="ignore"):
        logits = query @ key.swapaxes(-1, -2) * scale(way, depth) + added(way, seen, query, key)
        return merged(softmax(logits, way.softmax) @ value, way.merge)


def divided(features: np.ndarray, heads: int, split: str) -> np.ndarray:
    """(batch, time, features) to (batch, heads, time, depth)."""
    batch, time, width = features.shape
    if split == "(heads, time, depth)":
        return features.reshape(batch, heads, time, width // heads)
    if split == "(depth, heads)":
        return features.reshape(batch, time, width // heads, heads).transpose(0, 3, 1, 2)
    return features.reshape(batch, time, heads, width // heads).transpose(0, 2, 1, 3)


def merged(found: np.ndarray, merge: str) -> np.ndarray:
    """(batch, heads, time, depth) to (batch, time, heads * depth)."""
    batch, heads, time, depth = found.shape
    orders = {"(time, heads, depth)": (0, 2, 1, 3), "(time, depth, heads)": (0, 2, 3, 1)}
    return found.transpose(orders.get(merge, (0, 1, 2, 3))).reshape(batch, time, heads * depth)


def shared(array: np.ndarray, times: int, groups: str) -> np.ndarray:
    """Heads of keys for as many queries: each repeated, or all of them again and again."""
    return np.repeat(array, times, 1) if groups == "repeated" else np.tile(array, (1, times, 1, 1))


def frequencies(way: Attention, depth: int, seen: Recorded) -> np.ndarray:
    """Angles per position: torch's own, or those of a base."""
    if way.frequencies in seen.frequencies:
        return seen.frequencies[way.frequencies]
    half = depth // 2
    return float(way.frequencies) ** (-np.arange(half) / max(half, 1))


def turned(array: np.ndarray, way: Attention, seen: Recorded) -> np.ndarray:
    """Rotary positions; of features that have no angle nothing is turned."""
    if way.rotary == "nothing":
        return array
    angles = np.arange(array.shape[-2])[:, None] * frequencies(way, array.shape[-1], seen)
    turn = np.exp(1j * (-angles if "backwards" in way.rotary else angles))
    count = 2 * turn.shape[-1]
    if way.rotary.startswith("halves"):
        halves = array[..., : count // 2], array[..., count // 2 : count]
        both = (halves[0] + 1j * halves[1]) * turn
        parts = np.concatenate([both.real, both.imag], -1)
    else:
        both = (array[..., :count:2] + 1j * array[..., 1:count:2]) * turn
        parts = np.stack([both.real, both.imag], -1).reshape(*both.shape[:-1], count)
    return np.concatenate([parts, array[..., count:]], -1)


def scale(way: Attention, depth: int) -> float:
    """What the logits are multiplied by."""
    known = {"1 / sqrt(depth)": depth**-0.5, "1 / depth": 1 / depth, "sqrt(depth)": depth**0.5}
    known["1 / sqrt(features)"] = (depth * way.heads) ** -0.5
    return known[way.scale] if way.scale in known else float(way.scale)


def added(way: Attention, seen: Recorded, query: np.ndarray, key: np.ndarray) -> Any:
    """Mask and bias, to be added to the logits."""
    time, length = query.shape[-2], key.shape[-2]
    visible = np.tri(time, length, length - time if length > time else 0, dtype=bool)
    masks: dict[str, Any] = {
        "everything": 0.0,
        "causal": np.where(visible, 0.0, -np.inf),
        "causal the other way": np.where(visible, FAR, 0.0),
        "causal the other way, of -inf": np.where(visible, -np.inf, 0.0),
        "causal without the diagonal": np.where(visible & ~np.eye(time, length, dtype=bool), 0.0, FAR),
    }
    return (masks[way.mask] if way.mask in masks else _recorded(way.mask, seen)) + _bias(
        way, seen, time, length
    )


def _recorded(name: str, seen: Recorded) -> np.ndarray:
    inverted = name.endswith(" the other way")
    mask = seen.masks[name.removesuffix(" the other way")].astype(np.float64)
    return np.where(mask < HIDDEN, 0.0, FAR) if inverted else mask


def _bias(way: Attention, seen: Recorded, time: int, length: int) -> Any:
    if not way.bias.startswith("alibi"):
        return seen.masks[way.bias].astype(np.float64) if way.bias else 0.0
    numbers = np.arange(way.heads) + (0 if "from 0" in way.bias else 1)
    slopes = 2.0 ** (-8 * numbers / way.heads) * (-1 if "growing" in way.bias else 1)
    return slopes[:, None, None] * (np.arange(length) - np.arange(time)[:, None])


def softmax(logits: np.ndarray, over: str) -> np.ndarray:
    """Weights of (batch, heads, queries, keys) that sum to one over an axis."""
    axis = {"heads": -3, "queries": -2, "keys": -1}.get(over)
    if axis is None:
        return logits
    weights = np.exp(logits - np.max(logits, axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)
