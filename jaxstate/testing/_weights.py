"""Weights under suspicion: what a JAX layer may hold in place of torch's entries.

Where the model can be read by its own Binding, what it holds is known, and only has to be named. Elsewhere
the ways in which weights go wrong are tried, one after another, on torch's layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from jaxstate.rules.declared import Sum
from jaxstate.testing._experiments import Suspicion, with_entries
from jaxstate.testing._layers import Layer, Run
from jaxstate.testing._torch_side import called_again
from jaxstate.testing._variants import Variant, explained, variants

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
DEPTHS = ("head_dim", "attention_head_size", "key_value_proj_dim")
MOST = 8  # keys in one sentence
QKV = ("query", "key", "value")
GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}


def wrong_entries(run: Run) -> dict[str, np.ndarray]:
    """What the JAX model holds under torch's keys, as it reads itself, where that is not torch's."""
    held = {key: a for key, a in run.port.held.items() if not key.endswith("num_batches_tracked")}
    rules = run.port.own.rules if run.port.own else ()
    sums = {key for rule in rules if isinstance(rule, Sum) for key in rule.keys}
    return {key: a for key, a in held.items() if key not in sums and not _close(a, run.entries[key])}


def held_otherwise(run: Run, layer: Layer, module: Any) -> Iterator[Suspicion]:
    """The JAX layer holds other weights: read by its own Binding, beside torch's."""
    prefix, entries = _prefix(layer), run.entries
    wrong = {key: a for key, a in wrong_entries(run).items() if key.startswith(prefix)}
    if not wrong:
        return
    own = {key: _variants(run, layer, module, key.removeprefix(prefix), entries[key]) for key in wrong}
    tails = {key.removeprefix(prefix): array for key, array in wrong.items()}
    yield Suspicion(
        _other(run, wrong, own),
        _rules_to_mend(run, list(wrong)),
        lambda: called_again(with_entries(module, tails), layer.theirs),
    )


Held = tuple[str, str, Mapping[str, np.ndarray]]  # what is wrong, what mends it, what is held instead


def held_between(run: Run) -> Iterator[Held]:
    """The JAX model holds other weights, as in modules that cannot be watched, or tables that none calls."""
    if wrong := wrong_entries(run):
        own = {key: _bare_variants(run, key) for key in wrong}
        yield _other(run, wrong, own), _rules_to_mend(run, list(wrong)), wrong


def guessed_between(run: Run) -> Iterator[Held]:
    """What entries may be that no watched layer holds, where the model cannot be read."""
    covered = tuple(f"{pair.name}." for pair in run.pairs if pair.is_layer)
    for key in [key for key in run.entries if not key.startswith(covered)] if not run.port.own else ():
        for words, variant in _bare_variants(run, key):
            yield f'holds "{key}" {words}', _look_at(run, [key]), {key: variant}


def _bare_variants(run: Run, key: str) -> Iterator[Variant]:
    return variants(key.rpartition(".")[2], run.entries[key], images=run.images)


def _other(run: Run, wrong: Mapping[str, np.ndarray], own: Mapping[str, Iterator[Variant]]) -> str:
    words = [f'"{key}" {explained(a, key, run.entries, own[key])}' for key, a in wrong.items()]
    return f"holds other weights: {'; '.join(words[:MOST])}{'; ...' * (len(words) > MOST)}"


def held_by_guess(run: Run, layer: Layer, module: Any) -> Iterator[Suspicion]:
    """What the layer may hold where it cannot be read, simple mistakes first."""
    for words, entries in _mistakes(run, layer, module):
        yield Suspicion(
            f"holds {words}",
            _look_at(run, [_prefix(layer) + tail for tail in entries]),
            lambda entries=entries: called_again(with_entries(module, entries), layer.theirs),
        )


def _mistakes(run: Run, layer: Layer, module: Any) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    prefix = _prefix(layer)
    tails = {key.removeprefix(prefix): a for key, a in run.entries.items() if key.startswith(prefix)}
    tails = {tail: a for tail, a in tails.items() if a.dtype.kind == "f" and a.size}
    yield from _of_another(run, prefix, tails)
    together: dict[str, dict[str, np.ndarray]] = {}
    for tail, array in tails.items():
        for words, variant in _variants(run, layer, module, tail, array):
            yield f'"{prefix}{tail}" {words}', {tail: variant}
            together.setdefault(words, {})[tail] = variant
    for words, entries in together.items():
        if len(entries) > 1:
            yield f"{', '.join(f'{prefix}{tail}' for tail in entries)} {words}", entries
    for a, b in combinations(tails, 2):
        if tails[a].shape == tails[b].shape:
            yield f'"{prefix}{a}" and "{prefix}{b}" swapped', {a: tails[b], b: tails[a]}
    for tail, array in tails.items():
        for key, other in run.entries.items():
            if other.shape == array.shape and key != prefix + tail:
                yield f'"{prefix}{tail}" replaced by torch\'s "{key}"', {tail: other}


def _of_another(run: Run, prefix: str, tails: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    """All of another layer's weights, as where two are swapped or all are shifted by one."""
    for other in dict.fromkeys(_prefix(layer) for layer in run.layers):
        found = {tail: run.entries[other + tail] for tail in tails if other + tail in run.entries}
        if other != prefix and [a.shape for a in found.values()] == [a.shape for a in tails.values()]:
            yield f'the weights of torch\'s "{other.removesuffix(".")}"', found


def _variants(run: Run, layer: Layer, module: Any, tail: str, array: np.ndarray) -> Iterator[Variant]:
    near = lambda names: nearest(run.port.theirs, layer.theirs.name, names)  # noqa: E731
    heads, depth = near(HEADS), near(DEPTHS)
    gates = GATES.get(type(module).__name__.removesuffix("Cell"), ())
    is_attention = heads > 1 or depth > 0
    fused = is_attention and (tail.startswith("in_proj") or 3 * min(array.shape) == max(array.shape))
    return variants(tail, array, QKV if fused else gates, heads, depth, run.images)


def nearest(module: Any, name: str, attributes: Sequence[str], kind: type = int) -> Any:
    """A number that a layer's module, or the nearest one around it, has under one of these names, or 0."""
    parts = name.split(".")
    around = (module.get_submodule(".".join(parts[:n])) for n in range(len(parts), -1, -1))
    found = (getattr(m, attribute, None) for m in around for attribute in attributes)
    return next((n for n in found if isinstance(n, kind)), 0)


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=1e-6, atol=0, equal_nan=True)


def _rules_to_mend(run: Run, keys: Sequence[str]) -> str:
    """The Rules as the model reads itself, beside those that the caller gave."""
    own, given = (_rules(binding, keys) for binding in (run.port.own, run.port.given))
    if own and given - own:
        return f"{', '.join(sorted(own - given))} in place of {', '.join(sorted(given - own))}"
    return "js.load_state_dict(model, torch_module.state_dict(), binding)"


def _look_at(run: Run, keys: Sequence[str]) -> str:
    rules = _rules(run.port.given, keys)
    return f"look at {', '.join(sorted(rules))}" if rules else "look at where these weights were loaded"


def _rules(binding: Any, keys: Sequence[str]) -> set[str]:
    return {repr(rule) for rule in binding.rules if set(rule.keys) & set(keys)} if binding else set()


def _prefix(layer: Layer) -> str:
    return f"{layer.theirs.name}." if layer.theirs.name else ""
