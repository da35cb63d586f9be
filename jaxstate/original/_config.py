"""A config of transformers as the original: what it says of all layers of a kind.

It names no layer. Where none of the model's layers has the config's value, some layer is wrong; where some
have it and some have not, as when a model's last norm alone is configured, nothing is claimed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isclose
from typing import Any

from jaxstate.binding import Binding
from jaxstate.original._layers import Known
from jaxstate.rules.declared import Tied
from jaxstate.settings import Setting, gelu_named, shown


@dataclass(frozen=True)
class Word:
    """A word of configs: the setting that it is, and a part of the names of the layers that have it."""

    key: str
    setting: str
    kinds: tuple[str, ...]


_NORMS = ("LayerNorm", "RMSNorm")

_BASES = ("PreTrainedConfig", "PretrainedConfig")  # the class has been renamed

WORDS = (
    *(Word(key, "eps", _NORMS) for key in ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon")),
    Word("norm_epsilon", "eps", _NORMS),
    Word("rms_norm_eps", "eps", ("RMSNorm",)),
    *(Word(key, "num_heads", ("Attention",)) for key in ("num_attention_heads", "n_head")),
    *(Word(key, "dropout", ("Attention",)) for key in ("attention_probs_dropout_prob", "attention_dropout")),
)
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn")


def is_config(value: Any) -> bool:
    """True for a config of transformers, recognised without importing it, or what a config.json holds."""
    base = sys.modules.get("transformers.configuration_utils")
    known = tuple(vars(base)[name] for name in _BASES if name in vars(base)) if base else ()
    if isinstance(value, Mapping):
        return not any(hasattr(part, "shape") for part in value.values())  # that is a state_dict
    return isinstance(value, known)


def settings_unlike(config: Any, layers: Sequence[Known]) -> list[Setting]:
    """The settings that none of the layers has as the config says."""
    rows = []
    for word, value, found in _words(config, layers):
        if not any(_same(layer, word, value) for layer in found):
            rows += [_row(word, value, layer, name) for layer in found for name in _names(layer)]
    return rows


def not_compared(config: Any, layers: Sequence[Known]) -> Iterator[str]:
    """Layers with another value than the config's, where some have it."""
    words = list(_words(config, layers))
    if not words:
        yield "anything that the config says, as no layer that was read is set to such a thing"
    for word, value, found in words:
        same = [_same(layer, word, value) for layer in found]
        if any(same) and not all(same):
            others = (layer for layer, yes in zip(found, same, strict=True) if not yes)
            names = ", ".join(name for layer in others for name in _names(layer))
            yield f"{names} (set otherwise than {word.key}, which a config does not say layer by layer)"


def gelus_of(config: Any) -> Mapping[str, str]:
    """Which GELU the config names, by its words."""
    return {key: kind for key in ACTIVATIONS if (kind := gelu_named(_get(config, key)))}


def other_ties(config: Any, layers: Sequence[Known], binding: Binding) -> Iterator[str]:
    """Embeddings that are tied to the output's weights on one side only."""
    shape = (_get(config, "vocab_size"), _get(config, "hidden_size"))
    embeddings, linears = (_weights(layers, binding, kind, shape) for kind in ("embedding", "linear"))
    ties = {key: to for rule in binding.rules if isinstance(rule, Tied) for key, to in rule.pairs}
    tied = [(key, to) for key, to in ties.items() if binding.shapes.get(key) == shape]
    if _get(config, "tie_word_embeddings") is True and not tied:
        for one, other in product(embeddings, linears):
            yield f'tie_word_embeddings is true, and "{one}" and "{other}" are two leaves in JAX: train one'
    if _get(config, "tie_word_embeddings") is False:
        yield from (f'tie_word_embeddings is false, and "{a}" is tied to "{b}" in JAX' for a, b in tied)


def _words(config: Any, layers: Sequence[Known]) -> Iterator[tuple[Word, float, list[Known]]]:
    """What the config says, with the layers that it may say it of; once, if it has two words for it."""
    said: list[tuple[str, float, list[Known]]] = []
    for word in WORDS:
        value = _get(config, word.key)
        found = [layer for layer in layers if _has(layer, word)]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and found and (word.setting, value, found) not in said:
            said.append((word.setting, value, found))
            yield word, value, found


def _has(layer: Known, word: Word) -> bool:
    return word.setting in layer.settings.values and any(kind in layer.settings.kind for kind in word.kinds)


def _same(layer: Known, word: Word, value: float) -> bool:
    return isclose(layer.settings.values[word.setting], value, rel_tol=1e-9)


def _row(word: Word, value: float, layer: Known, name: str) -> Setting:
    ours = layer.settings
    theirs = f"{word.key}={shown(value)}"
    mend = ours.spelled(word.setting, value)
    return Setting(name, layer.path, word.setting, theirs, shown(ours.values[word.setting]), mend)


def _names(layer: Known) -> tuple[str, ...]:
    return layer.names or (layer.path,)


def _weights(layers: Sequence[Known], binding: Binding, kind: str, shape: tuple[Any, Any]) -> list[str]:
    keys = [f"{name}.weight" for layer in layers if layer.kind == kind for name in layer.names]
    return [key for key in keys if binding.shapes.get(key) == shape]


def _get(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
