"""Flax's TrainState: torch's steps become its step, its opt_state torch's."""

from typing import Any

import jax.numpy as jnp
import optax
import pytest
from flax.training.train_state import TrainState

torch = pytest.importorskip("torch")

from optimizer_pair import FEW, Pair, as_tensors, displacement_error, to_jax, to_torch  # noqa: E402

from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adam, load_state_dict, sgd, state_dict  # noqa: E402

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4}
SCHEDULE = optax.constant_schedule(0.05)
KINDS = {
    "ours": (adam(**OPTIONS), {}),
    "optax": (optax.adam(SCHEDULE, b1=0.8, b2=0.9, eps=1e-4), {"optimizer": adam(**OPTIONS)}),
}


class WithStatistics(TrainState):
    batch_stats: Any = None


def created(arrays, tx, holder=TrainState, **more):
    return holder.create(apply_fn=None, params=to_jax(FEW, arrays), tx=tx, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on(kind):
    tx, how = KINDS[kind]
    pair = Pair(torch.optim.Adam, None, FEW, OPTIONS)
    opt, params = pair.torch(pair.start)
    arrays = pair.torch_steps(opt, params, 0, 4)
    made = created(arrays, tx, WithStatistics, batch_stats={"step": jnp.int32(9)})
    train = load_state_dict(made, opt.state_dict(), FEW, **how)
    assert train.step == 4 and made.step == 0 and type(train) is WithStatistics
    assert train.batch_stats is made.batch_stats and train.params is made.params
    for grads in pair.grads[4:7]:
        train = train.apply_gradients(grads=to_jax(FEW, grads))
    reference = pair.torch_steps(*pair.torch(pair.start), 0, 7)
    now = to_torch(FEW, train.params)
    assert displacement_error(now, reference, pair.start) < 1e-5
    osd = as_tensors(state_dict(train, FEW, **how))
    further = pair.torch_steps(*pair.torch(now, osd), 7, 10)
    reference = pair.torch_steps(*pair.torch(pair.start), 0, 10)
    assert displacement_error(further, reference, pair.start) < 1e-5


def test_a_step_that_is_an_array_stays_one():
    tx, _ = KINDS["ours"]
    pair = Pair(torch.optim.Adam, None, FEW, OPTIONS)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    made = created(pair.start, tx).replace(step=jnp.uint32(0))
    loaded = load_state_dict(made, opt.state_dict(), FEW)
    assert loaded.step.dtype == jnp.uint32 and int(loaded.step) == 2


def test_accumulated_steps_are_not_calls():
    pair = Pair(torch.optim.Adam, None, FEW, OPTIONS)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    made = created(pair.start, optax.MultiSteps(adam(**OPTIONS), 4).gradient_transformation())
    with pytest.raises(OptimizerError, match=r"step=:\n\t.step counts calls of update"):
        load_state_dict(made, opt.state_dict(), FEW)
    loaded = load_state_dict(made, opt.state_dict(), FEW, step=8)
    assert loaded.step == 8 and int(loaded.opt_state.gradient_step) == 2


def test_sgd_is_told_its_step():
    pair = Pair(torch.optim.SGD, None, FEW, {"lr": 0.1, "momentum": 0.9})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    made = created(pair.start, sgd(lr=0.1, momentum=0.9))
    with pytest.raises(
        OptimizerError, match=".step counts steps, and this optimizer writes none into its file"
    ):
        load_state_dict(made, opt.state_dict(), FEW)
    assert load_state_dict(made, opt.state_dict(), FEW, step=2).step == 2
