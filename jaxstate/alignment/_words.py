"""What a name says: the words in it, in one spelling, and the numbers in it.

The lists below are all that is known of names. A word that is not in them stands for itself, so an
abbreviation that nobody listed is no evidence, and a name of such words has to be said by the caller.
"""

import re
from functools import cache

_SAME = {
    "query": "q wq",
    "key": "k wk",
    "value": "v wv",
    "output": "out o wo",
    "input": "in",
    "attention": "attn att mha",
    "cross": "xattn",
    "norm": "ln layernorm normalization bn batchnorm gn groupnorm rmsnorm",
    "linear": "fc dense lin",
    "conv": "convolution convolutional",
    "embedding": "emb embed embedder",
    "token": "tok word vocab",
    "position": "pos positional",
    "segment": "seg type",
    "encoder": "enc",
    "decoder": "dec",
    "mlp": "ffn ff ffw feed feedforward",
    "shortcut": "downsample skip",
    "head": "classifier",
    "before": "pre",
    "after": "post",
    "forward": "fwd",
    "backward": "bwd bw reverse",
    "source": "src",
    "target": "tgt trg",
    "vision": "visual image",
    "final": "f last",
    "layer": "block blk",
    "proj": "projection project",
    "pool": "pooler pooling",
}
_CANON = {other: (word,) for word, others in _SAME.items() for other in others.split()}
_CANON |= {"wte": ("token", "embedding"), "wpe": ("position", "embedding")}

# What a layer is, or where lists of layers stand: so common that it tells nothing apart.
_COMMON = frozenset("norm linear conv embedding layer proj module model stage net h c".split())

_WHERE = frozenset("before after input output first final".split())

# A name with one of these words is not a name with another one of the same line.
_OPPOSITES = [
    frozenset(line.split())
    for line in (
        "query key value output",
        "input output",
        "token position segment",
        "encoder decoder",
        "before after",
        "up down gate",
        "forward backward",
        "source target",
        "self cross",
        "left right",
        "first final",
        "student teacher",
        "actor critic",
        "generator discriminator",
        "text vision audio",
        "online momentum",
    )
]


@cache
def words(name: str) -> frozenset[str]:
    """The words of a name that tell it from others: lower case, singular, synonyms as one.

    >>> sorted(words("layers_0.attn.q_proj")), sorted(words("encoder.layer.0.SelfAttention.query"))
    (['attention', 'query'], ['attention', 'encoder', 'query', 'self'])
    """
    return _all_words(name) - _COMMON


def common_words(left: str, right: str) -> frozenset[str]:
    """The words in both names; none if only one says where it stands: "post_attention_norm" comes after
    the attention, and an "attention_norm" before it, as some have it.

    >>> common_words("attn.q", "attention.query") == {"attention", "query"}
    True
    >>> common_words("post_attention_norm", "attention_norm")
    frozenset()
    """
    a, b = words(left), words(right)
    return frozenset() if (a ^ b) & _WHERE else a & b


def excluded(left: str, right: str) -> bool:
    """True if the names cannot be of one thing: "ln_pre" and "ln_post".

    >>> excluded("ln_pre", "ln_post"), excluded("output.query", "attn.q")
    (True, False)
    """
    a, b = _all_words(left), _all_words(right)
    return any(a & line and b & line and not a & b & line for line in _OPPOSITES)


@cache
def family(name: str) -> str:
    """A name without its numbers.

    >>> family("layers_10.conv2")
    'layers_#.conv#'
    """
    return re.sub(r"\d+", "#", name)


@cache
def numbers(name: str) -> tuple[int, ...]:
    """The numbers in a name.

    >>> numbers("layers_10.conv2")
    (10, 2)
    """
    return tuple(int(digits) for digits in re.findall(r"\d+", name))


@cache
def _all_words(name: str) -> frozenset[str]:
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return frozenset(word for part in found for word in _canonical(part.lower()))


def _canonical(word: str) -> tuple[str, ...]:
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return _CANON.get(word) or _CANON.get(singular) or (singular,)
