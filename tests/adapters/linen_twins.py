"""A torch module and a Linen module that are to be one: the checks that every pair of them has to pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxstate as js


@dataclass(frozen=True)
class Sizes:
    """Lengths of axes; once all different, once all equal, so that no axis is known by its length."""

    n: int
    i: int
    o: int
    d: int
    h: int
    w: int


DIFFERENT = Sizes(n=7, i=6, o=8, d=2, h=3, w=5)
EQUAL = Sizes(n=4, i=4, o=4, d=4, h=4, w=4)


@dataclass(frozen=True)
class Twins:
    """One row of a table: how both sides are built and called.

    Attributes:
        torch, linen: from the sizes to a module.
        shape: from the sizes to the shape of torch's input.
        channels: True if torch has channels second and Flax has them last.
        run: calls torch's module; its result is compared.
        feed: the inputs of the Linen module, of torch's input.
        kwargs: of the Linen module's call.
        options: of js.bind.
        summed: True if the model holds torch's two biases as their sum.
    """

    name: str
    torch: Callable[[Sizes], torch.nn.Module]
    linen: Callable[[Sizes], Any]
    shape: Callable[[Sizes], tuple[int, ...]]
    channels: bool = False
    run: Callable[[Any, Any], Any] = lambda module, x: module(x)
    feed: Callable[[Any], tuple[Any, ...]] = lambda x: (x,)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    summed: bool = False


def randomized(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Nothing keeps its default: weights, affine parameters, running statistics and counters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.dtype == torch.int64:
                tensor.fill_(1234 + seed)
            elif key.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module.eval()


def variables_of(model: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Abstract variables, which hold no values that a test could pass by."""
    return jax.eval_shape(lambda key: model.init(key, *inputs, **kwargs), jax.random.key(0))


def assert_close(ours: Any, theirs: torch.Tensor) -> None:
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def assert_same_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, torch.Tensor]) -> None:
    """Keys in torch's order, every tensor bit for bit, and torch takes them."""
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.numpy().dtype, key
        assert found[key].tobytes() == tensor.contiguous().numpy().tobytes(), key


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def without_counters(arrays: Mapping[str, Any], keys: str) -> dict[str, Any]:
    return {key: array for key, array in arrays.items() if keys not in key}


def check_twins(twins: Twins, sizes: Sizes, module: torch.nn.Module) -> None:
    """Weights out of torch give torch's outputs, and come back as they were."""
    model = twins.linen(sizes)
    x = np.random.default_rng(1).standard_normal(twins.shape(sizes)).astype("float32")
    last = np.moveaxis(x, 1, -1) if twins.channels else x
    inputs = tuple(jnp.asarray(a) for a in twins.feed(last))
    binding = js.bind(model, *inputs, kwargs=twins.kwargs, **twins.options)
    template = variables_of(model, *inputs, **twins.kwargs)
    variables = js.load_state_dict(template, module.state_dict(), binding)
    ours = model.apply(variables, *inputs, **twins.kwargs)
    with torch.no_grad():
        theirs = twins.run(module, torch.from_numpy(x))
    assert_close(np.moveaxis(ours, -1, 1) if twins.channels else ours, theirs)
    check_back(variables, binding, module, twins.summed)


def check_back(variables: Any, binding: js.Binding, module: torch.nn.Module, summed: bool = False) -> None:
    """The way back: bit for bit with what the file knew, and as far as the model knows without."""
    expected = module.state_dict()
    assert_same_bits(js.state_dict(variables, binding.like(expected)), expected)
    back = js.state_dict(variables, binding)
    assert list(back) == list(expected)
    lost = "bias_" if summed else "num_batches_tracked"
    if not any("parametrizations" in key and key.endswith("_v") for key in back):
        assert_same_bits(without_counters(back, lost), without_counters(expected, lost))
    for key in (key for key in back if summed and "bias_ih" in key):
        both = key.replace("bias_ih", "bias_hh")
        total = back[key] + back[both]
        np.testing.assert_array_equal(total, (expected[key] + expected[both]).numpy())
    assert not module.load_state_dict(as_tensors(back), strict=True).missing_keys
