"""Optimizers onto shards and back, `python moves_optimizers.py FOLDER PORT NUMBER NAMES...`.

One of two processes, of two devices each; or, with the port 0, one process of eight. Files of torch's are
loaded, and every byte counted that a process asks for; what it holds is written for torch to read.
"""

import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray, from_parts
from jaxstate.errors import OptimizerError
from jaxstate.sharded import _leaves

BINDING = js.Binding(
    (
        js.Rule("wte.weight", "wte", "v d -> v d"),
        js.Rule("h.{l}.qkv", "h.{p}", "l d n k -> (p n k) d", p=("q", "k", "v"), l=range(3)),
        js.Rule("h.{l}.out", "h.out", "l n k d -> d (n k)", l=range(3), n=4),
        js.Rule("conv", "conv", "h w i o -> i o ~h ~w"),
        js.Rule("fc", "fc", "(h w c) o -> o (c h w)", h=2, w=5),
        js.Rule("one.weight", "one", "i o -> o i"),
        js.Rule("two.weight", "two", "i o -> o i"),
        js.Fused([js.Rule("mlp.weight", path, "i o -> o i") for path in ("up", "gate")], "o"),
        js.Fused([js.Rule(f"{k}.weight", "kv", "i o -> o i", o=n) for k, n in (("k", 4), ("v", 12))], "o"),
        js.Rule("norm", "norm", "a -> a"),
        js.Tied("head.weight", "wte.weight"),
    )
)
LEAVES = {
    "wte": ((32, 8), P("x", None)),
    "h.q": ((3, 8, 4, 6), P(None, None, "x", None)),
    "h.k": ((3, 8, 4, 6), P(None, "y", "x", None)),
    "h.v": ((3, 8, 4, 6), P(None, ("x", "y"))),
    "h.out": ((3, 4, 6, 8), P(None, "x", None, "y")),
    "conv": ((3, 8, 4, 10), P(None, "x", None, "y")),
    "fc": ((40, 16), P("x")),
    "one": ((8, 8), P("x", "y")),
    "two": ((8, 8), P("y", "x")),
    "up": ((8, 12), P("x", "y")),
    "gate": ((8, 4), P(None, "x")),
    "kv": ((6, 16), P("y", "x")),
    "norm": ((10,), P()),
}
TURNED = {"h.q": P(None, "x", None, "y"), "wte": P(None, "x"), "fc": P("y", "x"), "conv": P(), "one": P("y")}
TURNED |= {"up": P(None, "x"), "gate": P("y"), "kv": P(None, ("x", "y"))}
GROUPS = ({"params": "norm", "lr": 0.02}, {"params": lambda name: name != "norm"})
MAKE = {
    "adamw": lambda binding: js.optim.adamw(lr=0.1, amsgrad=True, param_groups=GROUPS),
    "nadam": lambda binding: js.optim.nadam(lr=0.1),
    "adafactor": lambda binding: js.optim.adafactor(lr=0.1, binding=binding),
    "adam": lambda binding: optax.chain(optax.clip(1.0), optax.adam(0.1)),
}
PLAIN = {"adam": js.optim.adam(lr=0.1)}


def nested(flat):
    return {**{k: x for k, x in flat.items() if "." not in k}, "h": {p: flat[f"h.{p}"] for p in PATHS}}


PATHS = ("q", "k", "v", "out")
EMPTY = {path: np.empty(shape, "float32") for path, (shape, _) in LEAVES.items()}


def places(mesh, specs):
    """Abstract parameters on a mesh."""
    rows = {
        path: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, specs.get(path, spec)))
        for path, (shape, spec) in LEAVES.items()
    }
    return nested(rows)


def template(name, params, mesh):
    """An abstract state, each moment where its parameter lies, torch's arrays by their first axis."""
    opt, spots = jax.eval_shape(MAKE[name](BINDING.of(EMPTY)).init, params), js.tree.flat(params)

    def place(path, leaf):
        like = next((x for p, x in spots.items() if f".{path}".endswith(f".{p}")), None)
        if like is not None and like.shape == leaf.shape and name != "adafactor":
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding)
        rows = "." in path and leaf.ndim and leaf.shape[0] % mesh.shape["x"] == 0
        spot = NamedSharding(mesh, P("x") if rows else P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spot)

    return js.tree.unflat(opt, {path: place(path, leaf) for path, leaf in js.tree.flat(opt).items()})


class Counter:
    """An optimizer's dict whose arrays of any size are lazy, and count the bytes that are asked for."""

    def __init__(self, osd):
        self.asked = 0
        entries = {i: {k: self.lazy(x) for k, x in row.items()} for i, row in osd["state"].items()}
        self.osd = {**osd, "state": entries}

    def lazy(self, array):
        if not array.shape:
            return np.asarray(array)

        def part(box):
            found = np.asarray(array[box])
            self.asked += found.nbytes
            return found

        return from_parts(array.shape, array.dtype, part)


def held(opt):
    """The bytes of moments that the devices of this process hold, each part once."""
    rows = [leaf.addressable_shards for leaf in jax.tree.leaves(opt) if leaf.dtype == "float32"]
    rows = [row for row in rows if row[0].data.size > 3 or row[0].data.ndim > 1]  # no hyper-parameters
    return sum(sum({str(s.index): s.data.nbytes for s in row}.values()) for row in rows)


def check(found, whole):
    """Every shard is the part of the state that was loaded without a mesh."""
    rows = zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True)
    for leaf, expected in rows:
        assert len(leaf.sharding.device_set) == jax.device_count() and leaf.dtype == expected.dtype
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(expected[shard.index]).tobytes()


def loaded(name, like, osd, binding):
    counted = Counter(osd)
    found = js.optim.load_state_dict(like, counted.osd, binding, optimizer=PLAIN.get(name))
    return found, counted.asked


def main(folder):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices // 2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    binding = BINDING.of(EMPTY)
    weights = js.load(folder / "adamw.pt")["model"]
    params = js.load_state_dict(places(mesh, {}), weights, binding)
    for name in sys.argv[4:]:
        sources = {kind: js.load(folder / f"{name}.{kind}")["optimizer"] for kind in ("pt", "dcp")}
        arrays = js.load(folder / f"{name}.safetensors")
        split = {}
        for key, array in arrays.items():
            number, _, buffer = key.partition("/")
            split.setdefault(int(number), {})[buffer] = array
        sources["safetensors"] = {**sources["pt"], "state": split}
        local = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template(name, places(mesh, {}), mesh))
        whole = js.optim.load_state_dict(local, sources["pt"], binding, optimizer=PLAIN.get(name))
        for osd in sources.values():
            opt, asked = loaded(name, template(name, places(mesh, {}), mesh), osd, binding)
            check(opt, whole)
            norm = 20 if (name, devices) == ("adafactor", 4) else 40  # bytes; frozen, so filled here
            lacking = norm * {"adamw": 3, "nadam": 2, "adafactor": 1, "adam": 0}[name]
            assert asked == held(opt) - lacking, (name, asked, held(opt))
            assert devices == 8 or asked < 0.6 * sum(x.nbytes for x in jax.tree.leaves(whole))
        refused(local, template(name, places(mesh, {}), mesh), sources["pt"], binding, name)
        write_and_read(folder / f"{name}-{devices}", mesh, params, opt, whole, name, binding)
    print("all of it")


def refused(local, like, osd, binding, name):
    """Counts that no process has whole."""
    if name != "adamw" or jax.process_count() == 1:
        return
    (mesh,) = {leaf.sharding.mesh for leaf in jax.tree.leaves(like)}
    parts = jax.ShapeDtypeStruct(like.step.shape, "int32", sharding=NamedSharding(mesh, P("x")))
    try:
        js.optim.load_state_dict(replace(like, step=parts), osd, binding)
    except OptimizerError as error:
        assert "have the step counts whole on every process: NamedSharding(mesh, PartitionSpec())" in str(
            error
        )
    else:
        raise AssertionError("no process knows all counts")


def write_and_read(folder, mesh, params, opt, whole, name, binding):
    gathered, gather = [], _leaves._gather

    def counting(leaf, box):
        gathered.append(prod(span.stop - span.start for span in box))
        return gather(leaf, box)

    _leaves._gather = counting
    kept = {"opt_state": opt, "optimizer": PLAIN.get(name)}
    js.sharded.save(params, folder, binding, format="dcp", **kept)
    _leaves._gather = gather
    assert max(gathered, default=0) <= 1, "each moment is written where it lies"
    found = js.load(folder)
    assert isinstance(found["model"]["wte.weight"], LazyArray)
    like = template(name, places(mesh, TURNED), mesh)
    again, _ = loaded(name, like, found["optimizer"], binding)
    check(again, whole)
    if name == "adamw":
        resumed(name, params, again, binding)


def resumed(name, params, opt, binding):
    """A step goes on from there."""
    tx = MAKE[name](binding)
    grads = jax.tree.map(lambda p: p, params)
    moved = jax.jit(lambda p, g, o: tx.update(g, o, p)[0])(params, grads, opt)
    total = jax.jit(lambda tree: sum((x * x).sum() for x in jax.tree.leaves(tree)))(moved)
    assert 0 < float(total) < 1e6


if __name__ == "__main__":
    if sys.argv[2] != "0":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
    main(Path(sys.argv[1]))
    if sys.argv[2] != "0":
        multihost_utils.sync_global_devices("done")
