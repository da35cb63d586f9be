"""A training that does not end well. `python that_dies.py FOLDER MOMENT`.

It saves step 1, and then dies in the middle of step 2, or has no room for it.
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np

import jaxstate as js
from jaxstate.errors import CheckpointError
from jaxstate.orbax._progress import written

W = js.Binding((js.Rule("w", "w", "a -> a"),))
SIZE = 4_000_000


def model(step):
    return {"w": np.arange(SIZE, dtype="f") + step}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(folder, least):
    """As soon as so many bytes of step 2 are on the disk."""
    while not list(folder.glob("2.*")) or written(folder, 2) < least:
        pass
    die()


def main(folder, moment):
    with js.orbax.Checkpointer(folder) as checkpoints:
        checkpoints.save(1, model(1), binding=W)
        checkpoints.wait()
        if moment == "full disk":
            no_room(folder, checkpoints)
            return
        if moment == "rename":
            os.rename = os.replace = lambda *rest, **options: die()
        else:
            threading.Thread(target=die_at, args=(folder, int(moment)), daemon=True).start()
        checkpoints.save(2, model(2), binding=W)
        checkpoints.wait()


def no_room(folder, checkpoints):
    """No file may be longer than this. What fails is said, once, and then there is room again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    checkpoints.save(2, model(2), binding=W)
    try:
        checkpoints.wait()
    except CheckpointError as error:
        print(f"async: {error}"[:200].splitlines()[0], flush=True)
    try:
        js.orbax.save(folder / "alone", model(2), binding=W)
    except CheckpointError as error:
        print(f"sync: {error}"[:200].splitlines()[0], flush=True)
    print(sorted(path.name for path in folder.iterdir()), checkpoints.steps, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(3, model(3), binding=W)
    checkpoints.wait()
    print(checkpoints.steps, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
