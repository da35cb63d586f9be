"""Learning rates that change: lr as a schedule, inject_hyperparams around ours and around optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import FEW, Pair, as_tensors, displacement_error, to_jax, to_torch  # noqa: E402

from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import (  # noqa: E402
    adam,
    adamw,
    load_state_dict,
    param_groups,
    set_hyperparameters,
    sgd,
    state_dict,
)

OPTIONS = {"betas": (0.8, 0.9), "weight_decay": 0.2, "eps": 1e-4}


def schedule(count):
    return 0.05 / (1 + count)


class Scheduled(Pair):
    """A torch optimizer whose rate a LambdaLR sets after every step."""

    def torch_steps(self, opt, params, start, stop):
        for i in range(start, stop):
            assert opt.param_groups[0]["lr"] == pytest.approx(schedule(i), rel=1e-6)
            super().torch_steps(opt, params, i, i + 1)
            for group in opt.param_groups:
                group["lr"] = schedule(i + 1)
        return {name: p.detach().numpy().copy() for name, p in params.items()}


def steps(pair, tx, arrays, opt, start, stop):
    params, update = to_jax(FEW, arrays), jax.jit(tx.update)
    for grads in pair.grads[start:stop]:
        updates, opt = update(to_jax(FEW, grads), opt, params)
        params = optax.apply_updates(params, updates)
    return to_torch(FEW, params), opt


KINDS = {
    "ours": (torch.optim.AdamW, adamw(lr=schedule, **OPTIONS), OPTIONS, {}),
    "in a chain": (
        torch.optim.AdamW,
        optax.chain(optax.clip(99.0), adamw(lr=schedule, **OPTIONS)),
        OPTIONS,
        {},
    ),
    "optax": (
        torch.optim.AdamW,
        optax.adamw(schedule, b1=0.8, b2=0.9, eps=1e-4, weight_decay=0.2),
        OPTIONS,
        {"optimizer": adamw(lr=schedule, **OPTIONS)},
    ),
    "ours, sgd": (torch.optim.SGD, sgd(lr=schedule, momentum=0.9), {"momentum": 0.9}, {}),
    "optax, sgd": (
        torch.optim.SGD,
        optax.sgd(schedule, momentum=0.9),
        {"momentum": 0.9},
        {"optimizer": sgd(lr=schedule, momentum=0.9)},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_under_a_schedule_goes_on(kind):
    torch_class, tx, options, how = KINDS[kind]
    with jax.enable_x64(True):
        pair = Scheduled(torch_class, None, FEW, {"lr": 0.05, **options}, dtype="float64")
        init = tx.init(to_jax(FEW, pair.start))
        reference = pair.torch_steps(*pair.torch(pair.start), 0, 8)
        opt, params = pair.torch(pair.start)
        arrays = pair.torch_steps(opt, params, 0, 4)
        step = {"step": 4} if torch_class is torch.optim.SGD else {}
        loaded = load_state_dict(init, opt.state_dict(), FEW, **how, **step)
        there, _ = steps(pair, tx, arrays, loaded, 4, 8)
        arrays, opt = steps(pair, tx, pair.start, init, 0, 4)
        osd = as_tensors(state_dict(opt, FEW, **how))
        # torch's schedulers start again from initial_lr.
        assert osd["param_groups"][0]["initial_lr"] == pytest.approx(0.05)
        back = pair.torch_steps(*pair.torch(arrays, osd), 4, 8)
        assert max(displacement_error(x, reference, pair.start) for x in (there, back)) < 1e-6


def test_a_scheduler_of_torch_resumes():
    tx = adamw(lr=schedule, **OPTIONS)
    pair = Pair(torch.optim.AdamW, None, FEW, {"lr": 0.05, **OPTIONS})
    _, opt = steps(pair, tx, pair.start, tx.init(to_jax(FEW, pair.start)), 0, 3)
    theirs, params = pair.torch(pair.start, as_tensors(state_dict(opt, FEW)))
    # A scheduler steps once when it is made, so last_epoch says one less.
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda n: 1 / (1 + n), last_epoch=2)
    assert scheduler.get_last_lr() == [pytest.approx(schedule(3))]
    pair.torch_steps(theirs, params, 3, 4)
    scheduler.step()
    assert theirs.param_groups[0]["lr"] == pytest.approx(schedule(4))


def test_what_is_put_there_is_used_once():
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.ones(2)}
    tx = sgd(lr=schedule)
    opt = set_hyperparameters(tx.init(params), lr=8.0)
    first, opt = tx.update(grads, opt, params)
    second, _ = tx.update(grads, opt, params)
    assert first["w"].tolist() == [-8.0] * 2 and np.allclose(second["w"], -0.025)


def test_groups_may_have_schedules_of_their_own():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = sgd(lr=0.5, param_groups=[{"params": "a", "lr": schedule}, {"params": "b"}])
    _, opt = jax.jit(tx.update)(params, tx.init(params), params)
    assert [g["lr"] for g in param_groups(opt)] == [pytest.approx(0.025), 0.5]


def test_a_schedule_that_starts_below_zero_is_refused():
    with pytest.raises(OptimizerError, match="Invalid learning rate: -1.0"):
        adam(lr=lambda count: -1.0)


def test_another_rate_than_the_schedules_is_refused():
    pair = Pair(torch.optim.Adam, None, FEW, {"lr": 0.05})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 4)
    tx = optax.adam(schedule)
    with pytest.raises(OptimizerError, match=r"group 0 has lr=0.05, and optimizer= says 0.00999"):
        load_state_dict(tx.init(to_jax(FEW, pair.start)), opt.state_dict(), FEW, optimizer=adam(lr=schedule))


@pytest.mark.parametrize("jit", [False, True])
def test_injected_schedules_reach_ours(jit):
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    grads = [{"w": jnp.array([0.5, 1.0, -1.5]) * (i + 1)} for i in range(5)]
    tx = optax.inject_hyperparams(adamw)(lr=schedule, **OPTIONS)
    twin = adamw(lr=schedule, **OPTIONS)
    update = jax.jit(tx.update) if jit else tx.update
    here, there = (jax.jit(tx.init) if jit else tx.init)(params), twin.init(params)
    for g in grads:
        left, here = update(g, here, params)
        right, there = twin.update(g, there, params)
        assert np.allclose(left["w"], right["w"], rtol=1e-6)


def test_an_injected_number_may_be_changed_and_travels():
    pair = Pair(torch.optim.AdamW, None, FEW, {"lr": 0.03, **OPTIONS})
    reference = pair.torch_steps(*pair.torch(pair.start), 0, 6)
    opt, params = pair.torch(pair.start)
    arrays = pair.torch_steps(opt, params, 0, 3)
    tx = optax.inject_hyperparams(adamw)(lr=0.5, betas=(0.8, 0.9), eps=0.1, weight_decay=0.9)
    loaded = load_state_dict(tx.init(to_jax(FEW, pair.start)), opt.state_dict(), FEW)
    assert int(loaded.count) == 3 and float(loaded.hyperparams["lr"]) == np.float32(0.03)
    there, now = steps(pair, tx, arrays, loaded, 3, 6)
    # What optax injects is float32, also 1 - lr * weight_decay.
    assert displacement_error(there, reference, pair.start) < 1e-5
    now.hyperparams["lr"] = jnp.float32(0.25)
    osd = state_dict(now, FEW)
    assert osd["param_groups"][0]["lr"] == 0.25 and osd["param_groups"][0]["weight_decay"] == 0.2
    assert all(type(x) is float for x in (osd["param_groups"][0][k] for k in ("lr", "eps", "weight_decay")))


@pytest.mark.parametrize("old", [False, True])
def test_injected_numbers_of_optax_are_the_files(old):
    pair = Pair(torch.optim.AdamW, None, FEW, {"lr": 0.03, **OPTIONS})
    reference = pair.torch_steps(*pair.torch(pair.start), 0, 6)
    opt, params = pair.torch(pair.start)
    arrays = pair.torch_steps(opt, params, 0, 3)
    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=0.5, b1=0.1, b2=0.2, eps=0.3, weight_decay=0.4)
    init = tx.init(to_jax(FEW, pair.start))
    if old:
        init = optax.InjectHyperparamsState(init.count, init.hyperparams, init.inner_state)
    which = adamw(lr=9.0)
    loaded = load_state_dict(init, opt.state_dict(), FEW, optimizer=which)
    numbers = {key: float(str(x)) for key, x in loaded.hyperparams.items() if key != "eps_root"}
    assert numbers == {"learning_rate": 0.03, "b1": 0.8, "b2": 0.9, "eps": 1e-4, "weight_decay": 0.2}
    if not old:
        there, loaded = steps(pair, tx, arrays, loaded, 3, 6)
        assert displacement_error(there, reference, pair.start) < 1e-5
    group = state_dict(loaded, FEW, optimizer=which)["param_groups"][0]
    assert {key: group[key] for key in ("lr", *OPTIONS)} == {"lr": 0.03, **OPTIONS}


def test_an_injected_schedule_is_counted_and_not_written():
    pair = Pair(torch.optim.AdamW, None, FEW, {"lr": 0.03, **OPTIONS})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    tx = optax.inject_hyperparams(adamw)(lr=schedule, **OPTIONS)
    loaded = load_state_dict(tx.init(to_jax(FEW, pair.start)), opt.state_dict(), FEW)
    assert int(loaded.count) == 3 and int(loaded.hyperparams_states["lr"].count) == 3
    with pytest.raises(OptimizerError, match=r'"lr" by a schedule.*next step uses: js.optim.adamw'):
        state_dict(loaded, FEW)


def test_eps_root_is_refused():
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.1, eps_root=1e-3)
    opt = tx.init(to_jax(FEW, Pair(torch.optim.Adam, None, FEW, {}).start))
    with pytest.raises(OptimizerError, match=r"eps_root=0.001\d* under the root, and torch has none"):
        state_dict(opt, FEW, optimizer=adam())


def test_one_injected_number_for_groups_that_differ():
    names = FEW.parameters
    groups = [{"params": names[:1], "lr": 0.1}, {"params": names[1:]}]
    pair = Pair(torch.optim.Adam, None, FEW, {"lr": 0.2}, groups=groups)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 1)
    rows = [{"params": "conv*"}, {"params": ["fc*", "blocks*"]}]

    def make(lr):
        return adam(lr=lr, param_groups=rows)

    tx = optax.inject_hyperparams(make)(lr=0.1)
    with pytest.raises(OptimizerError, match=r"injects one lr, and the groups of the file have \[0.1, 0.2\]"):
        load_state_dict(tx.init(to_jax(FEW, pair.start)), opt.state_dict(), FEW)


def test_an_array_of_the_constructors_wins_and_says_so():
    pair = Pair(torch.optim.Adam, None, FEW, {"lr": 0.25})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 1)
    start = to_jax(FEW, pair.start)
    for lr, fits in ((0.25, True), (0.5, False)):
        init = adam(lr=jnp.float32(lr)).init(start)
        if fits:
            assert param_groups(load_state_dict(init, opt.state_dict(), FEW))[0]["lr"] == 0.25
        else:
            with pytest.raises(OptimizerError, match="lr=0.25, and the constructor was given 0.5"):
                load_state_dict(init, opt.state_dict(), FEW)
    with pytest.raises(OptimizerError, match='"lr" is an array given to the constructor'):
        set_hyperparameters(adam(lr=jnp.float32(0.25)).init(start), lr=0.1)


def test_arrays_are_checked_where_they_have_values():
    with pytest.raises(OptimizerError, match="Invalid learning rate: -1.0"):
        adam(lr=jnp.float32(-1.0))
    with pytest.raises(OptimizerError, match="Invalid epsilon value: -1.0"):
        jax.jit(lambda lr: adam(lr=lr, eps=-1.0).init({"w": jnp.ones(2)}))(0.1)


def test_momentum_that_is_injected_has_its_buffer():
    params = {"w": jnp.ones(2)}
    tx = optax.inject_hyperparams(sgd)(lr=1.0)
    opt = tx.init(params)
    opt.hyperparams["momentum"] = jnp.float32(0.5)
    _, opt = jax.jit(tx.update)(params, opt, params)
    updates, _ = jax.jit(tx.update)(params, opt, params)
    assert updates["w"].tolist() == [-1.5, -1.5]
