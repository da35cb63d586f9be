"""One of two processes, of two devices each: `python loads_and_saves.py FOLDER PORT NUMBER`.

A model is loaded from torch's files, and every byte counted that a process asks for; it is written back, and
loaded again from what the processes have written.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray, from_parts
from jaxstate.errors import BindingError, FileError, StateDictError
from jaxstate.sharded import _leaves

BINDING = js.Binding(
    (
        js.Rule("wte.weight", "wte", "v d -> v d"),
        js.Rule("h.{l}.qkv", "h.{p}", "l d n k -> (p n k) d", p=("q", "k", "v"), l=range(3)),
        js.Rule("h.{l}.out", "h.out", "l n k d -> d (n k)", l=range(3), n=4),
        js.Rule("conv", "conv", "h w i o -> i o ~h ~w"),
        js.Rule("fc", "fc", "(h w c) o -> o (c h w)", h=2, w=5),
        js.Rule("crumbs", "crumbs", "(a b) -> (b a)", a=4),
        js.Sum((js.Rule("b_ih", "b", "k -> k"), js.Rule("b_hh", "b", "k -> k"))),
        js.Rule("none", "none", "a b -> b a"),
        js.Rule("norm", "norm", "a -> a"),
        js.Rule("scale", "scale", " -> ", buffer=True),
        js.TorchOnly("seen", np.int64(0), counter=True),
        js.JaxOnly("zero", 0.0),
        js.Tied("head.weight", "wte.weight"),
    )
)
LEAVES = {
    "wte": ((32, 8), P("x", None)),
    "h.q": ((3, 8, 4, 6), P(None, None, "x", None)),
    "h.k": ((3, 8, 4, 6), P(None, "y", "x", None)),
    "h.v": ((3, 8, 4, 6), P(None, ("x", "y"))),
    "h.out": ((3, 4, 6, 8), P(None, "x", None, "y")),
    "conv": ((3, 6, 4, 10), P(None, "x", None, "y")),
    "fc": ((40, 16), P("x")),
    "crumbs": ((4096,), P(("x", "y"))),
    "b": ((12,), P("x")),
    "none": ((0, 4), P(None, "x")),
    "norm": ((10,), P()),
    "scale": ((), P()),
    "zero": ((4,), P("y")),
}
LARGE = ("wte", "h.q", "h.k", "h.v", "h.out", "conv", "fc")


def template(mesh, specs=None):
    rows = {
        path: jax.ShapeDtypeStruct(
            shape, "float32", sharding=NamedSharding(mesh, (specs or {}).get(path, spec))
        )
        for path, (shape, spec) in LEAVES.items()
    }
    layers = {path[2:]: rows.pop(path) for path in list(rows) if path.startswith("h.")}
    return {**rows, "h": layers}


def torch_side():
    """A state_dict, the leaves that it makes, and its binding."""
    empty = {path: np.empty(shape, "float32") for path, (shape, _) in LEAVES.items()}
    binding, rng = BINDING.of(empty), np.random.default_rng(3)
    sd = {key: rng.standard_normal(shape, np.float32) for key, shape in binding.shapes.items()}
    sd |= {"head.weight": sd["wte.weight"], "seen": np.array(2**40, np.int64)}
    return sd, binding.leaves(sd), binding.like(sd)


class Counted(dict):
    """A state_dict of lazy arrays that counts, by key, the bytes that are asked for."""

    def __init__(self, arrays):
        self.bytes = dict.fromkeys(arrays, 0)
        super().__init__({key: self.lazy(key, array) for key, array in arrays.items()})

    def lazy(self, key, array):
        def part(box):
            found = np.asarray(array[box])
            self.bytes[key] += found.nbytes
            return found

        return from_parts(array.shape, array.dtype, part)


def share(leaf):
    """The bytes of a leaf that the devices of this process hold, each part once."""
    return sum({str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}.values())


def check_loaded(model, leaves):
    """Every shard, and a sum over all processes."""
    found = js.tree.flat(model)
    for path, leaf in leaves.items():
        for shard in found[path].addressable_shards:
            assert np.array_equal(shard.data, leaf[shard.index]), path
    total = jax.jit(lambda tree: sum((x * x).sum() for x in jax.tree.leaves(tree)))(found)
    expected = sum(float((leaf.astype("f8") ** 2).sum()) for leaf in leaves.values())
    assert abs(float(total) - expected) < 1e-4 * expected
    return found


def load_counted(found, places, binding, leaves):
    counted = Counted(found)
    model = check_loaded(js.load_state_dict(places, counted, binding), leaves)
    asked, held = sum(counted.bytes.values()), sum(map(share, model.values()))
    # A tied array is read under both its keys, both terms of a sum are read, and crumbs with what is between
    # them, for each device; everything else is read once, and nothing but this process's own.
    surplus = share(model["wte"]) + share(model["b"]) + 8 + 2 * LEAVES["crumbs"][0][0] * 4
    assert asked <= held + surplus, (asked, held, surplus)
    keys = [key for key in found if key.split(".")[0] in ("h", "conv", "fc")]
    assert sum(counted.bytes[key] for key in keys) == sum(
        share(model[path]) for path in LARGE if path != "wte"
    )
    return model


def main(folder):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sd, leaves, binding = torch_side()
    if jax.process_index() == 0:
        js.save(sd, folder / "net.pt")
        js.save(sd, folder / "net.safetensors")
        js.save(sd, folder / "one.dcp", format="dcp")
    multihost_utils.sync_global_devices("files are there")
    for name in ("net.pt", "net.safetensors", "one.dcp"):
        model = load_counted(js.load(folder / name), template(mesh), binding, leaves)
    plain = js.load_state_dict(template(mesh), js.load(folder / "net.pt"), binding)
    total = sum(map(share, model.values()))
    # Devices that hold the same may have been given the same memory; none takes it for its own.
    donated = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)(model)
    check_loaded(donated, {path: leaf + leaf for path, leaf in leaves.items()})
    write_and_read(folder, mesh, plain, sd, leaves, binding)
    refusals(folder, mesh, plain, sd, binding)
    abstract_module(mesh)
    print("all of it", total)


def write_and_read(folder, mesh, model, sd, leaves, binding):
    gathered = []
    gather = _leaves._gather

    def counting(leaf, box):
        gathered.append(int(np.prod([span.stop - span.start for span in box], dtype=int)) * 4)
        return gather(leaf, box)

    _leaves._gather = counting
    js.sharded.save(model, folder / "ours.dcp", binding, format="dcp")
    assert sum(gathered) < 4 * (4096 + 2 * 12 + 30), "no more than crumbs, and what is no bijection"
    own = (folder / "ours.dcp" / f"__{jax.process_index()}_0.distcp").stat().st_size
    del gathered[:]
    js.sharded.save(model, folder / "ours", binding)
    assert max(gathered) <= max(array.nbytes for array in sd.values())
    _leaves._gather = gather
    for name in ("ours.dcp", "ours"):
        found = js.load(folder / name)
        assert set(found) == set(sd)
        for key in set(sd) - {"b_ih", "b_hh"}:
            array = np.asarray(found[key])
            assert (array.dtype, array.tobytes()) == (sd[key].dtype, sd[key].tobytes()), key
        assert np.array_equal(np.asarray(found["b_ih"]) + np.asarray(found["b_hh"]), leaves["b"])
    parts = js.load(folder / "ours.dcp")
    assert isinstance(parts["h.1.qkv"], LazyArray) and isinstance(parts["wte.weight"], LazyArray)
    turned = {"h.q": P(None, "x", None, "y"), "wte": P(None, "x"), "fc": P("y", "x"), "conv": P()}
    load_counted(parts, template(mesh, turned), binding, leaves)
    total = sum(array.nbytes for array in sd.values())
    assert own < 0.75 * total + 2000 * 60, (own, total)


def refusals(folder, mesh, model, sd, binding):
    for path in (folder / "ours", folder / "net.pt"):
        try:
            js.sharded.save(model, path, binding)
        except FileError as error:
            assert "exists; several processes write into a new folder" in str(error)
        else:
            raise AssertionError(path)
    differing = {**sd, "head.weight": sd["wte.weight"].copy()}
    differing["head.weight"][20] += 1  # a row of the second process
    try:
        js.load_state_dict(template(mesh), differing, binding)
    except StateDictError as error:
        assert '"head.weight" and "wte.weight" are one array' in str(error)
        told = "process 1: StateDictError: " in str(error)
        assert told == (jax.process_index() == 0), error
    else:
        raise AssertionError("the other process has not said so")
    lacking = {key: array for key, array in sd.items() if key != "norm"}
    try:
        js.load_state_dict(model, lacking, binding, strict=False)
    except StateDictError as error:
        assert "lies on several processes; pass only=" in str(error)
    else:
        raise AssertionError("its values are elsewhere")
    kept = js.load_state_dict(model, lacking, binding, only=["h.*", "conv"])
    assert kept["norm"] is model["norm"]
    wrong = {**differing, "head.weight": sd["wte.weight"][:-1]}
    try:
        js.load_state_dict(template(mesh), wrong, binding)
    except StateDictError as error:
        assert "size mismatch for head.weight" in str(error)
    else:
        raise AssertionError("another shape")


def abstract_module(mesh):
    """A module whose shardings are annotations, made abstract inside of the mesh."""
    split = nnx.with_partitioning(nnx.initializers.zeros_init(), (None, "x"))
    sd = {"weight": np.arange(24, dtype="f4").reshape(6, 4), "bias": np.arange(6, dtype="f4")}
    with jax.set_mesh(mesh):
        net = nnx.eval_shape(lambda: nnx.Linear(4, 6, kernel_init=split, rngs=nnx.Rngs(0)))
        kernel = js.load_state_dict(net, sd).kernel[...]
    assert kernel.sharding == NamedSharding(mesh, P(None, "x")) and not kernel.is_fully_addressable
    assert all(np.array_equal(s.data, sd["weight"].T[s.index]) for s in kernel.addressable_shards)
    try:
        js.load_state_dict(net, sd)
    except BindingError as error:
        assert "with jax.set_mesh(mesh)" in str(error)
    else:
        raise AssertionError("no mesh is set")


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
    main(Path(sys.argv[1]))
