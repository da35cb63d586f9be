"""States of optimizers inside other states: training goes on in the other library, through any nesting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import FEW, Pair, as_tensors, displacement_error, to_jax, to_torch  # noqa: E402

from jaxstate.optim import adam, adamw, load_state_dict, sgd, state_dict  # noqa: E402
from jaxstate.optim._paths import leaf_paths  # noqa: E402

OPTIONS = {"lr": 0.03, "betas": (0.8, 0.9), "weight_decay": 0.2, "eps": 1e-4}
PLAIN = {"learning_rate": 0.03, "b1": 0.8, "b2": 0.9, "weight_decay": 0.2, "eps": 1e-4}
RATE = optax.constant_schedule(0.03)


def finite(tx):
    return optax.apply_if_finite(tx, 3)


def all_of(tx):
    return optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params))


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip(100.0), optax.chain(tx)),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(100.0)), ("opt", tx)),
    "masked": all_of,
    "partition": lambda tx: optax.partition({"all": tx}, lambda p: jax.tree.map(lambda _: "all", p)),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": finite,
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: True),
    "split_real_and_imaginary": lambda tx: optax.contrib.split_real_and_imaginary(tx),
    "several": lambda tx: optax.chain(
        finite(all_of(optax.MultiSteps(tx, 1))), optax.scale_by_schedule(lambda n: 1.0)
    ),
}
# What stands around these counts calls.
CALLS = {"conditionally_transform", "several"}


def steps(pair, tx, arrays, opt, start, stop):
    params, update = to_jax(pair.binding, arrays), jax.jit(tx.update)
    for grads in pair.grads[start:stop]:
        updates, opt = update(to_jax(pair.binding, grads), opt, params)
        params = optax.apply_updates(params, updates)
    return to_torch(pair.binding, params), opt


def both_ways(pair, tx, k=4, n=4, **how):
    """How far moved training is from torch's own: torch first, ours first."""
    init = tx.init(to_jax(pair.binding, pair.start))
    reference = pair.torch_steps(*pair.torch(pair.start), 0, k + n)

    opt, params = pair.torch(pair.start)
    arrays = pair.torch_steps(opt, params, 0, k)
    loaded = load_state_dict(init, opt.state_dict(), pair.binding, **how)
    there, _ = steps(pair, tx, arrays, loaded, k, k + n)

    arrays, opt = steps(pair, tx, pair.start, init, 0, k)
    how.pop("step", None)
    osd = as_tensors(state_dict(opt, pair.binding, **how))
    back = pair.torch_steps(*pair.torch(arrays, osd), k, k + n)
    return max(displacement_error(x, reference, pair.start) for x in (there, back))


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("kind", ["ours", "optax"])
def test_training_goes_on_through_a_wrapper(name, kind):
    with jax.enable_x64(True):
        pair = Pair(torch.optim.AdamW, None, FEW, OPTIONS, dtype="float64")
        which = adamw(**OPTIONS)
        inner = which if kind == "ours" else optax.adamw(**PLAIN)
        tx = WRAPPERS[name](inner)
        how = {} if kind == "ours" else {"optimizer": which}
        if name in CALLS:
            how["step"] = 4
        assert both_ways(pair, tx, **how) < 1e-9


def two_labels(params):
    return treated(params, lambda path: "bias" if path.endswith("bias") else "weight")


def treated(params, label):
    return jax.tree.structure(params).unflatten([label(path) for path in leaf_paths(params)])


@pytest.mark.parametrize("kind", ["ours", "optax"])
def test_the_labels_of_a_partition_are_groups(kind):
    with jax.enable_x64(True):
        names = FEW.parameters
        groups = [
            {"params": [n for n in names if n.endswith("bias")], "weight_decay": 0.0, "lr": 0.01},
            {"params": [n for n in names if not n.endswith("bias")]},
        ]
        pair = Pair(torch.optim.AdamW, None, FEW, OPTIONS, groups=groups, dtype="float64")
        if kind == "ours":
            made = {"bias": adamw(**{**OPTIONS, "weight_decay": 0.0, "lr": 0.01}), "weight": adamw(**OPTIONS)}
            how = {}
        else:
            made = {
                "bias": optax.adamw(**{**PLAIN, "weight_decay": 0.0, "learning_rate": 0.01}),
                "weight": optax.adamw(**PLAIN),
            }
            rows = [{"params": "*bias", "weight_decay": 0.0, "lr": 0.01}, {"params": "*kernel"}]
            how = {"optimizer": adamw(**OPTIONS, param_groups=rows)}
        assert both_ways(pair, optax.partition(made, two_labels), **how) < 1e-9


def test_each_label_keeps_its_own_step():
    names = FEW.parameters
    groups = [
        {"params": [n for n in names if n.endswith("bias")]},
        {"params": [n for n in names if not n.endswith("bias")]},
    ]
    pair = Pair(torch.optim.Adam, None, FEW, {"lr": 0.1}, groups=groups)
    opt, params = pair.torch(pair.start)
    frozen = {name: None if name.endswith("bias") else g for name, g in pair.grads[0].items()}
    pair.grads[0] = frozen
    pair.torch_steps(opt, params, 0, 3)
    rate = optax.constant_schedule(0.1)
    tx = optax.partition({"bias": optax.adam(rate), "weight": optax.adam(rate)}, two_labels)
    which = adam(lr=0.1, param_groups=[{"params": "*bias"}, {"params": "*kernel"}])
    loaded = load_state_dict(tx.init(to_jax(FEW, pair.start)), opt.state_dict(), FEW, optimizer=which)
    found = {str(path): int(x) for path, x in optax.tree.get_all_with_path(loaded, "count")}
    assert sorted((("bias" in path), count) for path, count in found.items()) == [
        (False, 3),
        (False, 3),
        (True, 2),
        (True, 2),
    ]
    again = state_dict(loaded, FEW, optimizer=which)["state"]
    order = [name for group in groups for name in group["params"]]
    found = {name: float(again[i]["step"]) for i, name in enumerate(order)}
    assert found == {name: 2.0 if name.endswith("bias") else 3.0 for name in names}


@pytest.mark.parametrize("kind", ["ours", "optax"])
def test_flatten_is_unflattened_in_leaf_order(kind):
    with jax.enable_x64(True):
        pair = Pair(torch.optim.AdamW, None, FEW, OPTIONS, dtype="float64")
        which = adamw(**OPTIONS)
        tx = optax.flatten(which if kind == "ours" else optax.adamw(**PLAIN))
        how = {"params": to_jax(FEW, pair.start)} | ({} if kind == "ours" else {"optimizer": which})
        assert both_ways(pair, tx, **how) < 1e-9


def test_lookahead_holds_the_fast_state():
    pair = Pair(torch.optim.SGD, None, FEW, {"lr": 0.1, "momentum": 0.5})
    opt, params = pair.torch(pair.start)
    arrays = pair.torch_steps(opt, params, 0, 3)
    start = optax.LookaheadParams.init_synced(to_jax(FEW, arrays))
    for tx, how in ((optax.sgd(0.1, momentum=0.5), {"optimizer": sgd(lr=0.1, momentum=0.5)}),):
        look = optax.lookahead(tx, 100, 0.5)
        loaded = load_state_dict(look.init(start), opt.state_dict(), FEW, **how)
        params_now = start
        for grads in pair.grads[3:6]:
            updates, loaded = look.update(to_jax(FEW, grads), loaded, params_now)
            params_now = optax.apply_updates(params_now, updates)
        reference = pair.torch_steps(*pair.torch(pair.start), 0, 6)
        assert displacement_error(to_torch(FEW, params_now.fast), reference, pair.start) < 2e-6
        osd = as_tensors(state_dict(loaded, FEW, **how))
        further = pair.torch_steps(*pair.torch(to_torch(FEW, params_now.fast), osd), 6, 9)
        reference = pair.torch_steps(*pair.torch(pair.start), 0, 9)
        assert displacement_error(further, reference, pair.start) < 2e-6


def test_every_count_is_set_together():
    pair = Pair(torch.optim.AdamW, None, FEW, OPTIONS)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    decay = optax.constant_schedule(0.2)
    inner = optax.adamw(RATE, b1=0.8, b2=0.9, eps=1e-4, weight_decay=decay)
    tx = optax.chain(
        optax.clip(9.0), optax.apply_if_finite(optax.MultiSteps(inner, 2), 5), optax.scale_by_schedule(RATE)
    )
    init = tx.init(to_jax(FEW, pair.start))
    loaded = load_state_dict(init, opt.state_dict(), FEW, optimizer=adamw(**OPTIONS), step=6)
    inner = loaded[1].inner_state
    assert int(inner.gradient_step) == 3 and int(inner.mini_step) == 0
    assert [int(inner.inner_opt_state[i].count) for i in (0, 1, 2)] == [3, 3, 3]
    # Around MultiSteps updates are counted, two for a step.
    assert int(loaded[2].count) == 6
    assert jax.tree.structure(loaded) == jax.tree.structure(init)
    assert all(
        np.asarray(x).dtype == np.asarray(y).dtype
        for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(init), strict=True)
    )


def test_a_state_of_an_average_is_left_alone():
    pair = Pair(torch.optim.Adam, None, FEW, {"lr": 0.1})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    tx = optax.chain(optax.adam(0.1), optax.ema(0.9))
    init = tx.init(to_jax(FEW, pair.start))
    loaded = load_state_dict(init, opt.state_dict(), FEW, optimizer=adam(lr=0.1))
    assert int(loaded[1].count) == 0 and int(loaded[0][0].count) == 3


def test_what_a_store_has_made_dicts_is_read():
    import flax.serialization

    tx = optax.adam(0.1)
    opt = tx.init(to_jax(FEW, {n: np.ones(FEW.shapes[n], "f") for n in FEW.parameters}))
    _, opt = tx.update(opt[0].mu, opt)
    there = flax.serialization.to_state_dict(opt)
    here, other = (state_dict(x, FEW, optimizer=adam(lr=0.1)) for x in (opt, there))
    assert str(here) == str(other)
    again = load_state_dict(there, here, FEW, optimizer=adam(lr=0.1))
    assert jax.tree.structure(again) == jax.tree.structure(there) and int(again["0"]["count"]) == 1


def test_a_template_may_be_abstract():
    pair = Pair(torch.optim.AdamW, None, FEW, OPTIONS)
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    start = to_jax(FEW, pair.start)
    tx = optax.partition({"bias": adamw(**OPTIONS), "weight": adamw(**OPTIONS)}, two_labels)
    osd = opt.state_dict()
    members = [i for i, n in enumerate(FEW.parameters) if n.endswith("bias")]
    rest = [i for i in range(len(FEW.parameters)) if i not in members]
    group = osd["param_groups"][0]
    osd = {"state": osd["state"], "param_groups": [{**group, "params": row} for row in (members, rest)]}
    whole, abstract = (load_state_dict(x, osd, FEW) for x in (tx.init(start), jax.eval_shape(tx.init, start)))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), whole, abstract))
