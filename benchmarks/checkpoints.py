"""Checkpoints against bare Orbax, safetensors and plain files: the same bytes, ratios of one run.

    python benchmarks/checkpoints.py [--mib 512] [--leaves 16] [--rounds 5] [--folder /dev/shm] [--json FILE]

A save and a restore are each a process of their own, so that nothing is left from the one before; what is
taken is the time of the call alone, its CPU time with all threads, and by how much anonymous memory (RssAnon)
peaked above what it was. The folder is in memory by default, so that no disk is measured; sides take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import Peak

SIDES = ("jaxstate", "orbax v1", "orbax v0", "safetensors", "tofile")


def arrays(mib, leaves):
    """Random normal float32 of these sizes, by name."""
    rng = np.random.default_rng(0)
    rows = max(1, round(mib * 2**18 / leaves / 1024))
    return {f"layers.{i}.kernel": rng.standard_normal((rows, 1024), np.float32) for i in range(leaves)}


def binding_of(made):
    import jaxstate as js

    return js.Binding(tuple(js.Rule(name, name, "i o -> o i") for name in made))


def save(side, path, made):
    """A function that saves; what it needs is imported and made before."""
    import jax

    placed = {name: jax.device_put(array) for name, array in made.items()}
    jax.block_until_ready(placed)
    if side == "jaxstate":
        import jaxstate as js

        binding = binding_of(made)
        return lambda: js.orbax.save(path, placed, binding=binding)
    if side == "orbax v1":
        from orbax.checkpoint import v1

        return lambda: v1.save(path, placed)
    if side == "orbax v0":
        import orbax.checkpoint as v0

        checkpointer = v0.StandardCheckpointer()

        def run():
            checkpointer.save(path, placed)
            checkpointer.wait_until_finished()

        return run
    if side == "safetensors":
        from safetensors.flax import save_file

        path.mkdir()
        return lambda: save_file(placed, str(path / "a.safetensors"))
    path.mkdir()
    return lambda: [np.asarray(array).tofile(path / name) for name, array in placed.items()]


def restore(side, path, made):
    """A function that restores into jax arrays."""
    import jax

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=here) for name, array in made.items()
    }
    if side == "jaxstate":
        import jaxstate as js

        return lambda: js.orbax.restore(path, shapes).model
    if side == "orbax v1":
        from orbax.checkpoint import v1

        return lambda: v1.load(path, shapes)
    if side == "orbax v0":
        import orbax.checkpoint as v0

        checkpointer = v0.StandardCheckpointer()
        return lambda: checkpointer.restore(path, shapes)
    if side == "safetensors":
        from safetensors.flax import load_file

        return lambda: load_file(str(path / "a.safetensors"))

    def run():
        found = {name: np.fromfile(path / name, s.dtype).reshape(s.shape) for name, s in shapes.items()}
        return {name: jax.device_put(array) for name, array in found.items()}

    return run


def one(what, side, path, mib, leaves):
    """The cost of one call, in a process of its own."""
    import jax
    from orbax.checkpoint import v1  # noqa: F401

    import jaxstate.orbax  # noqa: F401

    made = arrays(mib, leaves)
    run = {"save": save, "restore": restore}[what](side, path, made)
    cpu, start = time.process_time(), time.perf_counter()
    with Peak() as peak:
        found = run()
        jax.block_until_ready(found) if what == "restore" else None
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    if what == "restore":
        assert all(np.array_equal(found[name], made[name]) for name in made)
    print(json.dumps({"wall": wall, "cpu": cpu, "anon": peak.extra}))
    sys.stdout.flush()
    os._exit(0)


def measured(options, folder):
    """For each side and direction the fastest of the rounds, taken in turns, and the most memory of all."""
    rows = {(what, side): [] for what in ("save", "restore") for side in SIDES}
    for n in range(options.rounds):
        for side in SIDES:
            path = folder / f"{side.replace(' ', '_')}.{n}"
            for what in ("save", "restore"):
                rows[what, side].append(child(what, side, path, options))
            subprocess.run(["rm", "-r", str(path)], check=True)
    return {
        name: {key: (max if key == "anon" else min)(row[key] for row in found) for key in found[0]}
        for name, found in rows.items()
    }


def child(what, side, path, options):
    command = [sys.executable, __file__, "--one", what, "--side", side, "--path", str(path)]
    command += ["--mib", str(options.mib), "--leaves", str(options.leaves)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=512)
    parser.add_argument("--leaves", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.side, options.path, options.mib, options.leaves)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measured(options, Path(folder))
    print(
        f"{options.mib:g} MiB in {options.leaves} leaves of float32, the fastest of {options.rounds} rounds"
    )
    for what in ("save", "restore"):
        base = found[what, "jaxstate"]
        print(f"\n{what:12} {'s':>6} {'CPU s':>6} {'anon MiB':>9}   ours to it: time, CPU")
        for side in SIDES:
            row = found[what, side]
            ratios = f"{base['wall'] / row['wall']:5.2f} {base['cpu'] / row['cpu']:5.2f}"
            print(f"{side:12} {row['wall']:6.2f} {row['cpu']:6.2f} {row['anon'] / 2**20:9.0f}   {ratios}")
    if options.json:
        rows = [{"what": what, "side": side, **row} for (what, side), row in found.items()]
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
