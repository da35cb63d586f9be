"""One of two processes, of two devices each. `python on_two_processes.py FOLDER PORT INDEX`."""

import re
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js
from jaxstate.errors import CheckpointError

BINDING = js.Binding((js.Rule("fc.weight", "w", "i o -> o i"), js.Rule("fc.bias", "b", "o -> o")))
W = np.random.default_rng(0).normal(size=(64, 48)).astype("f")
B = np.arange(48, dtype="f")
SPECS = {"w": P("x"), "b": P()}


def filled(array, spec):
    """A global array, of which this process holds its part."""
    sharding = NamedSharding(jax.make_mesh((4,), ("x",)), spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def template(tree, specs):
    places = jax.make_mesh((2, 2), ("x", "y"))
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(places, specs[name]))
        for name, leaf in tree.items()
    }


def check(found, expected):
    for shard in found.addressable_shards:
        assert np.array_equal(shard.data, expected[shard.index])


def refused(words, call, *args):
    try:
        call(*args)
    except CheckpointError as error:
        assert re.search(words, str(error)), error
    else:
        raise AssertionError(f"nobody said: {words}")


def main(folder):
    assert jax.process_count() == 2 and jax.local_device_count() == 2
    model = {"w": filled(W, SPECS["w"]), "b": filled(B, SPECS["b"])}
    opt = {"m": filled(W + 1, P(None, "x")), "count": filled(np.int32(7), P())}
    rngs = {
        "key": multihost_utils.host_local_array_to_global_array(
            np.uint32([1, 2]), jax.make_mesh((4,), ("x",)), P()
        )
    }
    js.orbax.save(folder / "sync", model, opt, binding=BINDING, step=5, rngs=rngs, scheduler={"best": 0.5})
    with js.orbax.Checkpointer(folder / "steps", keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, model, opt, binding=BINDING, metrics={"loss": 1.0})
        checkpoints.wait()
        assert checkpoints.steps == [2]
    own = folder / "steps" if jax.process_index() == 0 else folder / "of process 1"
    refused("the processes do not see the same in .*; .* say shared=False", js.orbax.Checkpointer, own)
    template_of_w, binding = {"w": np.zeros(3)}, js.Binding((js.Rule("w", "w", "a -> a"),))
    alone = partial(js.orbax.from_torch, folder / "torch", {"w": np.ones(3)}, template_of_w, binding=binding)
    refused("from_torch is for one process; several load_state_dict into shards, and save", alone)
    # Other parts than were saved: no device holds what another one had.
    other = template(model, {"w": P("y", "x"), "b": P("x")})
    opt_other = template(opt, {"m": P(("y", "x")), "count": P()})
    for path in (folder / "sync", folder / "steps" / "2"):
        found = js.orbax.restore(path, other, opt_other)
        check(found.model["w"], W)
        check(found.model["b"], B)
        check(found.opt_state["m"], W + 1)
        check(found.opt_state["count"], np.int32(7))
    whole = js.orbax.restore(folder / "sync", sharding=jax.make_mesh((4,), ("x",)))
    assert whole.model["w"].sharding.spec == P("x") and whole.step == 5
    check(whole.model["w"], W)
    try:
        js.orbax.save(folder / "sync", model, binding=BINDING)
    except CheckpointError as error:
        assert "never written over" in str(error)
    try:
        js.orbax.save(folder / "local", model, {"count": jax.numpy.int32(7)}, binding=BINDING)
    except CheckpointError as error:
        assert "optimizer: count is on this process alone" in str(error)
    else:
        raise AssertionError("each process had its own")
    js.orbax.save(folder / "numpy", model, {"count": np.int64(2**40), "n": 3}, binding=BINDING)
    numpy = js.orbax.restore(folder / "numpy")
    assert numpy.opt_state == {"count": 2**40, "n": 3} and np.array_equal(numpy.model["w"], W)
    multihost_utils.sync_global_devices("before the bit flips")
    if jax.process_index() == 0:
        flip(folder / "sync", W[16:32].tobytes())
    multihost_utils.sync_global_devices("after the bit flipped")
    noticed = 0
    try:
        js.orbax.restore(folder / "sync", other)
    except CheckpointError as error:
        assert "damaged: params: w are not" in str(error), error
        noticed = 1
    assert multihost_utils.process_allgather(np.int32(noticed)).tolist() == [1, 1], (
        "both say so, or one goes on alone"
    )
    print("all of it")


def flip(folder, needle):
    for file in (f for f in folder.rglob("*") if f.is_file()):
        data = bytearray(file.read_bytes())
        if (at := bytes(data).find(needle)) >= 0:
            data[at + 9] ^= 4
            file.write_bytes(data)
            return
    raise AssertionError("these bytes are in no file")


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
    main(Path(sys.argv[1]))
