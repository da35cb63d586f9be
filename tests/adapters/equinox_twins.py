"""torch as the oracle of the Equinox adapter: pairs of modules of one function, and what must hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import numpy as np
import torch
from _nnx_oracle import (
    as_jax,
    assert_close,
    assert_same_bits,
    assert_torch_takes,
    noise,
    randomized,
)

import jaxstate as js

KEY = jax.random.key(0)


def built(make: Callable[[Any], Any]) -> Any:
    """An abstract model, or pair of model and State: it holds no values that a test could pass by."""
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(make), KEY)
    return (model, state) if jax.tree.leaves(state) else model


@dataclass(frozen=True)
class Case:
    """One torch module, the Equinox module of the same function, and a shape of its input.

    Attributes:
        ours: from a key to the module.
        call: how the module, or the pair, is called with a batch.
        reference: how the torch module is.
        options: arguments of `bind`.
        lossy: True for torch's two biases, which only a file can tell apart again.
        integers: for indices, how many there are.
    """

    name: str
    theirs: Callable[[], torch.nn.Module]
    ours: Callable[[Any], Any]
    shape: tuple[int, ...]
    call: Callable[..., Any] = lambda model, x: jax.vmap(model)(x)
    reference: Callable[..., Any] = lambda module, x: module(x)
    options: Mapping[str, Any] = field(default_factory=dict)
    lossy: bool = False
    integers: int = 0

    def input(self) -> torch.Tensor:
        if self.integers:
            return torch.arange(int(np.prod(self.shape))).reshape(self.shape) % self.integers
        return noise(*self.shape)


def evaluated(pair: Any, x: Any) -> Any:
    """The outputs of a stateful model in evaluation."""
    model, state = pair
    run = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return run(x, state)[0]


def assert_there_and_back(case: Case, theirs: torch.nn.Module | None = None) -> Any:
    """Load, compare outputs, write, load in torch. Returns the loaded model."""
    theirs, template = theirs or randomized(case.theirs()), built(case.ours)
    sd = theirs.state_dict()
    binding = js.bind(template, **case.options)
    assert js.Binding.from_json(binding.to_json()) == binding
    model = js.load_state_dict(template, sd, binding)
    exact = js.state_dict(model, js.bind(model, like=sd, **case.options))
    assert_same_bits(exact, sd)
    assert exact._metadata == sd._metadata
    assert_same_bits(assert_torch_takes(theirs, exact).state_dict(), sd)
    assert list(binding.parameters) == [name for name, _ in theirs.named_parameters()]
    with torch.no_grad():
        expected = case.reference(theirs, case.input()).numpy()
    assert_close(case.call(model, as_jax(case.input())), expected)
    _assert_plain(case, theirs, js.state_dict(model, binding))
    return model


def _assert_plain(case: Case, theirs: torch.nn.Module, plain: Mapping[str, Any]) -> None:
    """Without a file beside it: all bits but those of counters, and of sums that are only a sum."""
    sd = theirs.state_dict()
    lost = {k for k, v in sd.items() if case.lossy and "bias_" in k or not v.is_floating_point()}
    assert list(plain) == list(sd)
    assert_same_bits({k: plain[k] for k in plain if k not in lost}, {k: sd[k] for k in sd if k not in lost})
    with torch.no_grad():
        again = case.reference(assert_torch_takes(theirs, plain), case.input())
        assert_close(again, case.reference(theirs, case.input()))
