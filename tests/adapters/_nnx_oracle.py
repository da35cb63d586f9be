"""torch as the oracle of the NNX adapter: modules with values that no constructor gives, and what must hold.

A case pairs a torch module with an NNX module of the same function. Their weights are moved there and back
again, their outputs compared.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxstate as js

torch.set_num_threads(1)  # the arrays are small; threads that wait for each other take most of the time


def rngs(seed: int = 0) -> nnx.Rngs:
    return nnx.Rngs(seed)


def randomized(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The same module with a value of its own in every entry: statistics and counters too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, entry in module.state_dict(keep_vars=True).items():
            entry.copy_(_values(name, entry, generator))
    return module.eval()


def _values(name: str, entry: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not entry.is_floating_point():
        return torch.randint(3, 99, entry.shape, generator=generator)
    if name.endswith(("running_var", "original0")):
        return torch.rand(entry.shape, generator=generator) + 0.5
    return torch.randn(entry.shape, generator=generator) * 0.4


def built(make: Callable[[], nnx.Module]) -> nnx.Module:
    """An abstract module: initializers take seconds to compile. Only random state has values."""
    model = nnx.eval_shape(make)
    random = nnx.state(model, nnx.RngState)
    nnx.update(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), random))
    return model


def noise(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_jax(tensor: torch.Tensor, channels_last: bool = False) -> Any:
    array = tensor.detach().numpy()
    return jnp.array(np.moveaxis(array, 1, -1) if channels_last else array)


@dataclass(frozen=True)
class Case:
    """One torch module, the NNX module of the same function, and a shape of its input in torch's order.

    Attributes:
        image: True if torch has the channels second and JAX last.
        call: how the NNX module is called with the input.
        reference: how the torch module is.
        options: arguments of `bind`.
        lossy: True for torch's two biases, which only a file can tell apart again.
    """

    name: str
    theirs: Callable[[], torch.nn.Module]
    ours: Callable[[], nnx.Module]
    shape: tuple[int, ...]
    image: bool = False
    call: Callable[..., Any] = lambda model, x: model(x)
    reference: Callable[..., Any] = lambda module, x: module(x)
    options: Mapping[str, Any] = field(default_factory=dict)
    lossy: bool = False
    integers: int = 0

    def input(self) -> torch.Tensor:
        if self.integers:
            return torch.arange(int(np.prod(self.shape))).reshape(self.shape) % self.integers
        return noise(*self.shape)


def assert_same_function(case: Case, theirs: torch.nn.Module, ours: nnx.Module) -> None:
    x = case.input()
    with torch.no_grad():
        expected = case.reference(theirs, x).numpy()
    found = np.asarray(case.call(ours, as_jax(x, case.image)))
    assert_close(np.moveaxis(found, -1, 1) if case.image else found, expected)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > 1e-2 and np.abs(found - expected).max() <= tolerance * scale


def assert_same_bits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Keys, their order, dtypes and bytes."""
    assert list(found) == list(expected)
    for key, array in expected.items():
        tensor = array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
        other = found[key].numpy() if isinstance(found[key], torch.Tensor) else found[key]
        assert (key, other.dtype, other.shape) == (key, tensor.dtype, tensor.shape)
        assert other.tobytes() == tensor.tobytes(), key


def as_tensors(state_dict: Mapping[str, Any]) -> Any:
    """torch tensors of ours, with the metadata, as `torch.load` would give them."""
    tensors = type(state_dict)((key, torch.from_numpy(array)) for key, array in state_dict.items())
    tensors._metadata = state_dict._metadata
    return tensors


def assert_torch_takes(module: torch.nn.Module, state_dict: Mapping[str, Any]) -> torch.nn.Module:
    """A blank copy of the module loads it strictly and without a warning; the copy is returned."""
    blank = copy.deepcopy(module)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for entry in blank.state_dict(keep_vars=True).values():
            entry.zero_()
        assert (
            str(blank.load_state_dict(as_tensors(state_dict), strict=True))
            == "<All keys matched successfully>"
        )
    return blank


def assert_there_and_back(case: Case, theirs: torch.nn.Module | None = None) -> nnx.Module:
    """Load, compare outputs, write, load in torch: the laws of a round trip. Returns the loaded model."""
    theirs, template = theirs or randomized(case.theirs()), built(case.ours)
    sd = theirs.state_dict()
    binding = js.bind(template, **case.options)
    model = js.load_state_dict(template, sd, binding)
    exact = js.state_dict(model, js.bind(model, like=sd, **case.options))
    assert_same_bits(exact, sd)
    assert exact._metadata == sd._metadata
    assert_same_bits(assert_torch_takes(theirs, exact).state_dict(), sd)
    _assert_plain(case, theirs, js.state_dict(model, binding))
    ids = [name for name, _ in theirs.named_parameters()]
    assert list(binding.parameters) == ids
    assert_same_function(case, theirs, model)
    return model


def _assert_plain(case: Case, theirs: torch.nn.Module, plain: Mapping[str, Any]) -> None:
    """Without a file beside it: all bits but those of counters, and of sums that are only a sum."""
    sd = theirs.state_dict()
    exact = {k: v for k, v in sd.items() if not _derived(case, k, v)}
    assert list(plain) == list(sd)
    assert_same_bits({k: plain[k] for k in exact}, exact)
    assert_same_function_again(case, theirs, assert_torch_takes(theirs, plain))


def _derived(case: Case, key: str, tensor: torch.Tensor) -> bool:
    return case.lossy and "bias_" in key or key.endswith("._v") or not tensor.is_floating_point()


def assert_same_function_again(case: Case, theirs: torch.nn.Module, again: torch.nn.Module) -> None:
    with torch.no_grad():
        assert_close(case.reference(again, case.input()), case.reference(theirs, case.input()))
