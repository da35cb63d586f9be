"""One method in a process of its own: what a call costs, and a checksum of what it gave.

A method is a function of the options that prepares and answers `(run, digest)`: `run()` is timed, and what it
returned is told by `digest`, before anything is timed. Its process knows nothing of the others'.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from importlib import import_module
from pathlib import Path

from benchmarks.memory import Peak

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks/.venv/bin/python"
# Else glibc keeps freed blocks, after some runs of any size, and a copy into these is none into fresh memory.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}


def checksum(arrays):
    """One number of named arrays: names, dtypes, shapes and bytes, whatever their order."""
    import numpy as np

    crc = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return crc


def settle():
    """Let go of what the run before left: JAX drops borrowed host memory only when it is next called."""
    gc.collect()
    if jax := sys.modules.get("jax"):
        jax.block_until_ready(jax.device_put(0.0))
        gc.collect()


def once(run):
    settle()
    cpu, start = time.process_time(), time.perf_counter()
    with Peak(every=0.002) as peak:
        made = run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    del made
    return {"wall": wall, "cpu": cpu, "anon": peak.extra}


def main(module, method, options):
    """Run a method: the warm-up, whose result is checked, and then the runs that count."""
    run, digest = getattr(import_module(f"benchmarks.{module}"), method)(json.loads(options))
    found = {"digest": digest(run())}
    rows = [once(run) for _ in range(json.loads(options)["runs"])]
    # The fastest run, since the host of a virtual machine now and then takes away memory that lies free: to
    # touch it again is counted as CPU time here, and is up to six times what the whole call costs.
    found |= {key: min(row[key] for row in rows) for key in ("wall", "cpu")}
    found["median"] = statistics.median(row["cpu"] for row in rows)
    # Before the first run the allocator may hold memory of the warm-up, so the largest is the honest one.
    found["anon"] = max(row["anon"] for row in rows)
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def child(module, method, options):
    """The figures of a method, or why there are none."""
    peer = method.startswith("peer_")
    if peer and not PEERS.exists():
        return {"skipped": "no environment of peers"}
    command = [str(PEERS) if peer else sys.executable, "-m", "benchmarks.measure", module, method]
    env = {**os.environ, **ENVIRONMENT, **options.get("env", {})}
    done = subprocess.run([*command, json.dumps(options)], capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
