"""One of two hosts that share no disk: `python host_that_dies.py FOLDER PORT NUMBER dies|resumes`.

The second one is killed when all that its step lacks is its name; by then the first has all of its own.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js

BINDING = js.Binding((js.Rule("w", "w", "a b -> b a"), js.Rule("b", "b", "a -> a")))
W = np.random.default_rng(1).normal(size=(16, 12)).astype("f")
STEPS = Path("/proc/self/cwd/steps")


def model(step):
    mesh = jax.make_mesh((4,), ("x",))

    def laid(array, spec):
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), lambda index: array[index]
        )

    return {"w": laid(W + step, P("x")), "b": laid(W[0] * step, P())}


def same(found, expected):
    for path, leaf in expected.items():
        for new, old in zip(found[path].addressable_shards, leaf.addressable_shards, strict=True):
            assert np.array_equal(new.data, old.data), path


def dies():
    with js.orbax.Checkpointer(STEPS, shared=False) as checkpoints:
        checkpoints.save(1, model(1), binding=BINDING)
        checkpoints.wait()
        if jax.process_index() == 1:
            os.rename = os.replace = lambda *rest, **options: os.kill(os.getpid(), signal.SIGKILL)
        checkpoints.save(2, model(2), binding=BINDING)
        checkpoints.wait()


def resumes():
    with js.orbax.Checkpointer(STEPS, shared=False) as checkpoints:
        assert checkpoints.steps == [1], checkpoints.steps
        same(checkpoints.restore(model(0)).model, model(1))
        checkpoints.save(2, model(20), binding=BINDING)
        checkpoints.wait()
        assert checkpoints.steps == [1, 2]
        same(checkpoints.restore(model(0)).model, model(20))
    print("all of it")


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
    folder = Path(sys.argv[1]) / f"host{jax.process_index()}"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    globals()[sys.argv[4]]()
