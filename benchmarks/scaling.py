"""What a large model costs on its way: torch's file -> Orbax -> torch's file, and onto shards and back.

    python benchmarks/scaling.py [--mib 1024] [--layers 16] [--processes 1 2 4] [--dtype float32 bfloat16]
                                 [--rounds 3] [--folder /dev/shm] [--tables scaling.json]

Every row is a process of its own, or several that share a mesh of one device each. What is taken is the time
of the call alone and the CPU time of one process, in the fastest round; the bytes that it asks its files for;
and by how much its anonymous memory (RssAnon) peaked above what it was, in the worst. glibc is told to give
freed blocks back, so that the account is exact. The folder is in memory by default, and no disk is measured;
with --folder it is where you say, and a disk may still be writing when the call comes back.

What follows for 70 and 405 billion parameters is printed last, as docs/scaling.md has it: the figures of
bfloat16 times the sizes. --tables keeps what was measured in a file, or prints the tables of such a file.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from memory import Peak


def parts(mib, layers, dtype):
    """A binding and a template: in each layer one matrix is cut along torch's rows, one along columns."""
    import jax

    import jaxstate as js

    dtype = jax.numpy.dtype(dtype)
    side = int((mib * 2**20 / dtype.itemsize / layers / 2 / 4) ** 0.5) // 64 * 64
    rules, leaves = [], {}
    for n in range(layers):
        rules += [
            js.Rule(f"h.{n}.up", f"up{n}", "i o -> o i"),
            js.Rule(f"h.{n}.down", f"down{n}", "i o -> o i"),
        ]
        leaves[f"up{n}"] = jax.ShapeDtypeStruct((side, 4 * side), dtype)
        leaves[f"down{n}"] = jax.ShapeDtypeStruct((4 * side, side), dtype)
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
    import jax

    import jaxstate as js

    binding, leaves = parts(options.mib, options.layers, options.dtype)
    dtype = jax.numpy.dtype(options.dtype)
    shapes = binding.of(leaves).shapes

    def values(number, shape):
        return np.random.default_rng(number).standard_normal(shape, np.float32).astype(dtype)

    sd = {k: js.LazyArray(s, dtype, lambda n=n, s=s: values(n, s)) for n, (k, s) in enumerate(shapes.items())}
    js.save(sd, folder / "net.safetensors")


class Asked(dict):
    """A state_dict that counts the bytes that are asked for."""

    total = 0

    def __init__(self, arrays):
        from jaxstate.arrays.lazy import from_parts

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

    binding, leaves = parts(options.mib, options.layers, options.dtype)
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
    if what == "shards -> own dcp":
        name += f" {jax.process_index()}"
        return lambda: js.sharded.save(model, folder / name, binding, format="dcp", shared=False)
    return lambda: js.sharded.save(model, folder / name, binding, format=what[10:])


ALONE = ("torch -> orbax", "orbax -> torch")
SHARDED = (
    "torch -> shards",
    "the same, counted",
    "shards -> dcp",
    "shards -> own dcp",
    "shards -> safetensors",
)


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
    command += ["--layers", str(options.layers), "--count", str(count), "--dtype", options.dtype]
    command += ["--port", str(port)] if count > 1 else []
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    started = [
        subprocess.Popen([*command, "--number", str(n)], stdout=subprocess.PIPE, text=True, env=env)
        for n in range(count)
    ]
    rows = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {key: max(row[key] or 0 for row in rows) for key in rows[0]}


def fastest(what, folder, options, count):
    """The fastest of some rounds, as `python -m benchmarks` takes it, and the most memory of all."""
    rounds = []
    for _ in range(options.rounds):
        kept = {"net.safetensors"} if what == ALONE[0] else {"net.safetensors", "orbax"}
        for made in folder.iterdir():
            if made.name not in kept:
                shutil.rmtree(made) if made.is_dir() else made.unlink()
        rounds.append(children(what, folder, options, count))
    least = {key: min(row[key] for row in rounds) for key in ("wall", "cpu")}
    return {**rounds[0], **least, "anon": max(row["anon"] for row in rounds)}


def measured(options):
    """One dtype: the bytes of the file, and the cost of every row; printed as they come."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder)
        make_file(folder, options)
        size = (folder / "net.safetensors").stat().st_size
        each = size / 2**20 / options.layers / 2
        print(f"{size / 2**20:.0f} MiB of {options.dtype}, {2 * options.layers} tensors of {each:.0f} MiB\n")
        print(f"{'':24} {'processes':>9} {'s':>7} {'CPU s':>7} {'MiB asked':>9} {'anon MiB':>9}")
        rows = {}
        for what, count in [(w, 1) for w in ALONE] + [(w, n) for n in options.processes for w in SHARDED]:
            row = rows[f"{what} {count}"] = fastest(what, folder, options, count)
            asked = f"{row['asked'] / 2**20:9.0f}" if row["asked"] else " " * 9
            cost = f"{row['wall']:7.2f} {row['cpu']:7.2f} {asked} {row['anon'] / 2**20:9.0f}"
            print(f"{what:24} {count:9} {cost}", flush=True)
        print()
    return {"bytes": size, "rows": rows}


MODELS = {"70B": (140e9, 2.1e9), "405B": (810e9, 4.2e9)}  # bytes in bfloat16, and those of the embedding
DISK = 2e9  # bytes a second that a host reads or writes


def tables(found):
    """What follows for large models, as markdown: the figures of one process times the sizes."""
    rate = {what: found["rows"][f"{what} 1"]["cpu"] / found["bytes"] for what in (*ALONE, SHARDED[0])}
    yield "CPU seconds a gigabyte, of one core: " + ", ".join(f"{w} {r * 1e9:.1f}" for w, r in rate.items())
    yield from ("", "| | hosts | memory = bytes asked | CPU | read |", "|---|---|---|---|---|")
    for name, (size, _) in MODELS.items():
        for hosts in (8, 64, 512):
            part = size / hosts
            cost, read = rate["torch -> shards"] * part, part / DISK
            first = f"{name}, {size / 1e9:.0f} GB" if hosts == 8 else ""
            yield f"| {first} | {hosts} | {part / 1e9:.3g} GB | {_seconds(cost)} | {_seconds(read)} |"
    yield from (
        "",
        "| | scratch and checkpoint | memory | torch -> Orbax | Orbax -> torch |",
        "|---|---|---|---|---|",
    )
    for name, (size, largest) in MODELS.items():
        minutes = [f"{rate[what] * size / 60:.0f} min of CPU" for what in ALONE]
        room, memory = (
            f"{size / 1e9:.0f} GB + {size / 1e9:.0f} GB",
            f"32 MiB there, 2 x {largest / 1e9} GB back",
        )
        yield f"| {name} | {room} | {memory} | {minutes[0]} | {minutes[1]} |"


def _seconds(number):
    return f"{number:.0f} s" if number >= 10 else f"{number:.2g} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--tables", type=Path)
    for name, kind in (("one", str), ("path", Path), ("port", int), ("count", int), ("number", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (options.dtype,) = options.dtype
        one(options.one, options.path, options)
        return
    if options.tables and options.tables.exists():
        found = json.loads(options.tables.read_text())
    else:
        found = {d: measured(argparse.Namespace(**{**vars(options), "dtype": d})) for d in options.dtype}
        if options.tables:
            options.tables.write_text(json.dumps(found, indent=1))
    print("\n".join(tables(found["bfloat16"])) if "bfloat16" in found else "")


if __name__ == "__main__":
    main()
