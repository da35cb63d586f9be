"""What a large model costs on its way: torch's file -> Orbax -> torch's file, and onto shards and back.

    python benchmarks/scaling.py [--mib 1024] [--layers 16] [--processes 1 2] [--folder /dev/shm]

Every row is a process of its own, or several that share a mesh of one device each. What is taken is the time
of the call alone, the CPU time of one process, the bytes that it asks its files for, and by how much its
anonymous memory (RssAnon) peaked above what it was. glibc is told to give freed blocks back, so that the
account is exact. The folder is in memory by default: no disk is measured.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from checkpoints import Peak


def parts(mib, layers):
    """A binding and a template: in each layer one matrix is cut along torch's rows, one along columns."""
    import jax

    import jaxstate as js

    side = int((mib * 2**18 / layers / 2 / 4) ** 0.5) // 64 * 64
    rules, leaves = [], {}
    for n in range(layers):
        rules += [
            js.Rule(f"h.{n}.up", f"up{n}", "i o -> o i"),
            js.Rule(f"h.{n}.down", f"down{n}", "i o -> o i"),
        ]
        leaves[f"up{n}"] = jax.ShapeDtypeStruct((side, 4 * side), "float32")
        leaves[f"down{n}"] = jax.ShapeDtypeStruct((4 * side, side), "float32")
    return js.Binding(rules), leaves


def on_mesh(leaves):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    specs = {"up": PartitionSpec(None, "x"), "do": PartitionSpec("x", None)}
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, specs[path[:2]]))
        for path, leaf in leaves.items()
    }


def make_file(folder, options):
    import jaxstate as js

    binding, leaves = parts(options.mib, options.layers)
    shapes = binding.of(leaves).shapes

    def values(number, shape):
        return np.random.default_rng(number).standard_normal(shape, np.float32)

    sd = {
        k: js.LazyArray(s, "float32", lambda n=n, s=s: values(n, s))
        for n, (k, s) in enumerate(shapes.items())
    }
    js.save(sd, folder / "net.safetensors")


class Asked(dict):
    """A state_dict that counts the bytes that are asked for."""

    total = 0

    def __init__(self, arrays):
        from jaxstate.lazy import from_parts

        super().__init__(
            {k: from_parts(x.shape, x.dtype, lambda box, x=x: self.count(x[box])) for k, x in arrays.items()}
        )

    def count(self, found):
        self.total += found.nbytes
        return found


def run(what, folder, options):
    """The call that is measured, and what else it tells."""
    import jax

    import jaxstate as js

    binding, leaves = parts(options.mib, options.layers)
    found = js.load(folder / "net.safetensors")
    if what == "torch -> orbax":
        return lambda: js.orbax.from_torch(folder / "orbax", found, leaves, binding=binding)
    if what == "orbax -> torch":
        return lambda: js.save(js.orbax.state_dict(folder / "orbax"), folder / "again.safetensors")
    template = on_mesh(leaves)
    if what == "torch -> shards":
        return lambda: jax.block_until_ready(js.load_state_dict(template, found, binding))
    if what == "the same, counted":
        asked = Asked(found)
        return lambda: (js.load_state_dict(template, asked, binding), asked.total)[1]
    model = jax.block_until_ready(js.load_state_dict(template, found, binding))
    name = f"{what[10:]} {jax.process_count()}"
    return lambda: js.sharded.save(model, folder / name, binding, format=what[10:])


ALONE = ("torch -> orbax", "orbax -> torch")
SHARDED = ("torch -> shards", "the same, counted", "shards -> dcp", "shards -> safetensors")


def one(what, folder, options):
    import jax
    from orbax.checkpoint import v1  # noqa: F401

    if options.port:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{options.port}", options.count, options.number)
    call = run(what, folder, options)
    cpu, start = time.process_time(), time.perf_counter()
    with Peak() as peak:
        found = call()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    asked = found if isinstance(found, int) else None
    print(json.dumps({"wall": wall, "cpu": cpu, "anon": peak.extra, "asked": asked}))
    sys.stdout.flush()
    if options.port:
        jax.distributed.shutdown()


def children(what, folder, options, count):
    """The largest cost of several processes in one call."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--one", what, "--path", str(folder), "--mib", str(options.mib)]
    command += ["--layers", str(options.layers), "--count", str(count)]
    command += ["--port", str(port)] if count > 1 else []
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    started = [
        subprocess.Popen([*command, "--number", str(n)], stdout=subprocess.PIPE, text=True, env=env)
        for n in range(count)
    ]
    rows = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {key: max(row[key] or 0 for row in rows) for key in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.path, options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder)
        make_file(folder, options)
        size = (folder / "net.safetensors").stat().st_size / 2**20
        largest = size / options.layers / 2
        print(f"{size:.0f} MiB of float32 in {2 * options.layers} tensors of {largest:.0f} MiB\n")
        print(f"{'':24} {'processes':>9} {'s':>7} {'CPU s':>7} {'MiB asked':>9} {'anon MiB':>9}")
        rows = [(what, 1) for what in ALONE] + [(what, n) for n in options.processes for what in SHARDED]
        for what, count in rows:
            row = children(what, folder, options, count)
            asked = f"{row['asked'] / 2**20:9.0f}" if row["asked"] else " " * 9
            print(
                f"{what:24} {count:9} {row['wall']:7.2f} {row['cpu']:7.2f} {asked} {row['anon'] / 2**20:9.0f}"
            )


if __name__ == "__main__":
    main()
