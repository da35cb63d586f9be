"""All rows, or the named ones, as tables of ratios and as JSON.

    python -m benchmarks [import export open small convolutions scanned sharded adam step ...]
                         [--layers 2] [--dtypes bfloat16 float32] [--runs 9] [--folder /dev/shm]
                         [--json FILE] [--markdown FILE] [--tiny]

Each method is a process of its own: one warm-up, whose result is compared with the other methods', then the
runs, of which the fastest counts. `CPU s` is CPU seconds of all threads, `anon` by how much anonymous memory
peaked above what it was, in bytes of the data. Ratios are to the first line of a table, which is the floor: a
bare copy of the same bytes into fresh memory, or a bare write of them; `median` is that of the medians' CPU.
12 layers are 0.75 billion parameters, 50 are 2.7. `--markdown benchmarks/README.md` puts the tables into that
page, each row's behind its mark.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import importing, llama, markdown, opening
from benchmarks.measure import ROOT, child

DTYPES = ("bfloat16", "float32")
BYTES = {"bfloat16": 2, "float32": 4}
ORACLE = "torch_side"  # a method that only says what the others must give


def nbytes(options):
    size = 0
    for shape in llama.shapes(options).values():
        count = BYTES[options["dtype"]]
        for n in shape:
            count *= n
        size += count
    return size


def measured(title, module, methods, options, size):
    """A table: every method's figures; those that give values must give the same."""
    rows = {name: child(module, name, options) for name in methods}
    digests = {name: row["digest"] for name, row in rows.items() if row.get("digest") is not None}
    if len(set(digests.values())) > 1:
        raise SystemExit(f"{title}: the methods differ: {digests}")
    if failed := {n: r["skipped"] for n, r in rows.items() if "skipped" in r and not n.startswith("peer_")}:
        raise SystemExit(f"{title}: {failed}")
    rows.pop(ORACLE, None)
    return shown({"table": title, "bytes": size, "rows": rows})


def shown(table):
    """The same table, printed."""
    print("\n" + "\n".join(markdown.lines(table)), flush=True)
    return table


def import_(options, folder):
    """A llama into an NNX model, all kernels transposed; and into a dict as it lies."""
    for dtype in options["dtypes"]:
        wanted = {**options, "dtype": dtype}
        paths = _files(wanted, folder)
        for kind, transposed in (("safetensors", True), ("pt", True), ("safetensors", False)):
            methods = (
                importing.METHODS if kind == "safetensors" else ("jaxstate", "script", "peer_hugging_face")
            )
            methods = [name for name in methods if transposed or not name.startswith("peer_")]
            title = f"import {dtype} .{kind}, {'kernels transposed' if transposed else 'as it lies'}"
            here = {**wanted, "transposed": transposed, "path": paths[kind]}
            yield measured(title, "importing", ["copy", *methods], here, nbytes(wanted))
        for path in paths.values():
            os.unlink(path)


def _files(options, folder):
    """A file of each kind, written by the tool whose kind it is."""
    import torch
    from safetensors.torch import save_file

    bits = {"bfloat16": ("uint16", torch.bfloat16), "float32": ("uint32", torch.float32)}[options["dtype"]]
    made = llama.arrays({**options, "transposed": False})
    tensors = {key: torch.from_numpy(array.view(bits[0])).view(bits[1]) for key, array in made.items()}
    paths = {kind: os.path.join(folder, f"llama.{kind}") for kind in ("safetensors", "pt")}
    save_file(tensors, paths["safetensors"], metadata={"format": "pt"})
    torch.save(tensors, paths["pt"])
    return paths


def export(options, folder):
    """A llama from an NNX model, all kernels transposed back; and from a dict as it lies."""
    for dtype in options["dtypes"]:
        for transposed in (True, False):
            wanted = {**options, "dtype": dtype, "transposed": transposed}
            how = "kernels transposed" if transposed else "as it lies"
            for name, methods in (
                ("llama.pt", ["write_crc", "jaxstate", "torch_save"]),
                ("llama.safetensors", ["write", "jaxstate", "safetensors_numpy"]),
            ):
                here = {**wanted, "out": os.path.join(folder, name)}
                title = f"export {dtype} .{name.split('.')[1]}, {how}"
                yield measured(title, "exporting", methods, here, nbytes(wanted))
                os.unlink(here["out"])
        wanted["shard"] = nbytes(wanted) // 3
        sharded = {**wanted, "transposed": True, "out": os.path.join(folder, "sharded")}
        os.makedirs(sharded["out"], exist_ok=True)
        yield measured(
            f"export {dtype} in shards",
            "exporting",
            ["write_to_one_file", "jaxstate"],
            sharded,
            nbytes(wanted),
        )


def open_(options, folder):
    """A file of 5 GB that is a hole, and the import of the package."""
    path = os.path.join(folder, "sparse.safetensors")
    opening.sparse(path, options["sparse"])
    here = {**options, "path": path}
    yield measured("open, first value", "opening", ["first_value_safetensors", "first_value"], here, 0)
    row = opening.imports(options["runs"], folder)
    yield shown({"table": opening.TITLE, "bytes": 0, "rows": {"import jaxstate": row}})


def _shape(name):
    def rows(options, folder):
        eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"} if name == "sharded" else {}
        here = {**options, "shape": name, "env": eight}
        size = _shape_bytes(name, here)
        yield measured(f"{name}, load_state_dict", "shapes", ["copy", "load", "expected"], here, size)
        yield measured(f"{name}, state_dict", "shapes", ["copy", "export", ORACLE], here, size)
        here["out"] = os.path.join(folder, f"{name}.safetensors")
        yield measured(f"{name}, into a file", "shapes", ["write", "save", ORACLE], here, size)
        os.unlink(here["out"])
        if name == "small":
            yield from _small_layers(here)

    rows.__doc__ = f"The shape `{name}` of benchmarks/shapes.py."
    return rows


def _small_layers(options):
    """bind, load_state_dict and state_dict of an NNX model, and how they grow with its leaves."""
    methods, tables = ["copy", "nnx_bind", "nnx_load", "nnx_export"], []
    for leaves in (options["leaves"] * 2 // 5, options["leaves"]):
        here = {**options, "leaves": leaves}
        title = f"NNX model of {leaves} leaves"
        tables.append(measured(title, "shapes", methods, here, _shape_bytes("small", here)))
    few, many = (table["rows"] for table in tables)
    growth = {name: many[name]["cpu"] / max(few[name]["cpu"], 1e-9) for name in methods[1:]}
    told = ", ".join(f"{name} {times:.2f}" for name, times in growth.items())
    print(f"\n2.5 times the leaves cost, times the CPU seconds: {told}")
    yield from tables
    yield {
        "table": "growth",
        "text": f"2.5 times the leaves cost, times the CPU seconds: {told}\n",
        "rows": growth,
    }


def _shape_bytes(name, options):
    from benchmarks.shapes import SHAPES

    total = 0
    for shape in SHAPES[name](options)[0].values():
        count = 4
        for n in shape:
            count *= n
        total += count
    return total


def adam(options, folder):
    """The state of Adam over 0.75 billion parameters, both ways."""
    here = {**options, "dtype": "float32", "transposed": True, "layers": options["adam_layers"], "runs": 5}
    size = 2 * nbytes(here)
    yield measured("Adam state from torch", "optimizer_state", ["copy", "load"], here, size)
    yield measured("Adam state to torch", "optimizer_state", ["copy", "export", ORACLE], here, size)


def _script(name, *flags):
    def rows(options, folder):
        out = os.path.join(folder, f"{name}.json")
        told = [str(options.get(flag, flag)) for flag in flags]
        told = [out if flag == "OUT" else flag for flag in told]
        command = [sys.executable, f"benchmarks/{name}.py", *told]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found = {"rows": json.loads(open(out).read())} if os.path.exists(out) else {}
        yield shown({"table": name, "text": done.stdout, **found})

    rows.__doc__ = f"What benchmarks/{name}.py prints."
    return rows


ROWS = {
    "import": import_,
    "export": export,
    "open": open_,
    **{name: _shape(name) for name in ("small", "convolutions", "scanned", "sharded")},
    "adam": adam,
    "step": _script("optimizer_step", "--millions", "millions", "--rounds", "rounds", "--json", "OUT"),
    "checkpoints": _script("checkpoints", "--mib", "mib", "--folder", "folder"),
    "scaling": _script("scaling", "--mib", "scaling_mib", "--folder", "folder"),
}
SIZES = {"leaves": 10_000, "sparse": 5_000_000_000, "adam_layers": 12}
SIZES |= {"millions": 20, "rounds": 9, "mib": 256, "scaling_mib": 1024}
TINY = {"leaves": 40, "sparse": 1_000_000, "adam_layers": 1, "shrink": 16}
TINY |= {"millions": 0.1, "rounds": 3, "mib": 4, "scaling_mib": 16}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"all, or some of: {' '.join(ROWS)}")
    parser.add_argument("--layers", type=int, default=2, help="of the llama; 12 are 0.75 billion parameters")
    parser.add_argument(
        "--dtypes", nargs="*", choices=DTYPES, default=DTYPES, help="of the llama; both by default"
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--folder", default="/dev/shm", help="for the files; in memory by default")
    parser.add_argument("--json", help="where to write all figures")
    parser.add_argument("--markdown", help="a page whose tables are to be replaced")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    asked = parser.parse_args()
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"no such row: {' '.join(unknown)}; there are {' '.join(ROWS)}")
    options = {
        "layers": asked.layers,
        "dtypes": asked.dtypes,
        "runs": asked.runs,
        **SIZES,
        **(TINY if asked.tiny else {}),
    }
    tables = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for name in asked.rows or ROWS:
            found = list(ROWS[name]({**options, "folder": folder}, folder))
            tables += found
            if asked.markdown:
                page = Path(asked.markdown)
                page.write_text(markdown.replaced(page.read_text(), name, found))
    if asked.json:
        Path(asked.json).write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
