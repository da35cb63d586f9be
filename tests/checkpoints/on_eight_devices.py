"""Run on eight devices: save on one mesh, restore on others. `python on_eight_devices.py FOLDER`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js
from jaxstate.errors import CheckpointError

SPECS = {"kernel": P("x", "y"), "bias": P("y"), "embedding": P(("x", "y"))}


def mesh(x, y):
    return jax.make_mesh((x, y), ("x", "y"), devices=jax.devices()[: x * y])


class Net(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(64, 96, rngs=rngs)
        self.wte = nnx.Embed(24, 5, rngs=rngs)
        self.bn = nnx.BatchNorm(96, rngs=rngs)


def sharded(tree, places, make):
    """Each leaf of a tree where its name says."""

    def one(path, leaf):
        names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        name = next((n for n in names if n in SPECS), None)
        fits = name and leaf.ndim == len(SPECS[name]) or name == "embedding" and leaf.ndim
        return make(leaf, NamedSharding(places, SPECS[name] if fits else P()))

    return jax.tree_util.tree_map_with_path(one, tree)


def abstract(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def trained(places):
    net, tx = Net(nnx.Rngs(0)), js.optim.adam(lr=0.05)
    graphdef, state = nnx.split(net)
    opt = tx.init(nnx.state(net, nnx.Param))
    opt = jax.tree.map(
        lambda x: (
            x if x.ndim == 0 or x.dtype == jnp.int32 else x + jnp.sin(jnp.arange(x.size).reshape(x.shape))
        ),
        opt,
    )
    return graphdef, sharded(state, places, jax.device_put), sharded(opt, places, jax.device_put)


def same(left, right):
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (x.dtype, x.shape, np.asarray(x).tobytes()) == (y.dtype, y.shape, np.asarray(y).tobytes())


def main(folder):
    assert jax.device_count() == 8
    graphdef, state, opt = trained(mesh(4, 2))
    net = nnx.merge(graphdef, state)
    js.orbax.save(folder / "4x2", net, opt, step=3)
    expected = js.orbax.to_torch(folder / "4x2")
    for shape in ((2, 4), (8, 1), (1, 1), (4, 2)):
        places = mesh(*shape)
        template = nnx.merge(graphdef, sharded(state, places, abstract))
        found = js.orbax.restore(folder / "4x2", template, sharded(opt, places, abstract))
        same((nnx.state(found.model), found.opt_state), (state, opt))
        assert found.model.fc.kernel[...].sharding == NamedSharding(places, SPECS["kernel"])
        assert found.opt_state.buffers["exp_avg"].wte.embedding[...].sharding.mesh.shape == {
            "x": shape[0],
            "y": shape[1],
        }
        # And from there to a file, and through another save, whose shards are others.
        js.orbax.save(folder / f"{shape}", found.model, found.opt_state, step=3)
        again = js.orbax.to_torch(folder / f"{shape}")
        assert repr(again["optimizer"]["state"]) == repr(expected["optimizer"]["state"])
        # No template: as the leaves lay, on this mesh.
        whole = js.orbax.restore(folder / "4x2", sharding=places)
        kernel = whole.model["fc.kernel"]
        assert kernel.sharding == NamedSharding(places, SPECS["kernel"])
        assert np.array_equal(kernel, net.fc.kernel[...])
    one = js.orbax.restore(folder / "4x2", sharding=NamedSharding(mesh(8, 1), P()))
    assert one.model["bn.mean"].sharding.is_fully_replicated
    both = js.orbax.restore(
        folder / "4x2",
        sharding=lambda path, leaf: NamedSharding(mesh(2, 1), P("x") if path == "fc.kernel" else P()),
    )
    assert both.model["fc.kernel"].sharding.spec == P("x")
    half = sharded(
        state,
        mesh(2, 4),
        lambda leaf, s: jax.ShapeDtypeStruct(
            leaf.shape, "bfloat16" if leaf.dtype == jnp.float32 else leaf.dtype, sharding=s
        ),
    )
    cast = js.orbax.restore(folder / "4x2", nnx.merge(graphdef, half), cast=True).model.fc.kernel[...]
    assert cast.dtype == jnp.bfloat16 and cast.sharding.spec == SPECS["kernel"]
    assert np.array_equal(cast, np.asarray(net.fc.kernel[...]).astype("bfloat16"))
    refused(folder, jax.make_mesh((8,), ("z",)), "this mesh is {'z': 8}")
    refused(folder, mesh(1, 7), "this mesh is {'x': 1, 'y': 7}")
    flipped(folder, net)
    print("all of it")


def refused(folder, places, words):
    try:
        js.orbax.restore(folder / "4x2", sharding=places)
    except CheckpointError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)


def flipped(folder, net):
    """One shard's bytes, and the leaf is named whatever mesh reads it."""
    shard = net.fc.kernel[...].addressable_shards[3]
    needle = np.asarray(shard.data).tobytes()
    for file in (f for f in (folder / "4x2").rglob("*") if f.is_file()):
        data = file.read_bytes()
        if (at := data.find(needle)) >= 0:
            file.write_bytes(data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :])
            break
    else:
        raise AssertionError("these bytes are in no file")
    for sharding in (None, mesh(2, 4), mesh(8, 1), mesh(4, 2)):
        try:
            js.orbax.restore(folder / "4x2", sharding=sharding)
        except CheckpointError as error:
            assert "damaged: params: fc.kernel are not" in str(error), error
        else:
            raise AssertionError("nothing was noticed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
