"""assert_same_training: torch trains, and so does JAX, from the middle of a run."""

import copy
import re

import numpy as np
import optax
import pytest
import torch
from flax import nnx
from twins import NCHW, make, noise

import jaxstate as js
from jaxstate.testing import assert_same_training

CNN_BATCHES = [(noise(4, 3, 8, 8, seed=n), noise(4, 5, seed=9 + n)) for n in range(3)]
MLP_BATCHES = [(noise(4, 6, seed=n), noise(4, 4, seed=9 + n)) for n in range(3)]


def squares(model, x, y):
    return ((model(x) - y) ** 2).mean()


LOSSES = dict(torch_loss=squares, loss=squares)


def trained(made, steps=2, kind=torch.optim.AdamW, **options):
    """torch's module and optimizer after some steps."""
    optimizer = kind(made.torch.parameters(), **options)
    batches = CNN_BATCHES if hasattr(made.torch, "conv1") else MLP_BATCHES
    for x, y in batches[:steps]:
        optimizer.zero_grad()
        squares(made.torch, torch.from_numpy(x), torch.from_numpy(y)).backward()
        optimizer.step()
    return made.torch, optimizer


def test_a_net_with_statistics_from_the_middle_of_a_run():
    made = make("cnn")
    made.torch.train()
    theirs, optimizer = trained(made, kind=torch.optim.SGD, lr=1e-3, momentum=0.9)
    ours = made.loaded()
    ours.bn.use_running_average, ours.bn.use_fast_variance = False, False
    tx = js.optim.sgd(lr=1e-3, momentum=0.9)
    options = dict(binding=made.binding, input_layout=NCHW, **LOSSES)
    before = copy.deepcopy((theirs.state_dict(), optimizer.state_dict()))
    assert_same_training(theirs, optimizer, ours, tx, CNN_BATCHES, ignore="*running_var", **options)
    for one, other in zip(before, (theirs.state_dict(), optimizer.state_dict()), strict=True):
        assert repr(one) == repr(other)
    ours.bn.momentum = 0.99
    with pytest.raises(js.ParityError, match='ignore="\\*running_var"') as caught:
        assert_same_training(theirs, optimizer, ours, tx, CNN_BATCHES[:1], **options)
    assert re.findall(r'"(.*?)": ', str(caught.value)) == ["bn.running_var", "bn.running_mean"]


def message_of(*arguments, **options):
    with pytest.raises(js.ParityError) as caught:
        assert_same_training(*arguments, **LOSSES, **options)
    return str(caught.value)


def test_the_first_step_that_differs_is_named():
    made = make("mlp")
    theirs, optimizer = trained(made, steps=0, lr=1e-2)
    ours, fine = made.loaded(), js.optim.adamw(lr=1e-2, weight_decay=1e-2)
    stale = made.loaded(state_dict={k: v + 1e-2 for k, v in made.torch.state_dict().items()})
    assert "before the first step" in message_of(theirs, optimizer, stale, fine, MLP_BATCHES)
    other = js.optim.adamw(lr=1.1e-2, weight_decay=1e-2)
    assert "after step 1 of 3" in message_of(theirs, optimizer, ours, other, MLP_BATCHES)
    decayed = js.optim.adamw(lr=optax.piecewise_constant_schedule(1e-2, {2: 0.5}), weight_decay=1e-2)
    late = message_of(theirs, optimizer, ours, decayed, MLP_BATCHES)
    assert "after step 3 of 3" in late and "look at what the optimizer keeps, and at schedules" in late


def test_a_linen_module():
    made = make("linen block")
    rng = np.random.default_rng(0)
    mask = made.twin.inputs[1]
    batches = [(rng.integers(11, size=(2, 5)), mask, noise(2, 5, 8, seed=n)) for n in range(2)]
    losses = dict(
        torch_loss=lambda m, t, k, y: ((m(t, k) - y) ** 2).mean(),
        loss=lambda m, t, k, y: ((m(t, k) - y) ** 2).mean(),
    )
    optimizer = torch.optim.SGD(made.torch.parameters(), lr=0.05, momentum=0.9)
    tx = js.optim.sgd(lr=0.05, momentum=0.9)
    bound = made.loaded()
    assert_same_training(made.torch, optimizer, bound, tx, batches, binding=made.binding, **losses)


def test_a_plain_optax_state_that_has_begun_and_a_template_that_is_not_trained():
    made = make("mlp")
    theirs, optimizer = trained(made, steps=1, lr=1e-2)
    ours, tx = made.loaded(), optax.adamw(1e-2, weight_decay=1e-2)
    osd = optimizer.state_dict()
    state = {n: {k: v.numpy() for k, v in entry.items()} for n, entry in osd["state"].items()}
    opt = js.optim.load_state_dict(
        tx.init(nnx.state(ours, nnx.Param)),
        {**osd, "state": state},
        made.binding,
        optimizer=js.optim.adamw(lr=1e-2),
    )
    before = {k: a.tobytes() for k, a in js.state_dict(ours).items()}
    assert_same_training(theirs, optimizer, ours, tx, MLP_BATCHES[:2], opt_state=opt, **LOSSES)
    assert {k: a.tobytes() for k, a in js.state_dict(ours).items()} == before
