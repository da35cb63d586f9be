"""Suspicions: what may be wrong with one layer, each as an experiment on a copy of torch's layer.

The copy gets one mistake and torch's own input. If it then returns what JAX's layer returned, the mistake is
found; if not, it was none. So a report names no cause that was not reproduced.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxstate.settings import SAME, eps_name, same_pads, settings_of, shown, torch_settings
from jaxstate.testing._experiments import Suspicion, with_attributes
from jaxstate.testing._layers import Layer, Run
from jaxstate.testing._recurrences import recurrence_suspicions
from jaxstate.testing._rows import row_suspicions
from jaxstate.testing._torch_side import arguments_of, called_again, torch
from jaxstate.testing._weights import held_by_guess, held_otherwise

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12)


def suspicions(run: Run, layer: Layer) -> Iterator[Suspicion]:
    """Everything that is tried on a layer, likely things first."""
    module = run.port.theirs.get_submodule(layer.theirs.name)
    held = list(held_otherwise(run, layer, module))
    yield from held
    yield from _set_otherwise(layer, module)
    yield from _moved_first(layer, module)
    yield from _called_otherwise(layer, module)
    yield from recurrence_suspicions(layer, module)
    yield from row_suspicions(run, layer)
    if not held:
        yield from held_by_guess(run, layer, module)


def _set_otherwise(layer: Layer, module: Any) -> Iterator[Suspicion]:
    """The JAX layer is set to something else: read from it, or, of an eps, one that is common."""
    theirs, known = torch_settings(module), settings_of(layer.module.module)
    ours = {**_unsaid(theirs, known.values), **known.values}
    for setting, value in ours.items():
        if setting in theirs and theirs[setting] != value and setting != "computes in":
            says = f"has {setting} {shown(value)}, and torch {shown(theirs[setting])}"
            mend = known.spelled(setting, theirs[setting])
            yield Suspicion(says, mend, _set_to(layer, module, setting, value))
    if "eps" in theirs and "eps" not in ours:
        for eps in EPSILONS:
            yield Suspicion(
                f"adds an eps of {eps}, and torch of {theirs['eps']:.3g}",
                f"eps={theirs['eps']:.3g}",
                _set_to(layer, module, "eps", eps),
            )
    if ours.get("computes in") != theirs.get("computes in") and "computes in" in ours:
        dtype = ours["computes in"]
        says, mend = f"computes in {dtype}", f"{layer.module.kind}(..., dtype=None)"
        yield Suspicion(says, mend, lambda: _in_dtype(layer, module, dtype))


def _unsaid(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """What is said in the call of a layer, and not on the layer: that it is the other way is tried."""
    if "batch statistics" not in theirs or "batch statistics" in ours:
        return {}
    return {"batch statistics": not theirs["batch statistics"]}


def _set_to(layer: Layer, module: Any, setting: str, value: Any) -> Callable[[], np.ndarray]:
    name = {"batch statistics": "training", "eps": eps_name(module)}.get(setting, setting)
    if setting == "padding":
        return lambda: _padded(layer, module, value)
    if setting == "padding mode":
        half = [
            p[0] for p in same_pads(module.kernel_size, module.kernel_size, module.stride, module.dilation)
        ]
        rows = [n for n in reversed(half) for _ in range(2)]
        changes = dict(padding_mode=value, padding=tuple(half), _reversed_padding_repeated_twice=rows)
        return lambda: called_again(with_attributes(module, **changes), layer.theirs)
    return lambda: called_again(with_attributes(module, **{name: value}), layer.theirs)


def _padded(layer: Layer, module: Any, pads: Any) -> np.ndarray:
    """A convolution with other pads at the two ends of an axis; SAME depends on what it reads."""
    image = layer.theirs.args[0]
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if pads == SAME:
        pads = same_pads(image.shape[-len(kernel) :], kernel, stride, dilation)
    if "Transpose" in type(module).__name__:
        rows = zip(pads, kernel, dilation, strict=True)
        cuts = [(d * (k - 1) - a, d * (k - 1) - b) for (a, b), k, d in rows]
        none = (0,) * len(kernel)
        whole = called_again(with_attributes(module, padding=none, output_padding=none), layer.theirs)
        return _cut(whole, cuts, module.bias)
    flat = [n for pair in reversed(pads) for n in pair]
    padded = torch().nn.functional.pad(image, flat)
    bare = with_attributes(module, padding=(0,) * len(kernel), padding_mode="zeros")
    return called_again(bare, layer.theirs, (padded, *layer.theirs.args[1:]))


def _cut(output: np.ndarray, cuts: Sequence[tuple[int, int]], bias: Any) -> np.ndarray:
    """Take from the ends of the spatial axes what is not wanted, or add what meets no input: the bias."""
    sizes = output.shape[-len(cuts) :]
    index = [slice(max(a, 0), n - max(b, 0)) for (a, b), n in zip(cuts, sizes, strict=True)]
    fill = 0.0 if bias is None else bias.detach().numpy().reshape(-1, *(1 for _ in cuts))
    none = [(0, 0)] * (output.ndim - len(cuts))
    wider = np.pad(output[(..., *index)] - fill, [*none, *((max(-a, 0), max(-b, 0)) for a, b in cuts)])
    return wider + fill


def _moved_first(layer: Layer, module: Any) -> Iterator[Suspicion]:
    """Equinox's BatchNorm in training: the running statistics move with the batch, and then are used."""
    ours = layer.module.module
    if getattr(ours, "mode", "") != "ema" or getattr(module, "running_mean", None) is None:
        return

    def again() -> np.ndarray:
        image = layer.theirs.args[0]
        axes, m = [n for n in range(image.ndim) if n != 1], ours.momentum
        batch = {"running_mean": image.mean(axes), "running_var": image.var(axes, correction=0)}
        moved = {name: m * getattr(module, name) + (1 - m) * found for name, found in batch.items()}
        return called_again(with_attributes(module, training=False, **moved), layer.theirs)

    says = 'moves its running statistics with the batch before it uses them, as mode="ema" does in training'
    yield Suspicion(says, "eqx.nn.inference_mode(model)", again)


def _in_dtype(layer: Layer, module: Any, dtype: str) -> np.ndarray:
    """The layer in a narrow dtype. Both sides round, so within one rounding JAX is right."""
    kind, match = getattr(torch(), dtype), layer.output
    args = tuple(_cast(a, kind) for a in layer.theirs.args)
    narrow = called_again(copy.deepcopy(module).to(kind), layer.theirs, args).astype(np.float32)
    if match is None:
        return narrow
    rounding = 2 * float(torch().finfo(kind).eps) * np.maximum(np.abs(narrow), np.abs(narrow).mean())
    return np.where(np.abs(narrow - match.ours) <= rounding, match.ours, narrow)


def _cast(value: Any, kind: Any) -> Any:
    return value.to(kind) if hasattr(value, "is_floating_point") and value.is_floating_point() else value


def _called_otherwise(layer: Layer, module: Any) -> Iterator[Suspicion]:
    """The layer is given its arguments with another meaning: masks, the order of axes."""
    arguments = arguments_of(module, layer.theirs).arguments
    for name, value in arguments.items():
        if (attended := _attended(value)) is not None:
            yield Suspicion(
                f"reads {name} the other way: it attends where a mask is True, torch where it is False",
                f"mask=~{name}",
                lambda name=name, a=attended: called_again(module, layer.theirs, **{name: _finite(~a)}),
            )
    if "attn_mask" in _parameters(module) and arguments.get("attn_mask") is not None:
        says = "attends to everything, and torch is given a mask"
        yield Suspicion(says, "mask=...", lambda: called_again(module, layer.theirs, attn_mask=None))
    elif "attn_mask" in _parameters(module):
        causal = torch().ones(2 * (_length(layer, module),), dtype=torch().bool).triu(1)
        says, mend = "attends causally, and torch to everything", "is_causal=False, mask=None"
        yield Suspicion(says, mend, lambda: called_again(module, layer.theirs, attn_mask=causal))
    if type(module).__name__ in ("LSTM", "GRU", "RNN", "MultiheadAttention"):
        first = not module.batch_first
        says = f"reads {'batch' if first else 'time'} first, and torch {'time' if first else 'batch'} first"
        swapped = with_attributes(module, batch_first=first)
        yield Suspicion(says, "x.swapaxes(0, 1)", lambda: called_again(swapped, layer.theirs))
    if type(module).__name__ in ("LSTM", "GRU", "RNN"):
        axis = 1 if module.batch_first else 0
        says, mend = "runs backwards in time", "RNN(..., reverse=False)"
        yield Suspicion(says, mend, lambda: _reversed(layer, module, axis))


def _attended(mask: Any) -> Any:
    """Where torch attends, of a mask of its two kinds: True, or minus infinity, where it does not."""
    if not isinstance(mask, torch().Tensor):
        return None
    if mask.dtype == torch().bool:
        return ~mask
    whole = mask.is_floating_point() and bool(((mask == 0) | mask.isneginf()).all())
    return mask == 0 if whole else None


def _finite(attended: Any) -> Any:
    """A mask to add, finite as Flax's is: a row in which everything is masked is no NaN."""
    return (~attended).to(torch().float32) * torch().finfo(torch().float32).min / 2


def _parameters(module: Any) -> Sequence[str]:
    return type(module).forward.__code__.co_varnames


def _length(layer: Layer, module: Any) -> int:
    shape = (
        layer.theirs.args[0].shape if layer.theirs.args else next(iter(layer.theirs.inputs.values())).shape
    )
    return int(shape[1 if getattr(module, "batch_first", True) else 0])


def _reversed(layer: Layer, module: Any, axis: int) -> np.ndarray:
    first, *rest = layer.theirs.args
    return np.flip(called_again(module, layer.theirs, (first.flip(axis), *rest)), axis)
