"""One of two processes, of two devices each: `python on_two_hosts.py FOLDER PORT NUMBER`.

Each has a folder that the other never looks into. What fails in one of them is told to both, within seconds.
"""

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstate as js
import jaxstate.together
from jaxstate.errors import BindingError, CheckpointError, FileError, JaxstateError, StateDictError
from jaxstate.together import alike, exchanged, together

BINDING = js.Binding(
    (
        js.Rule("wte.weight", "wte", "v d -> v d"),
        js.Rule("h.{l}.qkv", "h.{p}", "l d n k -> (p n k) d", p=("q", "k", "v"), l=range(2)),
        js.Rule("crumbs", "crumbs", "(a b) -> (b a)", a=4),
        js.Rule("norm", "norm", "a -> a"),
        js.Rule("none", "none", "a b -> b a"),
        js.Tied("head.weight", "wte.weight"),
    )
)
LEAVES = {
    "wte": ((32, 8), P("x", None)),
    "h.q": ((2, 8, 4, 6), P(None, None, "x", None)),
    "h.k": ((2, 8, 4, 6), P(None, "y", "x", None)),
    "h.v": ((2, 8, 4, 6), P(None, ("x", "y"))),
    "crumbs": ((2048,), P(("x", "y"))),
    "norm": ((10,), P()),
    "none": ((0, 4), P(None, "x")),
}


def me():
    return jax.process_index()


def mesh():
    """The second axis is within a host: half of what lies along it, the other host has too."""
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def template(specs=None):
    flat = {
        path: jax.ShapeDtypeStruct(
            shape, "float32", sharding=NamedSharding(mesh(), (specs or {}).get(path, spec))
        )
        for path, (shape, spec) in LEAVES.items()
    }
    return js.tree.unflat({"h": {"q": 0, "k": 0, "v": 0}, **{p: 0 for p in flat if p[1] != "."}}, flat)


def torch_side():
    empty = {path: np.empty(shape, "float32") for path, (shape, _) in LEAVES.items()}
    binding, rng = BINDING.of(empty), np.random.default_rng(5)
    sd = {key: rng.standard_normal(shape, np.float32) for key, shape in binding.shapes.items()}
    sd |= {"head.weight": sd["wte.weight"]}
    return sd, binding.leaves(sd), binding


def check(model, leaves):
    for path, leaf in js.tree.flat(model).items():
        for shard in leaf.addressable_shards:
            assert np.array_equal(shard.data, leaves[path][shard.index]), path


def fails(kind, call, *words, seconds=20.0):
    """In both processes, soon, with these words."""
    start = time.monotonic()
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"it went well in process {me()}")
    assert time.monotonic() - start < seconds, "it waited"


def steps():
    """What the others are told."""
    assert exchanged("speaking", f"I am {me()}") == {0: "I am 0", 1: "I am 1"}
    assert exchanged("speaking to oneself", "alone", [me()]) == {me(): "alone"}
    fails(FileError, failing, *(["too bad"] if me() else ["a step: ", "process 1: ValueError: too bad"]))
    fails(
        JaxstateError,
        lambda: exchanged(f"step {me()}", ""),
        "process 0 is at: step 0; process 1 is at: step 1",
    )
    fails(BindingError, lambda: alike("a word", str(me()), BindingError), "process 0: 0", "process 1: 1")
    alike("a word", "the same", BindingError)


def one_that_does_not_come():
    """After this the processes are out of step, so it comes last."""
    if me() == 0:
        jaxstate.together.PATIENCE = 1
        fails(JaxstateError, lambda: exchanged("here", ""), "here: process 1 did not come within 1 seconds")
    else:
        time.sleep(2)


def failing():
    try:
        with together("a step", FileError):
            if me():
                raise ValueError("too bad")
    except ValueError as error:
        raise FileError(str(error)) from error


def own_folders(folder, sd, leaves, binding):
    """DCP, in which each host writes what its devices hold and reads it again."""
    model = js.load_state_dict(template(), sd, binding)
    js.sharded.save(model, folder / "own", binding, format="dcp", shared=False)
    names = sorted(path.name for path in (folder / "own").iterdir())
    assert names == [f"__{me()}.metadata", f"__{me()}_0.distcp"]
    mine = js.load(folder / "own")
    check(js.load_state_dict(template(), mine, binding), leaves)
    assert np.array_equal(np.asarray(mine["norm"]), sd["norm"]), "every host has a replica"
    rows = slice(0, 16) if me() else slice(16, 32)
    try:
        mine["wte.weight"][rows]
    except FileError as error:
        assert f"the part [{rows.start}:{rows.stop}, 0:8] of a tensor of shape (32, 8) is not in" in str(
            error
        )
    else:
        raise AssertionError("the other host has these")
    # Other shards than were saved: what lies along x is on the other host.
    turned = template({"wte": P(None, "x")})
    fails(JaxstateError, lambda: js.load_state_dict(turned, mine, binding), "is not in these folders")
    within = template({"h.v": P(None, "x"), "wte": P(("x", "y"), None)})
    check(js.load_state_dict(within, mine, binding), leaves)
    fails(
        FileError,
        lambda: js.sharded.save(model, folder / "own", binding, format="dcp", shared=False),
        "exists",
    )
    js.sharded.save(model, folder / "again", binding, format="dcp", shared=False)
    fails(
        FileError,
        lambda: js.sharded.save(model, folder / "st", binding, shared=False),
        'format="dcp", shared=False',
    )


def one_that_fails(folder, shared, sd, binding):
    """Before a collective and in the middle of many."""
    model = js.load_state_dict(template(), sd, binding)
    for format in ("dcp", "safetensors"):
        room = shared / f"full.{format}"
        with no_room(me() == 1):
            fails(
                FileError,
                lambda room=room, format=format: js.sharded.save(model, room, binding, format=format),
                "File too large" if me() else "process 1: FileError: ",
            )
        exchanged("looking", "")
        assert not room.exists(), "what was begun is gone"
    with no_room(me() == 0):
        fails(
            FileError,
            lambda: js.sharded.save(model, folder / "full", binding, format="dcp", shared=False),
            "process 0: FileError: " if me() else "File too large",
        )
    assert not (folder / "full").exists()
    js.sharded.save(model, shared / "room", binding, format="dcp")
    check(js.load_state_dict(template(), js.load(shared / "room"), binding), binding.leaves(sd))
    broken = {**sd, "norm": sd["norm"][: 10 - me()]}
    fails(
        StateDictError,
        lambda: js.load_state_dict(template(), broken, binding),
        "size mismatch for norm",
        *([] if me() else ["process 1: StateDictError"]),
    )
    other = {**js.tree.flat(model)}
    if me():
        other["norm"] = np.zeros(11, "f")
    fails(
        BindingError,
        lambda: js.sharded.save(other, shared / "differ", BINDING, format="dcp"),
        "the processes differ",
    )


TRAINED = js.Binding((js.Rule("fc.weight", "w", "i o -> o i"), js.Rule("norm", "b", "o -> o")))
W = np.random.default_rng(0).normal(size=(64, 48)).astype("f")
OWN = Path("/proc/self/cwd")  # one name in both processes, and another folder in each


def laid(array, spec):
    sharding = NamedSharding(mesh(), spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def training(step=0):
    model = {"w": laid(W + step, P("x", "y")), "b": laid(W[0] + step, P())}
    opt = {
        "m": laid(W * 2, P(("y", "x"))),
        "count": np.int64(2**40 + step),
        "lr": 0.25,
        "none": np.zeros((0, 3)),
    }
    return model, opt


def abstract(tree):
    def of(leaf):
        arrays = isinstance(leaf, jax.Array)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) if arrays else leaf

    return jax.tree.map(of, tree)


def check_training(found, step=0):
    model, opt = training(step)
    pairs = [(found.model["w"], model["w"]), (found.model["b"], model["b"]), (found.opt_state["m"], opt["m"])]
    for new, old in pairs:
        assert new.sharding == old.sharding
        for there, here in zip(new.addressable_shards, old.addressable_shards, strict=True):
            assert np.array_equal(there.data, here.data)
    assert found.opt_state["count"] == opt["count"] and found.opt_state["lr"] == 0.25


def orbax_folders(folder):
    """Orbax, in a folder of each host's own: at once, while training goes on, and damaged."""
    model, opt = training()
    js.orbax.save(OWN / "one", model, opt, binding=TRAINED, step=5, shared=False, extra={"epoch": 2})
    assert (folder / "one" / "params" / f"ocdbt.process_{me()}").is_dir(), "each wrote its own"
    found = js.orbax.restore(folder / "one", abstract(model), abstract(opt))
    check_training(found)
    assert (found.step, found.extra) == (5, {"epoch": 2})
    within = {
        **abstract(model),
        "w": jax.ShapeDtypeStruct(W.shape, "float32", sharding=laid(W, P("x")).sharding),
    }
    wide = js.orbax.restore(folder / "one", within).model["w"]
    assert all(np.array_equal(shard.data, W[shard.index]) for shard in wide.addressable_shards)
    other = {**within, "w": jax.ShapeDtypeStruct(W.shape, "float32", sharding=laid(W, P("y")).sharding)}
    fails(
        CheckpointError,
        lambda: js.orbax.restore(folder / "one", other),
        "lie on other hosts",
        "params: w[",
    )
    fails(CheckpointError, lambda: js.orbax.restore(folder / "one"), "params: w[[0, 64], [0, 48]]")
    fails(
        CheckpointError,
        lambda: js.orbax.to_torch(folder / "one"),
        "one process of several has kept for itself",
    )
    fails(CheckpointError, lambda: js.orbax.save(OWN / "one", model, binding=TRAINED, shared=False), "exists")
    fails(
        CheckpointError,
        lambda: js.orbax.save(folder / "names", model, binding=TRAINED, shared=False),
        "one name in all processes",
    )
    mine = {"w": W[0] + me()}
    fails(
        CheckpointError,
        lambda: js.orbax.save(OWN / "differ", {"b": model["b"], **mine}, binding=FLAT, shared=False),
        *(
            ["params/w this process has other values than another"]
            if me()
            else ["process 1: CheckpointError"]
        ),
    )
    if me():
        flip(folder / "one", (W[32:, :24]).tobytes()[:64])
    fails(
        CheckpointError,
        lambda: js.orbax.restore(folder / "one", abstract(model)),
        "is damaged: params: w are not",
    )


def orbax_steps(folder):
    """A training that saves while it goes on, and resumes."""
    with js.orbax.Checkpointer(OWN / "steps", keep=2, keep_every=3, shared=False) as checkpoints:
        for step in range(1, 6):
            model, opt = training(step)
            checkpoints.save(step, model, opt, binding=TRAINED, metrics={"loss": 1 / step})
        checkpoints.wait()
        assert checkpoints.steps == [3, 4, 5] and checkpoints.metrics[4] == {"loss": 0.25}
        check_training(checkpoints.restore(abstract(model), abstract(opt)), 5)
    assert sorted(path.name for path in (folder / "steps").iterdir()) == ["3", "4", "5"]
    if me():
        import shutil

        shutil.rmtree(folder / "steps" / "5")
    exchanged("one disk has lost a step", "")
    with js.orbax.Checkpointer(OWN / "steps", shared=False) as checkpoints:
        assert checkpoints.steps == [3, 4] and checkpoints.latest == 4
        check_training(checkpoints.restore(abstract(model), abstract(opt)), 4)
        model, opt = training(50)
        checkpoints.save(5, model, opt, binding=TRAINED)
        checkpoints.wait()
        assert checkpoints.steps == [3, 4, 5] and checkpoints.metrics == {
            3: {"loss": 1 / 3},
            4: {"loss": 0.25},
            5: {},
        }
        check_training(checkpoints.restore(abstract(model), abstract(opt)), 50)
        with no_room(me() == 1):
            checkpoints.save(6, model, opt, binding=TRAINED)
            fails(
                CheckpointError,
                checkpoints.wait,
                *([] if me() else ["process 1: CheckpointError: step 6 was not"]),
            )
        assert checkpoints.steps == [3, 4, 5] and not (folder / "steps" / "6").exists()
        checkpoints.save(6, model, opt, binding=TRAINED)
        checkpoints.wait()
        assert checkpoints.latest == 6


def orbax_that_fails(shared):
    """One checkpoint of both, of which one cannot write its part."""
    model, opt = training()
    for number in range(2):
        told = "rror" if me() == number else f"process {number}: CheckpointError: "
        with no_room(me() == number):
            fails(CheckpointError, lambda: js.orbax.save(shared / "full", model, opt, binding=TRAINED), told)
            exchanged("looking", "")
            assert not list(shared.glob("full*")), "what was begun is gone"
            with js.orbax.Checkpointer(shared / f"steps{number}") as checkpoints:
                checkpoints.save(1, model, opt, binding=TRAINED)
                fails(CheckpointError, checkpoints.wait, told)
                assert checkpoints.steps == []
    js.orbax.save(shared / "orbax", model, opt, binding=TRAINED, step=3)
    check_training(js.orbax.restore(shared / "orbax", abstract(model), abstract(opt)))
    with js.orbax.Checkpointer(shared / "steps0") as checkpoints:
        checkpoints.save(1, model, opt, binding=TRAINED)
        checkpoints.wait()
        check_training(checkpoints.restore(abstract(model), abstract(opt)))
    gone = shared / ("orbax" if me() else "elsewhere")
    fails(
        CheckpointError,
        lambda: js.orbax.restore(gone, abstract(model)),
        *([] if me() == 0 else ["process 0: "]),
    )
    wrong = {**model, "b": np.array(["text"])} if me() else model
    fails(CheckpointError, lambda: js.orbax.save(shared / "text", wrong, binding=TRAINED))
    step = 1 if me() else 7
    with js.orbax.Checkpointer(shared / "steps0") as checkpoints:
        fails(CheckpointError, lambda: checkpoints.save(step, model, binding=TRAINED))


FLAT = js.Binding((js.Rule("w", "w", "a -> a"), js.Rule("b", "b", "a -> a")))


def flip(folder, needle):
    for file in (f for f in folder.rglob("*") if f.is_file()):
        data = bytearray(file.read_bytes())
        if (at := bytes(data).find(needle)) >= 0:
            data[at + 9] ^= 4
            file.write_bytes(data)
            return
    raise AssertionError("these bytes are in no file")


class no_room:
    """No file of this process may be longer than this, for a while."""

    def __init__(self, here):
        self.here = here

    def __enter__(self):
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.here:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self.before[1]))

    def __exit__(self, *rest):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def main(root):
    folder = root / f"host{me()}"
    folder.mkdir()
    os.chdir(folder)
    sd, leaves, binding = torch_side()
    steps()
    own_folders(folder, sd, leaves, binding)
    one_that_fails(folder, root / "shared", sd, binding)
    orbax_folders(folder)
    orbax_steps(folder)
    orbax_that_fails(root / "shared")
    one_that_does_not_come()
    if me() == 0:
        js.save(sd, root / "expected.pt")
    print("all of it")


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[3]))
    main(Path(sys.argv[1]))
