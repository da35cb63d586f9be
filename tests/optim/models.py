"""Models for the optimizer tests: torch parameters, and the Binding that says what they are in JAX.

Each Binding meets another difficulty: transposed and convolutional layouts, an axis that a flatten merged in
another order, layers stacked into one leaf, one key made of several leaves, a tied key.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxstate.optim as optim
from jaxstate.binding import Binding
from jaxstate.declared import Tied, TorchOnly
from jaxstate.rule import Rule

# Shapes that all differ: a layout that is wrong does not fit.
DIFFERENT = Binding(
    (
        Rule("conv.weight", "conv.kernel", "h w i o -> o i h w", shape=(2, 3, 4, 5)),
        Rule("conv.bias", "conv.bias", "o -> o", shape=(5,)),
        Rule("fc.weight", "fc.kernel", "(h w c) o -> o (c h w)", h=2, w=3, c=5, shape=(30, 7)),
        Rule("fc.bias", "fc.bias", "o -> o", shape=(7,)),
        Rule(
            "attn.in_proj", "attn.{qkv}.kernel", "d n k -> (qkv n k) d", qkv=("query", "key", "value"),
            shape=(6, 2, 4),
        ),
        Rule("h.{l}.weight", "blocks.kernel", "l i o -> o i", l=range(3), shape=(3, 4, 6)),
        Rule("h.{l}.bias", "blocks.bias", "l o -> o", l=range(3), shape=(3, 6)),
        Rule("wte.weight", "embed.embedding", "v d -> v d", shape=(11, 4)),
        Tied("head.weight", "wte.weight"),
        TorchOnly("bn.num_batches_tracked", np.int64(0), counter=True),
    )
)  # fmt: skip

# Shapes that are all equal: a layout that is wrong fits, and only values tell.
EQUAL = Binding(
    (
        Rule("z.weight", "a.kernel", "i o -> o i", shape=(3, 3)),
        Rule("conv.weight", "b.kernel", "h w i o -> o i h w", shape=(3, 3, 3, 3)),
        Rule("a.weight", "z.kernel", "i o -> o i", shape=(3, 3)),
        Rule("h.{l}.weight", "h.{l}.kernel", "i o -> o i", l=range(3), shape=(3, 3)),
    )
)


def nested(leaves):
    """The flat leaves as a tree of dicts."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flat(tree):
    """The leaves of a tree by dotted path."""
    paths = optim._state_dict.leaf_paths(tree) if False else _leaf_paths(tree)
    return dict(zip(paths, jax.tree.leaves(tree), strict=True))


def to_jax(binding, arrays):
    """The tree of JAX leaves of torch's arrays, given by parameter name."""
    tied = {key: to for rule in binding.rules if isinstance(rule, Tied) for key, to in rule.pairs}
    whole = {key: arrays.get(key, arrays.get(tied.get(key, key))) for key in binding.keys}
    whole["bn.num_batches_tracked"] = np.int64(0)
    return jax.tree.map(jnp.asarray, nested(binding.leaves({key: whole[key] for key in binding.keys})))


def to_torch(binding, tree):
    """torch's arrays by parameter name."""
    moved = binding.state_dict({path: np.asarray(leaf) for path, leaf in flat(tree).items()})
    return {name: moved[name] for name in binding.parameters}
