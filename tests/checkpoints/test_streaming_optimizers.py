"""torch's optimizers to Orbax and back an array at a time: what the direct way gives, in little memory."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray
from jaxstate.commands import main
from jaxstate.errors import CheckpointError, OptimizerError


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 5, (2, 3), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.fc = nnx.Linear(6, 6, rngs=rngs)


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, (2, 3))
        self.attention = torch.nn.MultiheadAttention(6, 2)
        self.fc = torch.nn.Linear(6, 6)


MAKE = {
    "adamw": (
        lambda ps: torch.optim.AdamW(ps, lr=0.1, amsgrad=True, weight_decay=0.3),
        lambda binding: js.optim.adamw(amsgrad=True),
    ),
    "sgd": (
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda binding: js.optim.sgd(momentum=0.5),
    ),
    "adafactor": (
        lambda ps: torch.optim.Adafactor(ps, lr=0.1),
        lambda binding: js.optim.adafactor(binding=binding),
    ),
    "optax": (
        lambda ps: torch.optim.Adam(ps, lr=0.1),
        lambda binding: optax.chain(optax.clip(1.0), optax.adam(0.1)),
    ),
    "lbfgs": (
        lambda ps: torch.optim.LBFGS(ps, lr=0.1, history_size=3, max_iter=2),
        lambda binding: js.optim.lbfgs(history_size=3, max_iter=2, lr=0.1),
    ),
}


def trained(make):
    """A torch file's content after some steps; the first bias is frozen, but for those who need them all."""
    torch.manual_seed(3)
    net = Torch()
    net.conv.bias.requires_grad_(make in ("optax", "lbfgs"))
    optimizer = MAKE[make][0](list(net.parameters()))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def closure():
        rng = torch.Generator().manual_seed(5)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=rng) if p.requires_grad else None
        return sum((p**2).sum() for p in net.parameters())

    for _ in range(3):
        closure()
        optimizer.step(closure if make == "lbfgs" else None)
        None if make in ("optax", "lbfgs") else scheduler.step()
    return {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def bits(value):
    if isinstance(value, dict):
        return {key: bits(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(bits, value))
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray | LazyArray):
        return value.dtype, value.shape, np.asarray(value).tobytes()
    return value


def record(path):
    return json.loads((path / "jaxstate" / "data.json").read_text())


@pytest.mark.parametrize("make", list(MAKE))
def test_it_is_the_checkpoint_of_the_direct_way_and_comes_back(tmp_path, make, capsys):
    torch.save(trained(make), tmp_path / "a.pt")
    theirs = torch.load(tmp_path / "a.pt")
    ckpt = js.load(tmp_path / "a.pt")
    net = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    binding = js.bind(net, like=ckpt["model"])
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    template = jax.eval_shape(MAKE[make][1](binding).init, params)
    optimizer = js.optim.adam(lr=0.1) if make == "optax" else None
    kept = {"scheduler": ckpt["scheduler"], "step": 3, "extra": {"epoch": 2}, "binding": binding}
    js.orbax.from_torch(
        tmp_path / "ours",
        ckpt["model"],
        net,
        template,
        osd=ckpt["optimizer"],
        optimizer=optimizer,
        rngs={"noise": jax.random.key(7)},
        memory=100,
        **kept,
    )
    opt = js.optim.load_state_dict(template, ckpt["optimizer"], binding, optimizer=optimizer, step=3)
    model = js.load_state_dict(net, ckpt["model"], binding)
    js.orbax.save(tmp_path / "direct", model, opt, rngs={"noise": jax.random.key(7)}, **kept)
    assert record(tmp_path / "ours") == record(tmp_path / "direct")
    ours, direct = (js.orbax.restore(tmp_path / x, net, template) for x in ("ours", "direct"))
    for one, other in zip(*(jax.tree.leaves(x.opt_state) for x in (ours, direct)), strict=True):
        assert type(one) is type(other) and bits(np.asarray(one)) == bits(np.asarray(other))
    lazy = js.orbax.to_torch(tmp_path / "ours", optimizer=optimizer, lazy=True)
    assert bits(lazy) == bits(js.orbax.to_torch(tmp_path / "direct", optimizer=optimizer))
    if make == "optax":
        js.save(lazy, tmp_path / "b.pt")
    else:
        assert isinstance(lazy["model"]["fc.weight"], LazyArray)
        assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "b.pt")]) == 0
    again = torch.load(tmp_path / "b.pt")
    assert bits(again["model"]) == bits(theirs["model"])
    assert bits(again["optimizer"]["state"]) == bits(theirs["optimizer"]["state"])
    # optax has no place for what a scheduler writes into a group.
    left = {"initial_lr"} if make == "optax" else set()
    groups = [{k: x for k, x in g.items() if k not in left} for g in theirs["optimizer"]["param_groups"]]
    assert again["optimizer"]["param_groups"] == groups
    assert again["scheduler"] == theirs["scheduler"]
    resumed = MAKE[make][0]([torch.nn.Parameter(x.clone()) for x in again["model"].values()])
    resumed.load_state_dict(again["optimizer"])


def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path):
    binding = js.Binding((js.Rule("w", "w", "i o -> o i"),))
    params, tx = {"w": jax.ShapeDtypeStruct((3, 2), "float32")}, js.optim.adam(amsgrad=True)
    model, opt = {"w": np.ones((2, 3), "float32")}, jax.eval_shape(tx.init, params)
    osd = js.optim.state_dict(js.optim.adam().init({"w": np.ones((3, 2), "float32")}), binding)
    with pytest.raises(OptimizerError, match=r"js.optim.adam\("):
        js.orbax.from_torch(tmp_path / "c", model, params, opt, osd=osd, binding=binding)
    for rest in ({"osd": osd}, {"opt_state": opt}):
        with pytest.raises(CheckpointError, match="pass both of them, or neither"):
            js.orbax.from_torch(tmp_path / "c", model, params, binding=binding, **rest)
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_of_a_moment_is_noticed_when_it_is_read(tmp_path):
    binding = js.Binding((js.Rule("w", "w", "i o -> o i"), js.Rule("b", "b", "a -> a")))
    params = {"w": np.ones((60, 70), "float32"), "b": np.full(9, 2, "float32")}
    tx = js.optim.adam()
    _, opt = tx.update(jax.tree.map(lambda p: p * np.float32(0.123), params), tx.init(params), params)
    js.orbax.save(tmp_path / "c", params, opt, binding=binding)
    needle = np.asarray(opt.buffers["exp_avg_sq"]["w"]).tobytes()[:400]
    (file,) = [f for f in (tmp_path / "c").rglob("*") if f.is_file() and needle in f.read_bytes()]
    data = bytearray(file.read_bytes())
    data[data.index(needle) + 3] ^= 2
    file.write_bytes(data)
    entries = js.orbax.to_torch(tmp_path / "c", lazy=True)["optimizer"]["state"]
    assert np.asarray(entries[0]["exp_avg"]).shape == (70, 60)
    with pytest.raises(CheckpointError, match="damaged: optimizer: buffers.exp_avg_sq.w are not the values"):
        entries[0]["exp_avg_sq"][:2]


MEASURED = """
from collections import OrderedDict
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import jax, numpy as np
import jaxstate as js
from memory import Peak
from jaxstate.commands import main
from orbax.checkpoint import v1

folder, count, side = Path(sys.argv[1]), int(sys.argv[2]), 2048
rules = [js.Rule("h.{l}.a", "a", "l i o -> o i", l=range(count))]
rules += [js.Rule(f"b.{n}", f"b{n}", "i (n k) -> (k n) i", n=32) for n in range(count)]
leaf = jax.ShapeDtypeStruct((side, side), "float32")
stack = jax.ShapeDtypeStruct((count, side, side), "float32")
template = {"a": stack, **{f"b{n}": leaf for n in range(count)}}
binding = js.Binding(rules).of(template)
row = np.arange(side, dtype="f4")
lazy = lambda n: js.LazyArray((side, side), "f4", lambda: row * 3 + n + 100 * row[:, None])
moments = lambda n: {"step": np.array(7, 'f4'), "exp_avg": lazy(n + 1), "exp_avg_sq": lazy(n + 2)}
tx = js.optim.adamw(lr=0.1)
group = {**js.optim.param_groups(tx.init({}))[0], "params": list(range(2 * count))}

def content(keys):
    osd = {"state": {n: moments(9 * n) for n in range(len(keys))}, "param_groups": [group]}
    model = OrderedDict((k, lazy(9 * n + 3)) for n, k in enumerate(keys))
    return {"model": model, "optimizer": osd}

def there(source, target, template, binding):
    found, opt = js.load(source), jax.eval_shape(tx.init, template)
    js.orbax.from_torch(target, found["model"], template, opt, osd=found["optimizer"], binding=binding)

js.save(content(list(binding.shapes)), folder / "a.pt")
warm = js.Binding([js.Rule("w", "w", "i o -> o i")])
group = {**group, "params": [0]}
js.save(content(["w"]), folder / "w.pt")
there(folder / "w.pt", folder / "warm", {"w": leaf}, warm)
main(["convert", str(folder / "warm"), str(folder / "v.pt")])
with Peak() as first:
    there(folder / "a.pt", folder / "c", template, binding)
with Peak() as back:
    main(["convert", str(folder / "c"), str(folder / "b.pt")])
one, other = (jax.tree.flatten_with_path(js.load(folder / name)) for name in ("a.pt", "b.pt"))
assert one[1] == other[1] and len(one[0]) > 8 * count
for (_, x), (_, y) in zip(one[0], other[0]):
    assert type(x) is type(y) and np.array_equal(x, y), (x, y)
print("extra MiB:", first.extra >> 20, back.extra >> 20)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_training(tmp_path):
    """288 MiB in leaves of 16 and three of 48, stacked: there within 64, and back within two arrays of 16."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    command = [sys.executable, "-c", MEASURED, str(tmp_path), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    there, back = map(int, re.findall(r"-?\d+", done.stdout.splitlines()[-1]))
    assert there < 64 and back < 40, done.stdout
