"""Steps of every optimizer on eight devices and on one, in a process of its own: JAX counts devices once."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse import BCOO
from jax.sharding import NamedSharding, PartitionSpec

from jaxstate import optim

SPECS = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("x"), "free": PartitionSpec()}
SHAPES = {"w": (8, 6), "b": (4,), "free": (3,)}

MAKE = {
    "adadelta": lambda: optim.adadelta(lr=3.0, rho=0.83, eps=1e-3, weight_decay=0.07),
    "adafactor": lambda: optim.adafactor(lr=0.05, weight_decay=0.07),
    "adagrad": lambda: optim.adagrad(lr=0.05, lr_decay=0.13),
    "adam": lambda: optim.adam(lr=0.05, betas=(0.83, 0.97), amsgrad=True),
    "adamax": lambda: optim.adamax(lr=0.05, betas=(0.83, 0.97)),
    "adamw": lambda: optim.adamw(lr=0.05, weight_decay=0.07),
    "asgd": lambda: optim.asgd(lr=0.05, lambd=0.2, t0=1),
    "lbfgs": lambda: optim.lbfgs(lr=0.5, max_iter=2, history_size=2),
    "muon": lambda: optim.muon(lr=0.05),
    "nadam": lambda: optim.nadam(lr=0.05, weight_decay=0.07),
    "radam": lambda: optim.radam(lr=0.05, betas=(0.83, 0.6)),
    "rmsprop": lambda: optim.rmsprop(lr=0.05, momentum=0.7, centered=True),
    "rprop": lambda: optim.rprop(lr=0.05),
    "sgd": lambda: optim.sgd(lr=0.05, momentum=0.9, nesterov=True),
    "sparse_adam": lambda: optim.sparse_adam(lr=0.05),
}


def leaves(name, t):
    """Values for the parameters that the optimizer takes, other ones for every t."""
    shapes = {key: SHAPES[key] for key in (("w",) if name in ("muon", "sparse_adam") else SHAPES)}
    return {
        key: jnp.sin(7.0 * t + np.arange(np.prod(s), dtype=np.float32)).reshape(s)
        for key, s in shapes.items()
    }


def slopes(name, t):
    grads = leaves(name, t)
    ids = jnp.array([[5], [1], [5]])
    return {"w": BCOO((grads["w"][:3], ids), shape=SHAPES["w"])} if name == "sparse_adam" else grads


@jax.value_and_grad
def closure(params):
    """A loss for the optimizer that asks for it where it likes."""
    return sum(jnp.sum((p - 0.3) ** 4) for p in params.values())


def steps(name, place):
    """The parameters and the state after three steps, of parameters that lie where `place` puts them."""
    tx = MAKE[name]()

    @jax.jit
    def step(params, opt, grads):
        if name == "lbfgs":
            extra = {"value": closure(params)[0], "value_and_grad_fn": closure}
            updates, opt = tx.update(closure(params)[1], opt, params, **extra)
        else:
            updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    params = place(leaves(name, 0))
    opt = tx.init(params)
    for t in (1, 2, 3):
        params, opt = step(params, opt, slopes(name, t))
    return params, opt


@cache
def mesh():
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def sharded(params):
    return {key: jax.device_put(p, NamedSharding(mesh(), SPECS[key])) for key, p in params.items()}


def astray(params, opt):
    """The leaves that do not lie where their parameter was put."""
    trees = {"params": params, **{k: tree for k, tree in opt.buffers.items() if k not in opt.algorithm.own}}
    return [
        f"{name}.{key}"
        for name, tree in trees.items()
        for key, x in tree.items()
        if not x.sharding.is_equivalent_to(NamedSharding(mesh(), SPECS[key]), x.ndim)
    ]


def compared(name):
    (params, opt), (expected, other) = steps(name, sharded), steps(name, lambda p: p)
    start = leaves(name, 0)
    moved = max(float(jnp.abs(expected[key] - p).max()) for key, p in start.items())
    pairs = zip(*map(jax.tree.leaves, ((params, opt), (expected, other))), strict=True)
    apart = max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)
    return {"error": apart / moved, "moved": moved, "astray": astray(params, opt)}


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps({name: compared(name) for name in MAKE}))
