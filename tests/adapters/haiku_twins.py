"""torch as the oracle of the Haiku adapter: pairs of modules of one function, and what must hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import haiku as hk
import jax
import numpy as np
import torch
from _nnx_oracle import as_jax, assert_close, assert_same_bits, assert_torch_takes, noise, randomized

import jaxstate as js


@dataclass(frozen=True)
class Case:
    """One torch module, the Haiku function that does the same, and a shape of torch's input.

    Attributes:
        ours: what is transformed; it takes what `feed` makes of the input, and `training` if it has state.
        image: True if torch has the channels second and Haiku last.
        reference: how the torch module is called.
        feed: the arguments of the function, of the input.
        options: arguments of `bind`.
        lossy: True for torch's two biases, which only a file can tell apart again.
        integers: for indices, how many there are.
        state: True if the function keeps a state.
    """

    name: str
    theirs: Callable[[], torch.nn.Module]
    ours: Callable[..., Any]
    shape: tuple[int, ...]
    image: bool = False
    reference: Callable[..., Any] = lambda module, x: module(x)
    feed: Callable[[Any], tuple[Any, ...]] = lambda x: (x,)
    options: Mapping[str, Any] = field(default_factory=dict)
    lossy: bool = False
    integers: int = 0
    state: bool = False

    def input(self) -> torch.Tensor:
        if self.integers:
            return torch.arange(int(np.prod(self.shape))).reshape(self.shape) % self.integers
        return noise(*self.shape)

    @property
    def transformed(self) -> Any:
        return hk.transform_with_state(self.ours) if self.state else hk.transform(self.ours)


def template_of(transformed: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Abstract variables: they hold no values that a test could pass by."""
    return jax.eval_shape(lambda key, *xs: transformed.init(key, *xs, **kwargs), jax.random.key(0), *inputs)


def assert_there_and_back(case: Case, theirs: torch.nn.Module | None = None) -> Any:
    """Load, compare outputs, write, load in torch. Returns the loaded variables."""
    theirs, transformed = theirs or randomized(case.theirs()), case.transformed
    sd, inputs = theirs.state_dict(), case.feed(as_jax(case.input(), case.image))
    kwargs = {"training": True} if case.state else {}
    binding = js.bind(transformed, *inputs, kwargs=kwargs, **case.options)
    assert js.Binding.from_json(binding.to_json()) == binding
    variables = js.load_state_dict(template_of(transformed, *inputs, **kwargs), sd, binding)
    exact = js.state_dict(variables, binding.like(sd))
    assert_same_bits(exact, sd)
    assert_same_bits(assert_torch_takes(theirs, exact).state_dict(), sd)
    assert list(binding.parameters) == [name for name, _ in theirs.named_parameters()]
    if case.state:
        found = transformed.apply(*variables, None, *inputs, training=False)[0]
    else:
        found = transformed.apply(variables, None, *inputs)
    with torch.no_grad():
        expected = case.reference(theirs, case.input()).numpy()
    assert_close(np.moveaxis(found, -1, 1) if case.image else found, expected)
    _assert_plain(case, theirs, js.state_dict(variables, binding))
    return variables


def _assert_plain(case: Case, theirs: torch.nn.Module, plain: Mapping[str, Any]) -> None:
    """Without a file beside it: all bits but those of counters, and of sums that are only a sum."""
    sd = theirs.state_dict()
    lost = {k for k, v in sd.items() if case.lossy and "bias_" in k or not v.is_floating_point()}
    assert list(plain) == list(sd)
    assert_same_bits({k: plain[k] for k in plain if k not in lost}, {k: sd[k] for k in sd if k not in lost})
    with torch.no_grad():
        again = case.reference(assert_torch_takes(theirs, plain), case.input())
        assert_close(again, case.reference(theirs, case.input()))
