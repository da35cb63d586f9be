"""Steps: what JAX computes one after the other, in a loop or a scan, and torch in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxstate.testing._calls import Call


def in_torchs_calls(theirs: Sequence[Call], ours: Sequence[Call]) -> list[Call]:
    """JAX's calls of one module; where several are one of torch's, they are stacked along a first axis.

    torch's LSTM reads all of a sequence, and JAX's cell one step of it; a batch may be mapped likewise.
    A module that torch does not call, as an embedding that has another name there, has JAX's calls alone.

    >>> called = [Call("embed", "Embed", number, {}, {}) for number in range(2)]
    >>> in_torchs_calls([], called) == called
    True
    """
    if not theirs:
        return list(ours)
    count, rest = divmod(len(ours), len(theirs))
    if rest or count < 2 or not _rank(ours[0]) < _rank(theirs[0]):
        return list(ours)
    groups = [ours[start : start + count] for start in range(0, len(ours), count)]
    return [_stacked(group, number) for number, group in enumerate(groups)]


def _stacked(calls: Sequence[Call], number: int) -> Call:
    inputs = _each([call.inputs for call in calls])
    return replace(calls[0], number=number, inputs=inputs, outputs=_each([call.outputs for call in calls]))


def _each(arrays: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of several calls by name; those whose shapes change are left out."""
    names = [name for name, a in arrays[0].items() if all(_shape(b, name) == a.shape for b in arrays)]
    return {name: np.stack([found[name] for found in arrays]) for name in names}


def _shape(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, ...] | None:
    return arrays[name].shape if name in arrays else None


def _rank(call: Call) -> int:
    return 0 if call.input is None else call.input.ndim
