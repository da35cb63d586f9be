"""What is refused about states inside other states, and the words for it."""

import jax
import jax.numpy as jnp
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import FEW, Pair, to_jax  # noqa: E402

from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adam, adamw, load_state_dict, set_hyperparameters, sgd, state_dict  # noqa: E402
from jaxstate.optim._paths import leaf_paths  # noqa: E402

PAIR = Pair(torch.optim.Adam, None, FEW, {"lr": 0.1})
PARAMS = to_jax(FEW, PAIR.start)


def labels(params):
    paths = leaf_paths(params)
    return jax.tree.structure(params).unflatten(["bias" if p.endswith("bias") else "weight" for p in paths])


def file(steps=2, torch_class=torch.optim.Adam, **options):
    pair = Pair(torch_class, None, FEW, {"lr": 0.1, **options})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, steps)
    return opt.state_dict()


def stepped(tx, opt):
    return tx.update(PARAMS, opt, PARAMS)[1]


def test_several_torch_optimizers_are_named():
    tx = optax.partition({"bias": sgd(lr=0.1), "weight": adam()}, labels)
    opt = tx.init(PARAMS)
    with pytest.raises(OptimizerError) as error:
        state_dict(opt, FEW)
    assert str(error.value) == (
        "the optimizer state holds several torch optimizers, 'bias': torch.optim.SGD, "
        "'weight': torch.optim.Adam; take one at a time, here with label='bias'"
    )
    assert state_dict(stepped(tx, opt), FEW, label="weight")["param_groups"][0]["params"] == [0, 1]
    osd = state_dict(stepped(tx, opt), FEW, label="weight")
    loaded = load_state_dict(opt, osd, FEW, label="weight")
    assert loaded.inner_states["weight"].inner_state.step.tolist() == [1, 1]
    slower = set_hyperparameters(state_of(opt, "weight"), lr=0.5)
    assert float(slower.param_groups[0]["lr"]) == 0.5


def state_of(opt, label):
    return opt.inner_states[label].inner_state


def test_a_label_that_is_left_out_is_named():
    tx = optax.partition({"bias": optax.sgd(0.1, momentum=0.9), "weight": optax.adam(0.1)}, labels)
    with pytest.raises(OptimizerError, match="labels \"bias\" hold the state of another.*label='weight'"):
        state_dict(tx.init(PARAMS), FEW, optimizer=adam(lr=0.1))
    osd = state_dict(stepped(tx, tx.init(PARAMS)), FEW, optimizer=adam(lr=0.1), label="weight")
    assert len(osd["state"]) == 2
    with pytest.raises(OptimizerError, match="no states .* under the label 'wrong'"):
        state_dict(optax.chain(adam()).init(PARAMS), FEW, label="wrong")


def test_a_frozen_label_is_no_other_optimizer():
    tx = optax.partition({"bias": optax.set_to_zero(), "weight": optax.adam(0.1)}, labels)
    assert len(state_dict(stepped(tx, tx.init(PARAMS)), FEW, optimizer=adam(lr=0.1))["state"]) == 2


def test_accumulated_gradients_have_no_place():
    tx = optax.MultiSteps(adam(), 3)
    opt = stepped(tx, tx.init(PARAMS))
    for call in (lambda: state_dict(opt, FEW), lambda: load_state_dict(opt, file(), FEW)):
        with pytest.raises(
            OptimizerError, match=r"mini_step is 1\).*accumulated.*p.grad.*when mini_step is 0"
        ):
            call()


@pytest.mark.parametrize(
    "wrap",
    [lambda tx: optax.MultiSteps(tx, 2), lambda tx: optax.conditionally_transform(tx, lambda n: n % 2 == 0)],
)
def test_a_count_of_calls_is_asked_for(wrap):
    tx = optax.chain(wrap(optax.adam(0.1)), optax.scale_by_schedule(lambda n: 1.0))
    with pytest.raises(OptimizerError, match=r"(?s)step=:\n.*\[1\].count counts calls of update"):
        load_state_dict(tx.init(PARAMS), file(), FEW, optimizer=adam(lr=0.1))
    loaded = load_state_dict(tx.init(PARAMS), file(), FEW, optimizer=adam(lr=0.1), step=5)
    assert int(loaded[1].count) == 5


def test_a_step_that_contradicts_the_file_is_refused():
    tx = optax.adam(optax.constant_schedule(0.1))
    with pytest.raises(OptimizerError, match=r"step=7, and the file says \[2\]"):
        load_state_dict(tx.init(PARAMS), file(), FEW, optimizer=adam(lr=0.1), step=7)


def test_sgd_beside_a_schedule_is_told_its_step():
    osd = file(3, torch.optim.SGD, momentum=0.9)
    which = sgd(lr=0.1, momentum=0.9)
    tx = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(optax.constant_schedule(0.1)))
    loaded = load_state_dict(tx.init(PARAMS), osd, FEW, optimizer=which, step=3)
    assert int(loaded[1].count) == 3
    tx = optax.chain(which, optax.scale_by_schedule(lambda n: 1.0))
    with pytest.raises(OptimizerError, match="this optimizer writes none into its file"):
        load_state_dict(tx.init(PARAMS), osd, FEW)


def test_steps_that_differ_need_saying_for_a_schedule():
    osd = file(3)
    osd["state"][0]["step"] = torch.tensor(1.0)
    tx = optax.chain(adam(), optax.scale_by_schedule(lambda n: 1.0))
    with pytest.raises(
        OptimizerError, match=r"counts once for all parameters, and the file has the steps \[1, 3\]"
    ):
        load_state_dict(tx.init(PARAMS), osd, FEW)
    loaded = load_state_dict(tx.init(PARAMS), osd, FEW, step=3)
    assert int(loaded[1].count) == 3 and sorted(loaded[0].step.tolist()) == [1, 3, 3]


def test_two_states_of_one_parameter():
    tx = optax.chain(adam(), adamw())
    with pytest.raises(
        OptimizerError, match="several torch optimizers, 0: torch.optim.Adam, 1: torch.optim.AdamW"
    ):
        state_dict(tx.init(PARAMS), FEW)
    with pytest.raises(OptimizerError, match='holds 2 states .* more than one for "blocks.bias"'):
        state_dict(optax.chain(adam(), adam()).init(PARAMS), FEW)


def test_a_vector_asks_for_the_parameters():
    tx = optax.flatten(adam())
    with pytest.raises(OptimizerError, match="(?s)does not bind.*optax.flatten.*params="):
        state_dict(tx.init(PARAMS), FEW)
    with pytest.raises(OptimizerError, match=r"vector has \d+ elements, and params= has 2"):
        state_dict(tx.init(PARAMS), FEW, params={"a": jnp.ones(1), "b": jnp.ones(1)})
    osd = file(3)
    osd["state"][0]["step"] = torch.tensor(1.0)
    with pytest.raises(OptimizerError, match=r"one vector with one step, and the file has \[1, 3\]"):
        load_state_dict(tx.init(PARAMS), osd, FEW, params=PARAMS)


def test_complex_parameters_are_refused():
    tx = optax.contrib.split_real_and_imaginary(optax.adam(0.1))
    opt = tx.init({"w": jnp.ones(3, jnp.complex64)})
    with pytest.raises(OptimizerError, match="halves of complex parameters, which torch keeps whole"):
        state_dict(opt, FEW, optimizer=adam(lr=0.1))


def test_amsgrad_names_the_optimizer_that_does_it():
    with pytest.raises(
        OptimizerError, match=r"bias before the maximum.*train with js.optim.adam\(.*amsgrad=True"
    ):
        state_dict(optax.amsgrad(0.1).init(PARAMS), FEW, optimizer=adam(amsgrad=True))


def test_groups_that_need_different_states():
    which = sgd(param_groups=[{"params": "*bias"}, {"params": "*kernel", "momentum": 0.9}])
    with pytest.raises(OptimizerError, match="nothing else of SGD has a state"):
        state_dict(optax.sgd(0.1, momentum=0.9).init(PARAMS), FEW, optimizer=which)


def test_a_trace_alone_is_a_state_of_sgd():
    # A plain trace has no count, and torch's SGD needs none.
    opt = optax.trace(0.9).init(PARAMS)
    assert state_dict(opt, FEW, optimizer=sgd(momentum=0.9))["state"]
