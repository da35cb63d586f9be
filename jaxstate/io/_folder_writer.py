"""Writes a checkpoint of several files so that at every moment the folder holds the old one or the new one.

The files come first, under names that nothing refers to. Then the index is renamed into its place: that is
the moment at which the new checkpoint is there. What only the old one referred to goes last. A process that
is killed leaves files that no index names, and never a mixture.

Where the new files are to have the names of the old, each is given two: the index first names the one that
was free, and then, when the old files are gone, the other.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

from jaxstate.errors import FileError

from ._atomic import replacing
from ._members import is_plain_name

Write = Callable[[BinaryIO], None]
Index = tuple[str, Callable[[Mapping[str, str]], bytes]]
"""The name of the index, and its content by the names that the files go by."""


def write_file(folder: str, name: str, write: Write, stale: Iterable[str]) -> None:
    """Write the only file of a checkpoint into a folder, and remove those of the old one.

    Raises:
        FileError: the folder cannot be made or written.
    """
    with _explained(), ExitStack() as undo:
        _make(folder, undo)
        _put(os.path.join(folder, name), write)
        undo.pop_all()
        _remove(folder, set(stale) - {name})


def write_folder(
    folder: str,
    files: Mapping[str, Write],
    index: Index,
    stale: Iterable[str] = (),
    preferred: str | None = None,
) -> None:
    """Write the files of a checkpoint and its index, and remove those of the old one.

    Args:
        folder: it is made if it is not there; other files in it are left alone.
        files: for each name a function that writes the file.
        index: what refers to them, and makes them the checkpoint.
        stale: names of files that belong to the old checkpoint.
        preferred: the name of the file that is the checkpoint for a reader, index or not.

    Raises:
        FileError: the folder cannot be made or written.
    """
    with _explained(), ExitStack() as undo:
        _make(folder, undo)
        drafts = {name: _draft(folder, name, write, undo) for name, write in files.items()}
        if any(os.path.lexists(os.path.join(folder, name)) for name in files):
            _take_names(folder, drafts, index, undo)
        else:
            _give_names(folder, drafts, index, undo)
        _reveal(folder, preferred)
        _remove(folder, set(stale) - {*files, index[0]})


def _give_names(folder: str, drafts: Mapping[str, str], index: Index, undo: ExitStack) -> None:
    for name, draft in drafts.items():
        path = os.path.join(folder, name)
        os.rename(draft, path)
        undo.callback(_unlink, path)
    _commit(folder, index, {name: name for name in drafts})
    undo.pop_all()


def _take_names(folder: str, drafts: Mapping[str, str], index: Index, undo: ExitStack) -> None:
    seconds = {name: _second_name(draft, undo) for name, draft in drafts.items()}
    _commit(folder, index, {name: os.path.basename(draft) for name, draft in drafts.items()})
    undo.pop_all()
    for name, second in seconds.items():
        os.replace(second, os.path.join(folder, name))
    _commit(folder, index, {name: name for name in drafts})
    for draft in drafts.values():
        os.unlink(draft)


def _draft(folder: str, name: str, write: Write, undo: ExitStack) -> str:
    path = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}.tmp")
    _put(path, write)
    undo.callback(_unlink, path)
    return path


def _second_name(draft: str, undo: ExitStack) -> str:
    path = f"{draft}2"
    try:
        os.link(draft, path)
    except OSError as error:
        raise FileError(
            f"the folder holds files of these names, and its file system cannot replace them all at once "
            f"({error.strerror}); save into a new folder"
        ) from error
    undo.callback(_unlink, path)
    return path


def _commit(folder: str, index: Index, names: Mapping[str, str]) -> None:
    name, content = index
    _put(os.path.join(folder, name), lambda file: file.write(content(names)))


def _put(path: str, write: Callable[[BinaryIO], object]) -> None:
    with replacing(path) as file:
        write(file)


def _make(folder: str, undo: ExitStack) -> None:
    if not os.path.isdir(folder):
        os.mkdir(folder)
        undo.callback(_rmdir, folder)


def _reveal(folder: str, name: str | None) -> None:
    """Remove the file that readers prefer to the index. As long as it is there, it is the checkpoint."""
    if name is not None and os.path.lexists(os.path.join(folder, name)):
        os.unlink(os.path.join(folder, name))


def _remove(folder: str, names: Iterable[str]) -> None:
    """Remove old files. The new checkpoint stands whether or not this succeeds."""
    for name in filter(is_plain_name, names):
        _unlink(os.path.join(folder, name))


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _rmdir(folder: str) -> None:
    with suppress(OSError):
        os.rmdir(folder)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}") from error
