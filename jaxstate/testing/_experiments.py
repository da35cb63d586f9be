"""Experiments: a suspicion, and the copies of torch's layers that it is tried on."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxstate.testing._torch_side import torch


@dataclass(frozen=True, eq=False)
class Suspicion:
    """A mistake that may have been made.

    Attributes:
        says: what JAX does, as the end of a sentence.
        mend: the argument or Rule that puts it right.
        run: what torch returns with the mistake in it.
    """

    says: str
    mend: str
    run: Callable[[], np.ndarray]


def with_attributes(module: Any, **attributes: Any) -> Any:
    """A copy of a torch module that is set otherwise."""
    changed = copy.deepcopy(module)
    for name, value in attributes.items():
        setattr(changed, name, value)
    return changed


def with_entries(module: Any, entries: Mapping[str, np.ndarray]) -> Any:
    """A copy of a torch module that holds other values in some entries."""
    changed = copy.deepcopy(module)
    own = changed.state_dict()
    tensors = {key: torch().as_tensor(np.array(entries[key]), dtype=own[key].dtype) for key in entries}
    changed.load_state_dict({**own, **tensors})
    return changed
