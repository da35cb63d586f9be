"""Mistakes in attention: the way that torch attends, found in its own record, and the way that JAX does.

First a way is looked for that makes of torch's queries, keys and values what torch's output projection read.
Only if there is one, ways that differ from it in one decision or two are tried on JAX's. What is named has
been computed on both sides.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from jaxstate.arrays.foreign import as_numpy
from jaxstate.testing._align import best_match
from jaxstate.testing._attention import FAR, HIDDEN, Arrays, Attention, Recorded, attended, fits
from jaxstate.testing._calls import Call
from jaxstate.testing._causes import RECOMPUTED, Cause, confirmed, error_of
from jaxstate.testing._layers import Layer, Run
from jaxstate.testing._weights import DEPTHS, HEADS, nearest

MASKS = ("causal", "everything")
SCALES = ("1 / sqrt(depth)", "1", "1 / depth", "1 / sqrt(features)")
PLAIN = "query, key, value"
MOST_LOGITS = 2**18  # of one head, for two decisions at a time
MOST_ROUNDS = 3  # modules around the output projection in which its queries, keys and values are looked for

Choices = Mapping[str, Sequence[Any]]


def attention_causes(run: Run, layer: Layer | None, rtol: float) -> tuple[Cause, ...]:
    """What JAX decides otherwise between the projections and what the output projection reads."""
    if layer is None or layer.input is None or layer.theirs.input is None:
        return ()
    for seen in records(run, layer):
        way = torch_way(run, layer, seen, rtol)
        if way is not None:
            return _of_jax(layer, seen, way, rtol)
    return ()


def torch_way(run: Run, layer: Layer, seen: Recorded, rtol: float) -> Attention | None:
    """The way that reproduces what torch's output projection read."""
    theirs, first = layer.theirs.input, seen.of_first()
    if theirs is None:
        return None
    for way in _ways(_choices_of_torch(run, layer, seen)):
        if _is_right(way, first, theirs[:1], rtol) and _is_right(way, seen, theirs, rtol):
            return way
    return None


def _is_right(way: Attention, seen: Recorded, read: np.ndarray, rtol: float) -> bool:
    return fits(way, seen) and error_of(best_match(read, attended(way, seen))) <= rtol


def _ways(choices: Choices) -> Iterator[Attention]:
    for row in product(*choices.values()):
        yield Attention(**dict(zip(choices, row, strict=True)))


def _choices_of_torch(run: Run, layer: Layer, seen: Recorded) -> Choices:
    """What torch may do; what its module says of itself goes first."""
    name, theirs = layer.theirs.name, run.port.theirs
    width = next(iter(seen.readings.values()))[0].shape[-1]
    depth = nearest(theirs, name, DEPTHS)
    said = nearest(theirs, name, HEADS) or (width // depth if depth else 0)
    scaling = nearest(theirs, name, ("scaling", "scale"), float)
    return {
        "reading": [words for words in seen.readings if words.startswith(PLAIN)],
        "heads": [said] if said else divisors(width),
        "rotary": ("nothing", "halves", "neighbours"),
        "frequencies": (*seen.frequencies, "10000"),
        "bias": ("", *_told(seen, False), "alibi"),
        "mask": (*MASKS, *_told(seen, True)),
        "scale": [*SCALES, *([repr(scaling)] if scaling else [])],
    }


def _of_jax(layer: Layer, seen: Recorded, way: Attention, rtol: float) -> tuple[Cause, ...]:
    before, sure = error_of(layer.input), _determined(way, layer, seen, rtol)
    small = seen.logits <= MOST_LOGITS
    for changes in (_one(way, seen), _two(way, seen) if small else ()):
        others = (replace(way, **change) for change in changes)
        tries = (_try(way, other, seen, sure) for other in others if fits(other, seen))
        if found := confirmed(tries, layer.ours.input, before, rtol, layer.order):
            return tuple(replace(cause, how=RECOMPUTED) for cause in found)
    return ()


def _determined(way: Attention, layer: Layer, seen: Recorded, rtol: float) -> frozenset[str]:
    """The decisions of which no other one reproduces torch as well, as where all queries are zero."""
    first, theirs = seen.of_first(), layer.theirs.input
    if theirs is None:
        return frozenset()
    others = (
        (name, replace(way, **{name: value})) for change in _one(way, seen) for name, value in change.items()
    )
    return frozenset(vars(way)) - {
        name for name, other in others if _is_right(other, first, theirs[:1], rtol)
    }


def _try(
    way: Attention, other: Attention, seen: Recorded, sure: frozenset[str]
) -> tuple[str, str, Callable[[], np.ndarray]]:
    names = [name for name in vars(way) if getattr(way, name) != getattr(other, name)]
    ours, theirs = (", ".join(does(name, getattr(w, name)) for name in names) for w in (other, way))
    mend = "; ".join(_MENDS[name](getattr(way, name)) for name in names)
    says = f"{ours}, and torch {theirs}; torch attends with {described(way, sure)}"
    return says, mend, lambda: attended(other, seen)


def _one(way: Attention, seen: Recorded) -> Iterator[dict[str, Any]]:
    for name, values in _choices_of_jax(way, seen).items():
        yield from ({name: value} for value in values if value != getattr(way, name))


def _two(way: Attention, seen: Recorded) -> Iterator[dict[str, Any]]:
    for one, other in combinations(_one(way, seen), 2):
        if one.keys() != other.keys():
            yield {**one, **other}


def _choices_of_jax(way: Attention, seen: Recorded) -> Choices:
    """What may be decided otherwise, likely things first."""
    kinds = ("halves", "neighbours")
    odd = (f"{kind}, {how}" for how in ("backwards", "of queries alone", "of keys alone") for kind in kinds)
    hiding = _told(seen, True)
    return {
        "rotary": ("nothing", *kinds, *odd),
        "mask": (
            *MASKS,
            *hiding,
            *(f"{name} the other way" for name in hiding),
            "causal the other way",
            "causal the other way, of -inf",
            "causal without the diagonal",
        ),
        "heads": divisors(seen.readings[way.reading][0].shape[-1]),
        "split": ("(depth, heads)", "(heads, time, depth)"),
        "merge": ("(time, depth, heads)", "(heads, time, depth)"),
        "groups": ("tiled",),
        "scale": (*SCALES, "sqrt(depth)"),
        "bias": ("", *_told(seen, False), "alibi, growing", "alibi, from 0", "alibi"),
        "reading": [*seen.readings],
        "frequencies": ("10000", "500000", "1000000", *seen.frequencies) if way.rotary != "nothing" else (),
        "softmax": ("queries", "heads", "nothing"),
    }


def _told(seen: Recorded, hiding: bool) -> list[str]:
    """The arrays among arguments and results that hide something, or those that do not."""
    return [name for name, array in seen.masks.items() if bool((array < HIDDEN).any()) == hiding]


def does(name: str, value: Any) -> str:
    """One decision, in words that follow "JAX" or "torch"."""
    return _WORDS[name](value)


def _attends(mask: str) -> str:
    words = {
        "everything": "to everything",
        "causal": "causally",
        "causal without the diagonal": "causally, and not to the position itself",
    }
    if mask.startswith("causal the other way"):
        return "to what comes later: it reads the mask the other way"
    return words.get(mask, f"as {mask} says")


def _frequencies(name: str) -> str:
    return f"a base of {name}" if name.isdigit() else f"its {name}"


_WORDS: Mapping[str, Callable[[Any], str]] = {
    "heads": lambda count: f"divides the features into {count} heads",
    "reading": lambda words: f"reads {words}",
    "split": lambda order: f"splits features as {order}",
    "merge": lambda order: f"merges heads as {order}",
    "groups": lambda how: f"has the heads of keys {how} for the queries",
    "scale": lambda by: "does not scale the logits" if by == "1" else f"scales the logits by {by}",
    "mask": lambda mask: f"attends {_attends(mask)}",
    "bias": lambda bias: f"adds {bias or 'no bias'} to the logits",
    "rotary": lambda kind: (
        f"has {'no rotary positions' if kind == 'nothing' else f'rotary positions of {kind}'}"
    ),
    "frequencies": lambda name: f"has rotary positions with {_frequencies(name)}",
    "softmax": lambda axis: f"takes the softmax over the {axis}",
}


_MENDS: Mapping[str, Callable[[Any], str]] = {
    "heads": lambda count: f"x.reshape(batch, time, {count}, -1)",
    "reading": lambda words: f"take {words} from the projections in this order",
    "split": lambda order: "x.reshape(batch, time, heads, depth)",
    "merge": lambda order: "heads back behind time, then x.reshape(batch, time, heads * depth)",
    "groups": lambda how: (
        "jnp.repeat(key, times, axis=heads)" if how == "repeated" else "jnp.tile over the heads"
    ),
    "scale": lambda by: "no scale" if by == "1" else f"logits * {by}",
    "mask": lambda mask: _MASK_MENDS.get(mask, f"the mask that {mask} is"),
    "bias": lambda bias: f"logits + {bias}" if bias else "no bias",
    "rotary": lambda kind: _ROTARY_MENDS.get(kind, "no rotary positions"),
    "frequencies": lambda name: f"angles of {_frequencies(name)}",
    "softmax": lambda axis: f"jax.nn.softmax over the axis of the {axis}",
}
_MASK_MENDS = {
    "everything": "no mask",
    "causal": "jnp.where(jnp.tril(jnp.ones((time, time), bool)), logits, -jnp.inf)",
}
_ROTARY_MENDS = {
    "halves": "a, b = jnp.split(x, 2, -1); jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)",
    "neighbours": "a, b = x[..., ::2], x[..., 1::2]; "
    "jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)",
}


def described(way: Attention, sure: Collection[str]) -> str:
    """A whole way, as far as one is sure of it, short.

    >>> described(Attention(4, mask="causal", rotary="halves"), ("heads", "rotary", "mask"))
    '4 heads, rotary of halves, causal'
    """
    words = {
        "heads": f"{way.heads} heads",
        "rotary": "" if way.rotary == "nothing" else f"rotary of {way.rotary}",
        "bias": way.bias,
        "mask": "" if way.mask == "everything" else way.mask,
        "scale": "not scaled" if way.scale == "1" else f"scaled by {way.scale}",
    }
    return ", ".join(said for name, said in words.items() if said and name in sure)


def divisors(width: int) -> list[int]:
    """Every number of heads that so many features may have."""
    return [n for n in range(1, width + 1) if width % n == 0]


# What was recorded.


def records(run: Run, layer: Layer) -> Iterator[Recorded]:
    """Queries, keys and values around an output projection, nearest module first."""
    for outer in _around(layer.theirs.name):
        heads = nearest(run.port.theirs, layer.theirs.name, HEADS)
        readings = readings_of(_calls_in(run, layer, outer), layer, heads)
        if readings and _is_of(readings, layer):
            yield Recorded(readings, dict(_masks(run, layer, readings)), dict(_angles(run)))


def _is_of(readings: Mapping[str, Arrays], layer: Layer) -> bool:
    """True if the output projection reads as much at as many times as there are queries."""
    query, read = next(iter(readings.values()))[0], layer.theirs.input
    return read is not None and read.ndim > 2 and query.shape == _flat(read).shape


def _around(name: str) -> Iterator[str]:
    """The modules around a module, nearest first; "" is the model."""
    parts = name.split(".")[:-1]
    yield from (".".join(parts[:n]) for n in range(len(parts), max(-1, len(parts) - MOST_ROUNDS), -1))


def _calls_in(run: Run, layer: Layer, outer: str) -> list[Call]:
    """The last call of each layer in a module before the output projection."""
    prefix = f"{outer}." if outer else ""
    before = [c for c in run.calls[: layer.position] if c.name.startswith(prefix)]
    names = {pair.name for pair in run.pairs if pair.is_layer}
    return [*{c.name: c for c in before if c.name in names}.values()]


def readings_of(calls: Sequence[Call], layer: Layer, heads: int) -> dict[str, Arrays]:
    """What may be queries, keys and values, by words for it; {} if nothing may.

    Names that begin with q, k and v tell which is which; else it is the order in which they were called.

    Args:
        calls: before the output projection, in its neighbourhood.
        heads: of torch, 0 if unknown: each may have its query, key and value side by side.
    """
    arrays = {c.name: _flat(c.output) for c in calls if c.output is not None and c.output.ndim in (3, 4)}
    roles = {m[1].lower(): name for name in arrays if (m := _ROLE.match(name.rpartition(".")[2]))}
    if set(roles) == {"q", "k", "v"}:
        return _orders([arrays[roles[letter]] for letter in "qkv"])
    width = 0 if layer.theirs.input is None else layer.theirs.input.shape[-1]
    for array in reversed(arrays.values()):
        if array.shape[-1] > width and (array.shape[-1] - width) % 2 == 0:
            return _fused(array, width, heads)
    return _orders([*arrays.values()][-3:]) if len(arrays) >= 3 else {}


_ROLE = re.compile(r"(?:to_|w|lin_|linear_)?([qkv])", re.IGNORECASE)


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(*array.shape[:2], -1)


def _orders(parts: Sequence[np.ndarray]) -> dict[str, Arrays]:
    names = PLAIN.split(", ")
    rows = {
        ", ".join(names[n] for n in order): tuple(parts[n] for n in order)
        for order in permutations((0, 1, 2))
    }
    return {words: row for words, row in rows.items() if row[1].shape[:2] == row[2].shape[:2]}  # type: ignore


def _fused(array: np.ndarray, width: int, heads: int) -> dict[str, Arrays]:
    """All blocks in one array: one after the other, or for each head anew."""
    rest = (array.shape[-1] - width) // 2
    found = _orders(np.split(array, (width, width + rest), -1))
    if heads < 2 or rest != width or width % heads:
        return found
    parts = np.moveaxis(array.reshape(*array.shape[:2], heads, 3, -1), 3, 0)
    each = _orders([_flat(part) for part in parts])
    return {
        **{f"{words}, one after the other": row for words, row in found.items()},
        **{f"{words}, side by side in each head": row for words, row in each.items()},
    }


def _masks(run: Run, layer: Layer, readings: Mapping[str, Arrays]) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of (..., queries, keys) among what the modules around took and gave, as what is added."""
    query, key, _ = next(iter(readings.values()))
    shape = (query.shape[1], key.shape[1])
    around = tuple(_around(layer.theirs.name))
    calls = [c for c in run.calls[layer.position :] if c.name in around and c.number == layer.theirs.number]
    for name, array in ((n, a) for c in calls[:1] for n, a in _given(c)):
        if array.ndim == 4 and array.shape[-2:] == shape and array.shape[0] in (1, query.shape[0]):
            added = np.where(array, 0.0, 2 * FAR) if array.dtype == bool else array
            if not _is_causal(added):
                yield name, added


def _is_causal(mask: np.ndarray) -> bool:
    """True for a mask that hides what comes later and does nothing else, which has a word of its own."""
    hidden = mask < HIDDEN
    return bool(np.all(hidden == ~np.tri(*mask.shape[-2:], dtype=bool)) and np.all(mask[~hidden] == 0))


def _given(call: Call) -> Iterable[tuple[str, np.ndarray]]:
    for kind, arrays in (("argument", call.inputs), ("result", call.outputs)):
        yield from ((f'"{call.name}" {kind} {name}', a) for name, a in arrays.items())


def _angles(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    for name, buffer in run.port.theirs.named_buffers():
        if name.endswith("inv_freq"):
            yield name, np.asarray(as_numpy(buffer))
