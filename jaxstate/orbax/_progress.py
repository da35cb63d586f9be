"""Progress: how far a save is, told by the bytes that lie on the disk."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

_SECONDS = 0.1


@contextmanager
def following(shown: bool, folder: Path, step: int, size: int) -> Iterator[None]:
    """Show a bar inside, for a step of so many bytes; nothing if it is not to be shown."""
    if not shown:
        yield
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task(f"saving step {step}", total=size)
        done = threading.Event()
        thread = threading.Thread(target=_follow, args=(progress, task, folder, step, done), daemon=True)
        thread.start()
        try:
            yield
            progress.update(task, completed=size)
        finally:
            done.set()
            thread.join()


def _follow(progress: Progress, task, folder: Path, step: int, done: threading.Event) -> None:
    while not done.wait(_SECONDS):
        progress.update(task, completed=written(folder, step))


def written(folder: Path, step: int) -> int:
    """The bytes of a step that are on the disk so far, under its own name or a temporary one."""
    places = [folder / str(step), *folder.glob(f"{step}.orbax-checkpoint-tmp*")]
    return sum(_bytes(path) for place in places for path in place.rglob("*"))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0  # renamed meanwhile
