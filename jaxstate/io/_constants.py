"""The door to what a compiled program holds beside its state_dict."""

import os
from collections import OrderedDict

from jaxstate.errors import FileError

from . import _exported, _torchscript
from ._archive import opened
from ._files import path_name
from ._mapping import file_bytes
from ._recognise import TORCH, recognise


def load_constants(path: str | os.PathLike[str], *, mmap: bool = True) -> OrderedDict:
    """The tensors in a file of torch.jit.save or torch.export.save that are not of the state_dict.

    Args:
        path: the file. `jaxstate.load` gives its state_dict.
        mmap: as in `jaxstate.load`.

    Returns:
        Of TorchScript, the tensors that its code names `CONSTANTS.c0`, ..., as `c0`, ...: a frozen module has
        its weights here. Of torch.export, plain attributes and buffers that are not persistent, by name.

    Raises:
        FileError: missing, damaged, hostile, or of another format.

    >>> import tempfile, zipfile
    >>> path = os.path.join(tempfile.mkdtemp(), "net.pt")
    >>> with zipfile.ZipFile(path, "w") as archive:
    ...     archive.writestr("net/constants.pkl", b"\\x80\\x02K\\x01\\x85.")  # the tuple (1,)
    >>> dict(load_constants(path)) == {}
    True
    """
    name = path_name(path)
    try:
        return _constants(name, mmap)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def _constants(name: str, mmap: bool) -> OrderedDict:
    data = file_bytes(name, mmap)
    archive = opened(data) if recognise(data)[0] == TORCH else None
    if archive is not None and "constants.pkl" in archive.entries:
        return _torchscript.constants(archive)
    if archive is not None and "archive_format" in archive.entries:
        return _exported.constants(archive)
    raise FileError("neither of torch.jit.save nor of torch.export.save; load it with jaxstate.load")
