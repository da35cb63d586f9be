"""assert_round_trip: a model goes to torch's layout and comes back with every bit where it was."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import bind, load_state_dict, state_dict
from jaxstate.errors import ParityError
from jaxstate.rules.declared import same_bits
from jaxstate.rules.rule import Rule


def assert_round_trip(model: Any, binding: Binding | None = None) -> None:
    """The model's leaves survive `state_dict` and `load_state_dict` bit for bit, both ways.

    Each Rule is also tried with an array in which every element is another number: where weights are all
    ones or zeros, as in a fresh norm, a permutation would not show.

    Args:
        model: an NNX module, a Linen model's variables, any pytree that the binding fits.
        binding: needed where the model does not tell its layers.

    Raises:
        ParityError: naming every leaf and key that came back otherwise.

    >>> import jax
    >>> from flax import nnx
    >>> assert_round_trip(nnx.Linear(3, 5, rngs=nnx.Rngs(0)))
    """
    __tracebackhide__ = True
    binding = bind(model) if binding is None else binding
    there = state_dict(model, binding)
    back = load_state_dict(model, there, binding)
    again = state_dict(back, binding)
    leaves = adapter_of(model).leaves
    problems = [
        *(f"leaf {path} came back otherwise" for path in _changed(leaves(model), leaves(back))),
        *(f'"{key}" came back otherwise' for key in _changed(there, again)),
        *_scrambled(binding),
    ]
    if list(there) != list(again):
        problems.append("the keys came back in another order")
    if problems:
        raise ParityError("the model does not survive the way to torch and back:\n\t" + "\n\t".join(problems))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    yield from (name for name in before if name not in after or not same_bits(before[name], after[name]))


def _scrambled(binding: Binding) -> Iterator[str]:
    """The Rules that do not give every element back to its place."""
    for rule in binding.rules:
        if isinstance(rule, Rule) and rule.shape is not None:
            size = int(np.prod(rule.shape, dtype=int))
            leaves = {
                path: np.arange(n * size, (n + 1) * size).reshape(rule.shape)
                for n, path in enumerate(rule.paths)
            }
            if list(_changed(leaves, rule.leaves(rule.state_dict(leaves)))):
                yield f"{rule!r} does not undo itself"
