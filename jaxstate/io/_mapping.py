"""The bytes of a file as one read-only array: mapped, or read into memory that is ours."""

import mmap
import os
import stat

import numpy as np

from jaxstate.errors import FileError

_ALIGNMENT = 64
"""JAX takes over host memory without a copy where it starts at a multiple of this."""


def file_bytes(path: str, mapped: bool) -> np.ndarray:
    """The whole file as uint8, read-only.

    A mapping keeps the file's content alive when the name is given to another file, as `save` does; it does
    not survive that another program truncates the file or writes into it.

    Raises:
        FileError: there is no such file, it cannot be read, or it is not a regular file.
    """
    try:
        # Asked before it is opened: opening a pipe would wait for its other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError("not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _mapped(file, size) if mapped else _read(file, size)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror or error}") from error


def _mapped(file, size: int) -> np.ndarray:
    if size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _read(file, size: int) -> np.ndarray:
    room = np.empty(size + _ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % _ALIGNMENT
    data = room[skip : skip + size]
    filled = file.readinto(data.data) if size else 0
    if filled != size:
        raise FileError(f"only {filled} of {size} bytes could be read")
    data.flags.writeable = False
    return data
