"""assert_same_gradients: every parameter's gradient is torch's, under torch's name and in torch's layout."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.arrays.foreign import as_numpy
from jaxstate.binding import Binding
from jaxstate.errors import ParityError
from jaxstate.rules.declared import Sum
from jaxstate.rules.padded import Padded
from jaxstate.testing._arrays import named_live
from jaxstate.testing._distance import distance, scale
from jaxstate.testing._port import Layouts, Port
from jaxstate.testing._torch_side import torch, unchanged

FLOOR = 1e-2  # of the largest gradient; below it a gradient is judged as if it were that large
MOST_KEYS = 8


def assert_same_gradients(
    torch_module: Any,
    model: Any,
    *inputs: Any,
    binding: Binding | None = None,
    loss: Callable[[Any], Any] | None = None,
    torch_loss: Callable[[Any], Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    torch_kwargs: Mapping[str, Any] | None = None,
    call: Callable[..., Any] | None = None,
    torch_call: Callable[..., Any] | None = None,
    input_layout: Layouts = None,
    output_layout: Layouts = None,
    rtol: float = 1e-4,
) -> None:
    """The gradients of both models' parameters are the same, up to `rtol` of each one's largest element.

    A gradient that is zero but for rounding has no scale of its own, so one below a hundredth of the largest
    is judged by that. Nothing is accumulated in `.grad`.

    Args:
        loss, torch_loss: from what the calls return to a scalar. By default outputs are weighted with one
            and the same noise and summed.
        rtol: the tolerance.
        others: as for `assert_same_outputs`.

    Raises:
        ParityError: listing the parameters whose gradients differ; the last of them in torch's order is
            where the backward pass went wrong first.
    """
    __tracebackhide__ = True
    if (loss is None) != (torch_loss is None):
        raise ValueError("loss and torch_loss are given both or not at all")
    calls = (kwargs or {}, torch_kwargs or {}, call, torch_call, input_layout, output_layout)
    port = Port(torch_module, model, inputs, binding, *calls)
    theirs, ours = torch_gradients(port, torch_loss), jax_gradients(port, loss)
    wrong = dict(_differing(theirs, ours, rtol))
    if wrong:
        raise ParityError(_message(wrong, len(theirs), rtol))


def torch_gradients(port: Port, loss: Callable[[Any], Any] | None) -> dict[str, np.ndarray]:
    """The gradient of every parameter that requires one, by torch's name."""
    params = {name: p for name, p in port.theirs.named_parameters() if p.requires_grad}
    with torch().enable_grad(), unchanged(port.theirs):
        returned = port.run_torch(port.theirs)
        value = loss(returned) if loss else _weighted(named_live(returned))
        found = torch().autograd.grad(value, list(params.values()), allow_unused=True)
    pairs = zip(params.items(), found, strict=True)
    return {name: np.zeros(tuple(p.shape), "float32") if g is None else as_numpy(g) for (name, p), g in pairs}


def jax_gradients(port: Port, loss: Callable[[Any], Any] | None) -> dict[str, np.ndarray]:
    """The same of the JAX model, by torch's names and in torch's layouts."""
    binding = port.needed_binding().of_parameters()
    tree = port.side.tree_of(port.ours)
    leaves = adapter_of(tree).leaves(tree)
    params = {path: jnp.asarray(leaves[path]) for path in binding.paths}

    def value(params: dict[str, Any]) -> Any:
        returned = port.side.returned(port.ours, {**leaves, **params}, port.run_jax)
        return loss(returned) if loss else _weighted(port.in_torch_layout(named_live(returned)))

    found = {path: np.asarray(g) for path, g in jax.jit(jax.grad(value))(params).items()}
    return in_torch(binding, found)


def in_torch(binding: Binding, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of leaves as those of torch's parameters: each term of a sum has that of the sum."""
    rules = [part for rule in binding.rules for part in (rule.parts if isinstance(rule, Sum) else [rule])]
    rules = [rule.started(0) if isinstance(rule, Padded) else rule for rule in rules]
    moved = {key: array for rule in rules for key, array in rule.state_dict(gradients).items()}
    return {key: moved[key] for key in binding.parameters if key in moved}


def _weighted(outputs: Mapping[str, Any]) -> Any:
    """The sum of all outputs, each element with a weight that no symmetry shares."""
    total: Any = 0.0
    for number, (_, output) in enumerate(sorted(outputs.items())):
        if "float" not in str(output.dtype):
            continue
        noise = np.random.default_rng(number).standard_normal(tuple(output.shape)).astype("float32")
        is_jax = isinstance(output, jax.Array)
        weights = jnp.asarray(noise) if is_jax else torch().from_numpy(noise).to(output)
        total = total + (output * weights).sum()
    return total


def _differing(
    theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], rtol: float
) -> Iterator[tuple[str, str]]:
    floor = FLOOR * max((scale(g) for g in theirs.values()), default=0.0)
    for name, gradient in theirs.items():
        if name not in ours:
            yield name, "no parameter of the JAX model"
        elif gradient.shape != ours[name].shape:
            yield name, f"of shape {gradient.shape} in torch and {ours[name].shape} in JAX"
        else:
            d = distance(gradient, ours[name])
            relative = d.max_abs / (max(scale(gradient), floor) or 1.0)
            if not relative <= rtol:
                yield name, f"{relative:.2g} of its scale apart, cosine {d.cosine:.6f}"


def _message(wrong: Mapping[str, str], count: int, rtol: float) -> str:
    shown = [f'"{name}": {words}' for name, words in list(wrong.items())[-MOST_KEYS:]]
    more = ["..."] if len(wrong) > MOST_KEYS else []
    first = (
        f'the backward pass meets "{list(wrong)[-1]}" first; assert_same_outputs tells if the forward agrees'
    )
    head = f"{len(wrong)} of {count} gradients differ (rtol={rtol:g}):"
    return "\n\t".join([head, *more, *shown, first])
