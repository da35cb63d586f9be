"""Every error that jaxstate raises on purpose, and how it is worded.

Problems are collected first and raised once. Where torch has a wording, ours is torch's, so that a
search for the message finds the same answers; what follows it names the call that would work.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple


class JaxstateError(Exception):
    """Root of all errors of this library."""


class LayoutError(JaxstateError, ValueError):
    """A layout is not a bijection of axes, or an array does not have its shape."""


class BindingError(JaxstateError, ValueError):
    """Rules do not make a bijection of keys and paths, or a model cannot be read without a guess."""


class OptimizerError(JaxstateError, ValueError):
    """An optimizer's state does not fit its parameters, its groups or its algorithm."""


class FileError(JaxstateError, ValueError):
    """A file is damaged, hostile, or not of a format that can be read."""


class CheckpointError(JaxstateError, ValueError):
    """A checkpoint does not fit what is to be restored, cannot be stored without loss, or is ambiguous."""


class ParityError(JaxstateError, AssertionError):
    """A model does not compute what it was ported from: how far apart they are, where, and why.

    Attributes:
        layers: how far each layer is from torch's, as a table, where layers were compared.
    """

    def __init__(self, message: str, layers: object = None):
        self.layers = layers
        super().__init__(message)


class Mismatch(NamedTuple):
    """One entry that does not fit: its torch key, and the shapes of file and model."""

    key: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


class StateDictError(JaxstateError, RuntimeError):
    """A state_dict does not fit a model; worded as `torch.nn.Module.load_state_dict` words it.

    Attributes:
        missing_keys: keys that the model needs and the state_dict lacks.
        unexpected_keys: keys of the state_dict that the model has no place for.
        problems: whole sentences, one for each entry that is there and does not fit.
    """

    def __init__(
        self,
        name: str,
        missing_keys: Iterable[str] = (),
        unexpected_keys: Iterable[str] = (),
        problems: Iterable[str] = (),
    ):
        self.missing_keys = list(missing_keys)
        self.unexpected_keys = list(unexpected_keys)
        self.problems = list(problems)
        super().__init__(
            f"Error(s) in loading state_dict for {name}:\n\t"
            + "\n\t".join(_lines(self.missing_keys, self.unexpected_keys, self.problems))
        )


def _lines(missing: list[str], unexpected: list[str], problems: list[str]) -> Iterable[str]:
    if missing:
        yield f"Missing key(s) in state_dict: {quoted(missing)}. "
    if unexpected:
        yield f"Unexpected key(s) in state_dict: {quoted(unexpected)}. "
    yield from problems
    for key, near in near_names(missing, unexpected).items():
        yield f'Did you mean "{near}" for "{key}"?'


def quoted(names: Iterable[str]) -> str:
    """Names as torch lists them: in double quotes, with commas between."""
    return ", ".join(f'"{name}"' for name in names)


def near_names(wanted: Iterable[str], found: Iterable[str]) -> Mapping[str, str]:
    """For each wanted name, the found name that is closest in spelling, where one is close at all."""
    found = list(found)
    near = {name: get_close_matches(name, found, n=1, cutoff=0.75) for name in wanted}
    return {name: matches[0] for name, matches in near.items() if matches}


def size_mismatch(key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """torch's sentence for an entry whose shape is not the model's."""
    return (
        f"size mismatch for {key}: copying a param with shape torch.Size({list(found)}) from checkpoint, "
        f"the shape in current model is torch.Size({list(expected)})."
    )
