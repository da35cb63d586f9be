"""Rewrites: what may be wrong between two layers, each as an experiment on torch's own run.

Activations, reshapes, pools and attention are often plain functions, which no module shows. torch lets its
functions be intercepted, so the model is run once more, and between the two layers, and only there, one kind
of function is computed otherwise. If the next layer then reads what JAX's reads, that was the mistake.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from jaxstate.testing._torch_side import torch

Function = Callable[..., Any]

ACTIVATIONS = {
    "relu": "nnx.relu(x)",
    "gelu": "nnx.gelu(x, approximate=False)",
    "gelu, approximated by tanh": "nnx.gelu(x, approximate=True)",
    "silu": "nnx.silu(x)",
    "tanh": "nnx.tanh(x)",
    "sigmoid": "nnx.sigmoid(x)",
    "elu": "nnx.elu(x)",
    "leaky_relu": "nnx.leaky_relu(x, ...)",
    "selu": "nnx.selu(x)",
    "mish": "jax.nn.mish(x)",
    "softplus": "nnx.softplus(x)",
    "hardswish": "nnx.hard_swish(x)",
    "sigmoid(1.702 x) x": "x * nnx.sigmoid(1.702 * x)",
    "leaky_relu of slope 0.2": "nnx.leaky_relu(x, 0.2)",
    "nothing": "no activation",
}


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One kind of function, computed otherwise.

    Attributes:
        names: of the torch functions that it concerns.
        says: what JAX does, given what torch does.
        mend: what JAX is to do, given the same.
        compute: the function in its place; of what would have been called, with its arguments.
    """

    names: frozenset[str]
    says: Callable[[str], str]
    mend: Callable[[str], str]
    compute: Callable[[Function, tuple, Mapping[str, Any]], Any]


@dataclass
class Met:
    """The functions that a rewrite was applied to."""

    names: dict[str, None] = field(default_factory=dict)


def rewrites() -> Iterator[Rewrite]:
    """Every rewrite that is tried, likely ones first."""
    yield from _activations()
    yield from _flattens()
    yield from _attentions()
    yield from _pools()
    yield from _others()


def rewriting(rewrite: Rewrite, active: Callable[[], bool], met: Met) -> Any:
    """A context in which torch computes as the rewrite says, as long as it is active."""

    def intercepted(mode: Any, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").strip("_")
        if name not in rewrite.names or not active():
            return func(*args, **kwargs)
        result = rewrite.compute(func, args, kwargs)
        met.names[spoken(name, args, kwargs)] = None
        return result

    base = torch().overrides.TorchFunctionMode
    return type("Rewriting", (base,), {"__torch_function__": intercepted})()


def spoken(name: str, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """A function as a report calls it."""
    approximate = kwargs.get("approximate") == "tanh" or "tanh" in args[1:2]
    return "gelu, approximated by tanh" if name == "gelu" and approximate else name


def activations() -> Mapping[str, Function]:
    """Every activation that is tried, by its words in `ACTIVATIONS`."""
    f = torch().nn.functional
    plain = ("tanh", "sigmoid", "elu", "selu", "mish", "softplus", "hardswish")
    return {
        "gelu, approximated by tanh": lambda x: f.gelu(x, approximate="tanh"),
        "gelu": f.gelu,
        "relu": f.relu,
        "silu": f.silu,
        "sigmoid(1.702 x) x": lambda x: x * (1.702 * x).sigmoid(),
        "leaky_relu": f.leaky_relu,
        "leaky_relu of slope 0.2": lambda x: f.leaky_relu(x, 0.2),
        **{name: getattr(f, name) for name in plain},
        "nothing": lambda x: x,
    }


def _activations() -> Iterator[Rewrite]:
    names = frozenset(name for name in ACTIVATIONS if name.isidentifier()) - {"nothing"}
    for words, function in activations().items():
        yield Rewrite(
            names,
            lambda theirs, words=words: f"computes {words} where torch computes {theirs}",
            lambda theirs: ACTIVATIONS.get(theirs, theirs),
            lambda func, args, kwargs, function=function: function(args[0].clone()),
        )


def _flattens() -> Iterator[Rewrite]:
    def last(func: Function, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        image = args[0]
        return func(image.movedim(1, -1) if image.ndim > 2 else image, *args[1:], **kwargs)

    yield Rewrite(
        frozenset({"flatten", "reshape", "view"}),
        lambda theirs: f"flattens an image channels last, and torch's {theirs} channels first",
        lambda theirs: (
            "js.bind(model, *inputs), which finds flattens by tracing, or flatten={layer: (C, H, W)}: "
            'the Rule of the next kernel is "(h w c) o -> o (c h w)"'
        ),
        last,
    )


def _attentions() -> Iterator[Rewrite]:
    names = frozenset({"scaled_dot_product_attention"})

    def without(func: Function, args: tuple, kwargs: Mapping[str, Any], **changes: Any) -> Any:
        given = {
            **dict(zip(("attn_mask", "dropout_p", "is_causal", "scale"), args[3:], strict=False)),
            **kwargs,
        }
        return func(*args[:3], **{**given, **changes})

    def inverted(func: Function, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if mask is None:
            raise ValueError("there is no mask to read the other way")
        return without(func, args, kwargs, attn_mask=~mask)

    told: Mapping[str, tuple[str, Any]] = {
        "reads the mask the other way": ("mask=~mask", inverted),
        "attends to everything": (
            "torch's mask",
            lambda *call: without(*call, attn_mask=None, is_causal=False),
        ),
        "attends causally": ("no mask", lambda *call: without(*call, attn_mask=None, is_causal=True)),
        "does not scale the logits": ("query / sqrt(head_dim)", lambda *call: without(*call, scale=1.0)),
    }
    told = {**told, **dict(_regrouped(without))}
    for words, (mend, compute) in told.items():
        yield Rewrite(names, lambda theirs, words=words: words, lambda theirs, mend=mend: mend, compute)
    yield Rewrite(
        frozenset({"masked_fill"}),
        lambda theirs: "reads the mask the other way",
        lambda theirs: "~mask",
        lambda func, args, kwargs: func(args[0], ~args[1], *args[2:], **kwargs),
    )


COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of heads


def _regrouped(attention: Callable[..., Any]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Features divided into heads in another way than torch's, whose arrays are (..., heads, time, depth)."""

    def regrouped(call: tuple, split: Callable[[Any, int], Any]) -> Any:
        func, args, kwargs = call
        count, depth = args[0].shape[-3], args[0].shape[-1]
        parts = [split(x.transpose(-2, -3).flatten(-2), count).transpose(-2, -3) for x in args[:3]]
        usual = kwargs.get("scale") == depth**-0.5  # said aloud; it is another one for another depth
        found = attention(func, (*parts, *args[3:]), kwargs, **({"scale": None} if usual else {}))
        return found.transpose(-2, -3).flatten(-2).unflatten(-1, (count, depth)).transpose(-2, -3)

    for n in COUNTS:
        divided = lambda x, count, n=n: x.unflatten(-1, (n, -1))  # noqa: E731
        words = f"divides the features into {n} heads, and torch into another number"
        yield words, ("torch's number of heads", lambda *call, divided=divided: regrouped(call, divided))
    innermost = lambda x, count: x.unflatten(-1, (-1, count)).transpose(-1, -2)  # noqa: E731
    words = "divides the features into (depth, heads), and torch into (heads, depth)"
    yield words, ("x.reshape(..., heads, depth)", lambda *call: regrouped(call, innermost))


def _pools() -> Iterator[Rewrite]:
    f = torch().nn.functional
    swaps = {f"{a}_pool{n}d": f"{b}_pool{n}d" for n in (1, 2, 3) for a, b in (("max", "avg"), ("avg", "max"))}
    yield Rewrite(
        frozenset(swaps),
        lambda theirs: f"computes {swaps[theirs]} where torch computes {theirs}",
        lambda theirs: f"nnx.{theirs.partition('_')[0]}_pool",
        lambda func, args, kwargs: getattr(f, swaps[func.__name__])(*args[:4], **_only(kwargs, _WINDOW)),
    )
    for name in ("ceil_mode", "count_include_pad"):
        yield Rewrite(
            frozenset(swaps),
            lambda theirs, name=name: f"pools as torch's {theirs} does with the other {name}",
            lambda theirs, name=name: f"pads and counts as torch's {name} says",
            lambda func, args, kwargs, name=name: func(
                *args[:4], **{**kwargs, name: not kwargs.get(name, name != "ceil_mode")}
            ),
        )


_WINDOW = ("kernel_size", "stride", "padding")


_OPERATORS = (
    frozenset({"add", "iadd", "radd"}),
    frozenset({"mul", "imul", "rmul"}),
    frozenset({"div", "truediv"}),
    frozenset({"sub", "isub", "rsub"}),
)


def _others() -> Iterator[Rewrite]:
    for name in ("softmax", "log_softmax", "dropout", "normalize"):
        yield Rewrite(
            frozenset({name}),
            lambda theirs: f"leaves out the {theirs} that torch computes",
            lambda theirs: f"the {theirs} that torch computes",
            lambda func, args, kwargs: args[0],
        )
    for (n, word), names in product(enumerate(("second", "first")), _OPERATORS):
        yield Rewrite(
            names,
            lambda theirs, word=word: f"leaves out the {word} operand of torch's {theirs}, as of a residual",
            lambda theirs, word=word: f"the {word} operand of torch's {theirs}",
            lambda func, args, kwargs, n=n: args[n],
        )
    for dim in range(-4, 4):
        yield Rewrite(
            frozenset({"softmax", "log_softmax", "mean", "sum", "amax"}),
            lambda theirs, dim=dim: f"takes the {theirs} over torch's axis {dim}",
            lambda theirs: f"the axis that torch takes the {theirs} over",
            lambda func, args, kwargs, dim=dim: func(args[0], dim=dim, **_only(kwargs, ("keepdim", "dtype"))),
        )


def _only(kwargs: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name in names}
