"""Mutations: what ports are known to get wrong, made one at a time in a twin that is right.

Some change the Binding or the file, as a mistaken author would have them; some change the model. Which place
a report must then name is asked of torch, where torch can be given the same mistake, and said here elsewhere.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
from flax import nnx
from miscalls import ATTENTIONS, BLOCKS, MASKS, blocks
from miscalls_held_out import HELD_OUT
from miscalls_of_one import OWN
from misfunctions import FIRST, PATCHES, PLACES
from rights import Right

import jaxstate as js

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        family: what kind it is.
        what: where it is made.
        entries: torch's entries that were loaded as others.
        file: the file that was loaded, if it is no file of this model.
        binding: the Binding that its author believes in, if it is another one.
        model: makes the model another one.
        torch: makes torch's module another one.
        patches: functions that the model's author has otherwise, by where they stand.
        places: torch modules, of which the report must name one; asked of torch if there are none.
        cause: a pattern of words that the report must contain.
    """

    family: str
    what: str
    cause: str
    entries: State = field(default_factory=dict)
    file: State | None = None
    binding: js.Binding | None = None
    model: Callable[[nnx.Module], None] | None = None
    torch: Callable[[Any], Any] | None = None
    patches: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[str, ...] = ()


def mutations(right: Right) -> Iterator[Mutation]:
    """Every mistake that can be made in a twin: of the file, of the Binding, of the model."""
    for family in (*OF_FILES, *OF_BINDINGS, *OF_WEIGHTS, *OF_MODELS, *OF_CALLS, *OF_MODES):
        yield from family(right)


# Mistakes of a file, which are to be refused.


def _missing(right: Right) -> Iterator[Mutation]:
    key = right.weights[-1]
    changed = {k: a for k, a in right.entries.items() if right.owner(k) != right.owner(key)}
    yield Mutation("an entry missing", key, "Missing key", file=changed)


def _unexpected(right: Right) -> Iterator[Mutation]:
    key = right.weights[0]
    yield Mutation("an entry too many", key, "Unexpected key", file={**right.entries, f"{key}_g": np.ones(3)})


def _misshapen(right: Right) -> Iterator[Mutation]:
    keys = [k for k in right.weights if right.entries[k].ndim == 2 and len({*right.entries[k].shape}) == 2]
    for key in keys[:1]:
        changed = {**right.entries, key: right.entries[key].T}
        yield Mutation("another shape", key, "size mismatch", file=changed)


OF_FILES = (_missing, _unexpected, _misshapen)


# Mistakes of a Binding: right shapes, wrong weights.


def _swapped(right: Right) -> Iterator[Mutation]:
    """Two tensors of one shape: neighbours in the file, the ends of it, and of one module."""
    summed = {frozenset(rule.keys) for rule in right.binding.rules if isinstance(rule, js.Sum)}
    like = lambda a, b: right.entries[a].shape == right.entries[b].shape  # noqa: E731
    pairs = [p for p in combinations(right.weights, 2) if like(*p) and frozenset(p) not in summed]
    chosen = [pairs[0], pairs[len(pairs) // 3], pairs[2 * len(pairs) // 3], pairs[-1]]
    for a, b in dict.fromkeys(chosen):
        keys = {a: b, b: a}
        changed = {key: right.entries[other] for key, other in keys.items()}
        believed = right.rekeyed(lambda key, keys=keys: keys.get(key, key))
        yield Mutation(
            "two tensors swapped",
            f"{a}, {b}",
            rf'"({a}|{b})".* (replaced by|swapped)|the weights of torch\'s',
            changed,
            binding=believed,
        )


def _shifted(right: Right) -> Iterator[Mutation]:
    """Every layer of a list holds what the next one should."""
    for prefix, count in right.lists:
        turn = lambda key, p=prefix, n=count: re.sub(  # noqa: E731
            rf"^{re.escape(p)}\.(\d+)\.", lambda m: f"{p}.{(int(m[1]) + 1) % n}.", key
        )
        keys = {key: turn(key) for key in right.weights if turn(key) != key}
        shapes = {key: right.entries[key].shape for key in right.weights}
        if all(shapes.get(other) == shapes[key] for key, other in keys.items()):
            changed = {key: right.entries[other] for key, other in keys.items()}
            yield Mutation(
                "layers shifted by one",
                prefix,
                "replaced by|the weights of torch's",
                changed,
                binding=right.rekeyed(turn),
            )


def _transposed(right: Right) -> Iterator[Mutation]:
    square = [k for k in right.weights if right.entries[k].ndim == 2 and len({*right.entries[k].shape}) == 1]
    for key in square[:1] + square[1:][-1:]:
        believed = right.laid_out(key, lambda left, r: f"{left} -> {' '.join(reversed(r.split()))}")
        yield Mutation(
            "a square kernel transposed", key, "transposed", {key: right.entries[key].T}, binding=believed
        )


def _flipped(right: Right) -> Iterator[Mutation]:
    """A flip too many, or, of a transposed convolution, one that is left out."""
    for key in _images(right)[:2]:
        believed = right.laid_out(key, _with_flips)
        axes = tuple(range(2, right.entries[key].ndim))
        yield Mutation("a flip", key, "flipped", {key: np.flip(right.entries[key], axes)}, binding=believed)


def _with_flips(left: str, right: str) -> str:
    first, second, *space = right.replace("~", "").split()
    marks = space if "~" in right else [f"~{axis}" for axis in space]
    return f"{left} -> {' '.join([first, second, *marks])}"


def _spatial(right: Right) -> Iterator[Mutation]:
    for key in [k for k in _images(right) if right.entries[k].ndim == 4][-1:]:
        believed = right.laid_out(
            key, lambda left, r: f"{left} -> {' '.join(r.split()[:2] + r.split()[:1:-1])}"
        )
        changed = {key: np.swapaxes(right.entries[key], 2, 3)}
        yield Mutation("height and width swapped", key, "spatial axes|flipped", changed, binding=believed)


def _images(right: Right) -> list[str]:
    return [
        k
        for k in right.weights
        if right.entries[k].ndim > 2 and right.entries[k].shape[-1] > 1 and "conv" in k.lower()
    ]


OF_BINDINGS = (_swapped, _shifted, _transposed, _flipped, _spatial)


# Mistakes in weights, as in a script that prepares them.


def _heads(right: Right) -> Iterator[Mutation]:
    """Heads innermost, and heads in another order, in the projection of queries and of values."""
    names = r"\.(q|query|q_proj|v|value|v_proj|c_attn)\.weight$"
    keys = [key for key in right.weights if re.search(names, key)] if right.heads else []
    for key in keys[:2]:
        count = right.groups if re.search("k_proj|v_proj", key) else right.heads
        array, axis, blocks = right.entries[key], int("c_attn" in key), 3 if "c_attn" in key else 1
        rows = np.moveaxis(array, axis, 0)
        split = rows.reshape(blocks, count, -1, *rows.shape[1:])
        ways = {"heads innermost": np.swapaxes(split, 1, 2), "heads in another order": split[:, ::-1]}
        for family, way in ways.items():
            changed = {key: np.moveaxis(way.reshape(rows.shape), 0, axis)}
            yield Mutation(family, key, "heads innermost|heads outermost|heads in the order", changed)


def _blocks(right: Right) -> Iterator[Mutation]:
    """Queries, keys and values, or an LSTM's gates, in another order."""
    for key in [k for k in right.weights if re.search(r"c_attn\.weight|lstm\.weight_ih", k)][:2]:
        axis = int("c_attn" in key)
        parts = np.split(right.entries[key], 3 if axis else 4, axis)
        parts[0], parts[1] = parts[1], parts[0]
        yield Mutation("blocks in another order", key, "in the order", {key: np.concatenate(parts, axis)})


def _zero(right: Right) -> Iterator[Mutation]:
    for key in [k for k in right.weights if k.endswith("bias")][:1]:
        yield Mutation("a bias left out", key, "zero everywhere", {key: 0 * right.entries[key]})


def _one_more(right: Right) -> Iterator[Mutation]:
    """As where a layer keeps its scale less one."""
    for key in [k for k in right.weights if re.search(r"norm.*weight|ln_\w*\.weight|bn1\.weight", k, re.I)][
        -1:
    ]:
        yield Mutation("a scale and one", key, r"1 \+ scale", {key: right.entries[key] + 1})


def _rolled(right: Right) -> Iterator[Mutation]:
    """Positions that count from another number."""
    for key in [k for k in right.weights if re.search(r"wpe|position", k)][:1]:
        axis = right.entries[key].ndim - 2
        yield Mutation(
            "positions off by one", key, "rows shifted by 1", {key: np.roll(right.entries[key], 1, axis)}
        )


OF_WEIGHTS = (_heads, _blocks, _zero, _one_more, _rolled)


# Mistakes in the model.


def _eps(right: Right) -> Iterator[Mutation]:
    """The eps of another library, in the first norm and in the last."""
    norms = [(path, m) for path, m in right.layers if hasattr(m, "epsilon")]
    for path, norm in {path: m for path, m in (norms[:1] + norms[-1:])}.items():
        for eps in (1e-3, 1e-6 if norm.epsilon != 1e-6 else 1e-5):
            yield Mutation(
                "another eps",
                f"{path}: {eps:g}",
                f"eps.*{re.escape(f'{eps:.3g}')}",
                model=_set(path, epsilon=eps),
                places=(right.names[path],),
            )


def _convolved(right: Right) -> Iterator[Mutation]:
    convs = [(path, m) for path, m in right.layers if type(m) is nnx.Conv and max(m.kernel_size) > 1]
    padded = [(p, m) for p, m in convs if not isinstance(m.padding, str)]
    strided = [(p, m) for p, m in padded if max(np.ravel(m.strides)) > 1]
    for family, found, changes in (
        ("SAME with a stride", strided, dict(padding="SAME")),
        ("another stride", padded, dict(strides=3)),
        ("circular padding", padded, dict(padding="CIRCULAR")),
    ):
        for path, _ in found[:1]:
            yield Mutation(
                family, path, "padding|stride", model=_set(path, **changes), places=(right.names[path],)
            )


def _statistics(right: Right) -> Iterator[Mutation]:
    for path, _ in [(p, m) for p, m in right.layers if type(m) is nnx.BatchNorm][:1]:
        change = _set(path, use_running_average=False)
        yield Mutation(
            "batch statistics", path, "batch statistics", model=change, places=(right.names[path],)
        )


def _set(path: str, **attributes: Any) -> Callable[[nnx.Module], None]:
    def change(model: nnx.Module) -> None:
        module = dict((".".join(map(str, p)), m) for p, m in nnx.iter_modules(model))[path]
        for name, value in attributes.items():
            setattr(module, name, value)

    return change


def _patched(right: Right) -> Iterator[Mutation]:
    """Functions between the layers; where they are first used is said in the table."""
    for family, where, function, cause in PATCHES:
        target = where.format(right.name)
        if (family, right.name) in PLACES and right.uses(target):
            places = PLACES[family, right.name]
            yield Mutation(family, target, cause, patches={target: function}, places=places)


def _attentions(right: Right) -> Iterator[Mutation]:
    """Decisions in the functions that all twins with attention share."""
    for kind, rows in (("attend", ATTENTIONS), ("causal", MASKS)):
        places = FIRST["attention" if kind == "attend" else "causal"]
        target = f"{right.name}_twin.{kind}"
        for family, function, cause in rows if right.name in places and right.uses(target) else ():
            if not (right.name == "t5" and "scaled" in family):  # T5 scales nothing
                yield Mutation(
                    family, target, cause, patches={target: function}, places=(places[right.name],)
                )


def _miscalled(right: Right) -> Iterator[Mutation]:
    own = ((f, f"{right.name}_twin.{to}", *rest) for f, to, *rest in OWN.get(right.name, ()))
    for family, target, function, place, cause in (
        *(blocks(right.name) if right.name in BLOCKS else ()),
        *own,
    ):
        yield Mutation(family, target, cause, patches={target: function}, places=(place,))


OF_CALLS = (_attentions, _miscalled)


def held_out(right: Right) -> Iterator[Mutation]:
    """Mistakes that no report was written for."""
    for family, to, function, place, cause in HELD_OUT.get(right.name, ()):
        target = "flax.nnx.LayerNorm.__call__" if to is None else f"{right.name}_twin.{to}"
        yield Mutation(family, target, cause, patches={target: function}, places=(place,))


# Models in the wrong mode.


def _drawing(right: Right) -> Iterator[Mutation]:
    """Dropout that is active: a model left in training mode, on either side."""
    if any(getattr(m, "p", 0) and "Dropout" in type(m).__name__ for m in right.theirs.modules()):
        yield Mutation("torch left in training mode", "dropout", "training mode", torch=lambda m: m.train())
    for path in [p for p, m in nnx.iter_modules(right.model) if type(m) is nnx.Dropout]:
        name = ".".join(map(str, path))
        change = _set(name, deterministic=False)
        yield Mutation("dropout active", name, "draws at random", model=change)


def _training(right: Right) -> Iterator[Mutation]:
    """Every batch norm of a side in training mode."""
    norms = [path for path, m in right.layers if type(m) is nnx.BatchNorm]
    if norms and right.name in ("resnet", "unet"):
        place = (right.names[norms[0]],)
        yield Mutation("torch left in training mode", "norms", "statistics", torch=_train_norms, places=place)
        change = lambda model: model.train()  # noqa: E731
        yield Mutation("JAX left in training mode", "norms", "batch statistics", model=change, places=place)


def _train_norms(module: Any) -> None:
    for sub in module.modules():
        sub.train("BatchNorm" in type(sub).__name__)


def _states(right: Right) -> Iterator[Mutation]:
    """An LSTM's functions in each other's place; pads of a transposed convolution at the other end."""
    for path in [p for p, m in nnx.iter_modules(right.model) if isinstance(m, nnx.OptimizedLSTMCell)][:1]:
        name = ".".join(map(str, path))
        for family, changes in (
            ("tanh and sigmoid swapped", dict(gate_fn=nnx.tanh, activation_fn=nnx.sigmoid)),
            ("gates of tanh", dict(gate_fn=nnx.tanh)),
        ):
            yield Mutation(family, name, "tanh", model=_set(name, **changes), places=("lstm",))
    for path in [p for p, m in right.layers if type(m) is nnx.ConvTranspose][:1]:
        change = _set(path, padding=[(2, 0), (0, 2)])
        yield Mutation("pads at the other end", path, "padding", model=change, places=(right.names[path],))


OF_MODES = (_drawing, _training, _states)

OF_MODELS = (_eps, _convolved, _statistics, _patched)


def patched(mutation: Mutation) -> ExitStack:
    """A context in which the model's functions are the mistaken ones."""
    stack = ExitStack()
    for target, function in mutation.patches.items():
        stack.enter_context(mock.patch(target, function))
    return stack
