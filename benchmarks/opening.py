"""Opening: how long until the first value of a large file, and what importing the package adds."""

import json
import os
import struct
import subprocess
import sys

LIBRARIES = "import jax, flax.nnx, optax"
TITLE = "import jaxstate, after jax, flax.nnx, optax"


def sparse(path, nbytes):
    """A safetensors file of this size that is a hole but for its ends: nothing of it is on the disk."""
    count = nbytes // 4 // 4096
    header = {"weight": {"dtype": "F32", "shape": [count, 4096], "data_offsets": [0, count * 16384]}}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + count * 16384)


def first_value(options):
    import jaxstate as js

    return lambda: float(js.load(options["path"])["weight"][-1, -1]), lambda made: made


def first_value_safetensors(options):
    from safetensors import safe_open

    def run():
        with safe_open(options["path"], "np") as file:
            rows = file.get_slice("weight").get_shape()[0]
            return float(file.get_slice("weight")[rows - 1 :][0, -1])

    return run, lambda made: made


def imports(runs, folder):
    """CPU and wall seconds of `import jaxstate` after the libraries, with compiled modules in place."""
    code = (
        f"import time\n{LIBRARIES}\nc, w = time.process_time(), time.perf_counter()\nimport jaxstate\n"
        "print(time.process_time() - c, time.perf_counter() - w)"
    )
    kept = ("PYTHONDONTWRITEBYTECODE",)
    env = {key: value for key, value in os.environ.items() if key not in kept}
    env |= {"PYTHONPYCACHEPREFIX": os.path.join(folder, "pyc"), "JAX_PLATFORMS": "cpu"}
    rows = []
    for _ in range(runs + 1):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
        )
        rows.append([float(number) for number in done.stdout.split()])
    cpu, wall = (sorted(row[side] for row in rows[1:]) for side in (0, 1))
    return {"cpu": cpu[0], "wall": wall[0], "median": cpu[runs // 2]}
