"""A small MLP of NNX, which goes on from a checkpoint on one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxstate as js


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(3, 5, rngs=rngs)
        self.fc2 = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.fc2(jnp.tanh(self.fc1(x)))


INPUTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
TARGETS = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)


def resumed(ckpt, binding, tx, scheduler, steps, prefix=""):
    """The model, its optimizer's and its scheduler's state_dict, so many steps behind a checkpoint."""
    model = js.load_state_dict(nnx.eval_shape(lambda: Twin(nnx.Rngs(0))), ckpt.model, binding, prefix=prefix)
    graphdef, params = nnx.split(model)
    opt = js.optim.load_state_dict(tx.init(params), ckpt.optimizer, binding)
    schedule = js.optim.schedulers.load_state_dict(scheduler, ckpt.scheduler)

    @jax.jit
    def step(params, opt):
        def loss(params):
            return jnp.mean((nnx.merge(graphdef, params)(INPUTS) - TARGETS) ** 2)

        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    for _ in range(steps):
        params, opt = step(params, opt)
        schedule, opt = scheduler.step(schedule, opt)
    model_sd = js.state_dict(nnx.merge(graphdef, params), binding, prefix=prefix)
    return model_sd, js.optim.state_dict(opt, binding), js.optim.schedulers.state_dict(schedule)


def assert_arrived(ours, ckpt):
    """Where the tool itself arrived: weights, moments, counts, rates."""
    model, osd, schedule = ours
    assert set(model) == set(ckpt.model)
    for key, theirs in ckpt.model.items():
        np.testing.assert_allclose(model[key], theirs, rtol=1e-5, atol=1e-6)
    assert set(osd["state"]) == set(ckpt.optimizer["state"])
    for number, entry in ckpt.optimizer["state"].items():
        assert float(osd["state"][number]["step"]) == float(entry["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_allclose(osd["state"][number][name], entry[name], rtol=1e-4, atol=1e-7)
    for one, other in zip(osd["param_groups"], ckpt.optimizer["param_groups"], strict=True):
        assert one["params"] == other["params"]
        assert (one["lr"], one["weight_decay"]) == (other["lr"], other["weight_decay"])
    assert schedule == ckpt.scheduler
