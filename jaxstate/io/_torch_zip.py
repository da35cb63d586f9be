"""Tells the archives apart that have torch's layout, by an entry that only one kind has."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from jaxstate.errors import FileError

from . import _exported, _torch_reader, _torchscript, _zip
from ._archive import Archive, opened


def read(data: np.ndarray) -> object:
    """What the archive holds: of torch.save the object, of torch.jit.save and torch.export.save a state_dict.

    Raises:
        FileError: damaged, hostile, or an archive of another kind.
    """
    entries = _zip.entries(data)
    if _exported.BEFORE_2_8 in entries:
        return _exported.read_before_2_8(data, entries)
    archive = opened(data, entries)
    for name, reader in _KINDS.items():
        if name in archive.entries:
            return reader(archive)
    return _torch_reader.read(archive)


def _refused(what: str) -> Callable[[Archive], object]:
    def refuse(archive: Archive) -> object:
        raise FileError(what)

    return refuse


_KINDS: Mapping[str, Callable[[Archive], object]] = MappingProxyType(
    {
        "constants.pkl": _torchscript.read,
        "archive_format": _exported.read,
        ".data/extern_modules": _refused(
            "a torch.package archive; save the state_dict of its model with torch.save"
        ),
        "bytecode.pkl": _refused(
            "a TorchScript archive for mobile without its constants; save the state_dict of its model"
        ),
        "model.json": _refused(
            "a TorchScript archive from before torch 1.4; load it with torch.jit.load(path) of such a torch "
            "and save its state_dict with torch.save"
        ),
    }
)
