"""Mistakes of what is called with what: each is another function, or another `__call__`, of one twin.

A row is a family, a target, what stands there, where a report is to look, and a pattern of its cause.
"""

import jax
import jax.numpy as jnp


def against(length):
    """A mask whose author took True for what is hidden."""
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), -1e9, 0.0)


def against_infinitely(length):
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), -jnp.inf, 0.0)


def past(length):
    """A mask that hides the position itself as well."""
    return jnp.where(jnp.tril(jnp.ones((length, length), bool), -1), 0.0, -1e9)


def attending(axis=-1, order="bqhd", scaled=lambda depth, heads: depth**-0.5, swap=False):
    """The twins' `attend`, with a decision in it that is wrong."""

    def attend(query, key, value, bias=0.0, scale=None):
        key, value = (value, key) if swap else (key, value)
        scale = scaled(query.shape[-1], query.shape[-2]) if scale is None else scale
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) * scale + bias, axis=axis)
        found = jnp.einsum(f"bhqk,bkhd->{order}", weights, value)
        return found.reshape(query.shape[0], query.shape[1], -1)

    return attend


ATTENTIONS = [
    ("softmax over the queries", attending(axis=-2), "softmax over the queries"),
    ("softmax over the heads", attending(axis=1), "softmax over the heads"),
    ("heads merged before time", attending(order="bhqd"), r"merges heads as \(heads, time"),
    ("depth merged before heads", attending(order="bqdh"), r"merges heads as \(time, depth, heads"),
    (
        "logits scaled by depth",
        attending(scaled=lambda depth, heads: 1 / depth),
        "scales the logits by 1 / depth",
    ),
    (
        "logits scaled by all features",
        attending(scaled=lambda depth, heads: (depth * heads) ** -0.5),
        r"scales the logits by 1 / sqrt\(features",
    ),
    ("keys and values swapped", attending(swap=True), "reads query, value, key"),
]
MASKS = [
    ("mask the other way", against, "the other way"),
    ("mask the other way, of -inf", against_infinitely, "the other way"),
    ("a mask of what is past", past, "not to the position itself"),
]


def behind_the_norm(first, attention, second, mlp):
    """A residual that is taken from what a norm returned."""

    def call(self, x, *rest):
        y = getattr(self, first)(x)
        x = y + getattr(self, attention)(y)
        return x + getattr(self, mlp)(getattr(self, second)(x))

    return call


def norms_after(first, attention, second, mlp):
    def call(self, x):
        x = getattr(self, first)(x + getattr(self, attention)(x))
        return getattr(self, second)(x + getattr(self, mlp)(x))

    return call


def no_residual(first, attention, second, mlp):
    def call(self, x):
        x = getattr(self, attention)(getattr(self, first)(x))
        return x + getattr(self, mlp)(getattr(self, second)(x))

    return call


def norms_shared(first, attention, second, mlp):
    """The first norm called twice."""

    def call(self, x):
        x = x + getattr(self, attention)(getattr(self, first)(x))
        return x + getattr(self, mlp)(getattr(self, first)(x))

    return call


def side_by_side(first, attention, second, mlp):
    """Attention and MLP that read the same, as GPT-J's do."""

    def call(self, x):
        return (
            x
            + getattr(self, attention)(getattr(self, first)(x))
            + getattr(self, mlp)(getattr(self, second)(x))
        )

    return call


BLOCKS = {  # the class, its parts, and where torch has the first of them
    "gpt2": ("Block", ("ln_1", "attn", "ln_2", "mlp"), "transformer.h.0."),
    "llama": (
        "Layer",
        ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
        "model.layers.0.",
    ),
    "bloom": (
        "Block",
        ("input_layernorm", "self_attention", "post_attention_layernorm", "mlp"),
        "transformer.h.0.",
    ),
    "vit": ("Layer", ("layernorm_before", "attention", "layernorm_after", "mlp"), "vit.layers.0."),
}


def blocks(name):
    """Residuals and norms, in twins whose norms come first."""
    kind, parts, prefix = BLOCKS[name]
    for family, make, place, cause in (
        (
            "residual from behind the norm",
            behind_the_norm,
            parts[2],
            rf'reads what "{prefix}{parts[0]}" returns \+',
        ),
        ("norms after", norms_after, parts[0], "and torch what"),
        (
            "no residual",
            no_residual,
            parts[2],
            "operand of torch's add|reads what .* returns, and torch what",
        ),
        ("a norm for both", norms_shared, parts[2], "not called|never called|of another|reads what"),
        ("side by side", side_by_side, parts[2], "reads what .* and torch what"),
    ):
        yield family, f"{name}_twin.{kind}.__call__", make(*parts), prefix + place, cause
