"""The files of a checkpoint that is a folder: a name that an index gives leads to a file in that folder.

An index is data, and the names in it are not to reach other files: they are plain names, and a link among
them leads out of the folder only where Hugging Face's cache has it so.
"""

import os

from jaxstate.errors import FileError

_FORBIDDEN = frozenset("/\\:\0")
"""What separates folders or drives, on any system: a checkpoint that is refused here is refused there."""

MAX_NAME = 255


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file, and no path.

    >>> [is_plain_name(n) for n in ("model.bin", "..", "a/b", "C:x", "")]
    [True, False, False, False, False]
    """
    return (
        type(name) is str
        and 0 < len(name.encode(errors="replace")) <= MAX_NAME
        and name not in (".", "..")
        and _FORBIDDEN.isdisjoint(name)
    )


def member(folder: str, name: str) -> str:
    """The path of a file of a checkpoint.

    Raises:
        FileError: no plain name, or a link that leads out of the folder.
    """
    if not is_plain_name(name):
        raise FileError(f"the file name {str(name)[:200]!r} is a path; a checkpoint names files beside it")
    path = os.path.join(folder, name)
    if os.path.islink(path) and not _stays(folder, path):
        raise FileError(
            f"{name} is a link to {os.path.realpath(path)}, outside of the folder; copy that file here"
        )
    return path


def _stays(folder: str, link: str) -> bool:
    home, target = os.path.realpath(folder), os.path.dirname(os.path.realpath(link))
    return target == home or target == _blobs(home)


def _blobs(home: str) -> str | None:
    """Where Hugging Face's cache keeps the files that its `snapshots/REVISION/...` links to.

    >>> _blobs("/hub/models--gpt2/snapshots/607a30d7")
    '/hub/models--gpt2/blobs'
    """
    root, found, _ = home.rpartition(f"{os.sep}snapshots{os.sep}")
    return os.path.join(root, "blobs") if found else None
