"""Schedulers that drive an optimizer: in its state, in compiled programs, in optax; and what is refused."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from optimizer_pair import DIFFERENT, Pair, displacement_error, jax_step, to_jax, to_torch
from scheduler_pair import CASES, LRS, groups_of, optimizer, shown, stepped

import jaxstate as js
from jaxstate.errors import OptimizerError
from jaxstate.optim import adam, adamw, param_groups, schedulers, sgd

# torch itself steps a nested scheduler while it constructs the outer one.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step..` before:UserWarning")

GROUPS = [{"params": ["conv.weight", "fc.weight"], "lr": 0.03}, {"params": [*DIFFERENT.parameters]}]
GROUPS[1]["params"] = [name for name in GROUPS[1]["params"] if name not in GROUPS[0]["params"]]
MAKERS = {
    "one cycle": (
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[0.05, 0.02], total_steps=12),
        schedulers.OneCycleLR(max_lr=[0.05, 0.02], total_steps=12),
    ),
    "cyclic": (
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=3),
        schedulers.CyclicLR(0.01, 0.05, step_size_up=3),
    ),
    "step": (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.37),
        schedulers.StepLR(3, gamma=0.37),
    ),
}
KINDS = {"sgd": (torch.optim.SGD, sgd, {"momentum": 0.9}), "adam": (torch.optim.Adam, adam, {})}


def pair_of(kind):
    torch_class, make, options = KINDS[kind]
    options = {"lr": 0.02, **options}
    return Pair(
        torch_class, make(**options, param_groups=GROUPS, binding=DIFFERENT), DIFFERENT, options, GROUPS
    )


def torch_run(pair, opt, params, scheduler, start, stop):
    for k in range(start, stop):
        pair.torch_steps(opt, params, k, k + 1)
        scheduler.step()
    return {name: p.detach().numpy().copy() for name, p in params.items()}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_on_schedule(kind, name):
    pair, (make, ours) = pair_of(kind), MAKERS[name]
    opt, params = pair.torch(pair.start)
    scheduler = make(opt)
    arrays = torch_run(pair, opt, params, scheduler, 0, 4)
    state = schedulers.load_state_dict(ours, copy.deepcopy(scheduler.state_dict()))
    moved = js.optim.load_state_dict(pair.init(), opt.state_dict(), DIFFERENT)
    expected = torch_run(pair, opt, params, scheduler, 4, 10)
    tree = to_jax(DIFFERENT, arrays)
    for grads in pair.grads[4:10]:
        tree, moved = jax_step(tree, moved, to_jax(DIFFERENT, grads))
        state, moved = ours.step(state, moved)
    assert displacement_error(to_torch(DIFFERENT, tree), expected, pair.start) <= 2e-6
    assert shown(schedulers.state_dict(state)) == shown(scheduler.state_dict())
    found = js.optim.state_dict(moved, DIFFERENT)["param_groups"]
    assert shown(found) == shown(opt.state_dict()["param_groups"])


@pytest.mark.parametrize("name", MAKERS)
def test_a_plan_is_the_same_inside_a_compiled_step(name):
    pair, (_, ours) = pair_of("sgd"), MAKERS[name]
    tree = to_jax(DIFFERENT, pair.start)
    state, opt = ours.init(pair.tx.init(tree))
    plan = schedulers.plan(ours, state, opt, steps=10)
    applied = jax.jit(lambda opt, i: plan.apply(opt, i))
    walking = opt
    for i in range(11):
        assert shown(param_groups(applied(opt, i))) == shown(param_groups(walking))
        state, walking = ours.step(state, walking)
    assert applied._cache_size() == 1
    for outside in (-1, 11, 12):
        assert np.isnan(applied(opt, outside).param_groups[0].numbers["lr"].high)
    leaves = [leaf.shape for leaf in jax.tree.leaves(plan)]
    assert leaves and all(shape == (11, 3) for shape in leaves)


def test_a_plan_travels_as_an_argument_and_keeps_betas():
    tx = optax.chain(optax.clip(9.0), adamw(lr=0.1, betas=(0.8, 0.97)))
    opt = tx.init({"w": jnp.ones(3)})
    cycle = schedulers.OneCycleLR(max_lr=0.3, total_steps=6)
    state, opt = cycle.init(opt)
    plan = schedulers.plan(cycle, state, opt, steps=5)
    group = param_groups(jax.jit(lambda plan, opt, i: plan.apply(opt, i))(plan, opt, jnp.int32(5)))[0]
    last = cycle.step(state, opt, times=5)[1]
    assert shown(group) == shown(param_groups(last)[0])
    assert group["betas"][1] == 0.97


@pytest.mark.parametrize("name", CASES)
def test_optax_schedules(name):
    case, k = CASES[name], CASES[name].stops[-1] % 150
    opt = optimizer(case)
    oracle = case.torch(opt)
    stepped(opt, oracle, k)
    state = schedulers.load_state_dict(case.ours, oracle.state_dict())
    groups = groups_of(opt)
    rates = [schedulers.schedule(case.ours, state, groups, 200, first=k, group=g) for g in range(3)]
    tables = [np.asarray(jax.vmap(rate)(jnp.arange(k, k + 201))) for rate in rates]
    for i in range(200):
        expected = [group["lr"] for group in opt.param_groups]
        assert [table[i] for table in tables] == [np.float32(lr) for lr in expected]
        stepped(opt, oracle)
    assert np.isnan(rates[0](k - 1)) and np.isnan(rates[0](k + 201))


def test_an_optax_optimizer_follows():
    halves = schedulers.ExponentialLR(gamma=0.5)
    rate = schedulers.schedule(halves, *halves.init([{"lr": 0.8}]), steps=4)
    for tx in (optax.sgd(rate), optax.inject_hyperparams(optax.sgd)(learning_rate=rate)):
        opt, sizes = tx.init(jnp.zeros(())), []
        for _ in range(4):
            update, opt = jax.jit(tx.update)(jnp.ones(()), opt)
            sizes.append(float(-update))
        assert sizes == [np.float32(0.8 * 0.5**i) for i in range(4)]


def test_momentum_as_an_optax_schedule():
    cycle = schedulers.CyclicLR(0.1, 0.2, step_size_up=2, base_momentum=0.5, max_momentum=0.75)
    rate = schedulers.schedule(cycle, *cycle.init([{"lr": 1.0, "momentum": 0.9}]), steps=4, key="momentum")
    assert [float(rate(i)) for i in range(5)] == [0.75, 0.625, 0.5, 0.625, 0.75]


def test_an_lr_in_a_tensor_stays_one_in_an_optimizer_state():
    p = torch.nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([p], lr=torch.tensor(0.3))
    oracle = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.37)
    stepped(opt, oracle)
    binding = js.Binding((js.Rule("w", "w", "i -> i", shape=(2,)),))
    moved = js.optim.load_state_dict(sgd().init({"w": jnp.ones(2)}), opt.state_dict(), binding)
    ours = schedulers.StepLR(1)
    state = schedulers.load_state_dict(ours, oracle.state_dict())
    for _ in range(5):
        stepped(opt, oracle)
        state, moved = ours.step(state, moved)
        lr = js.optim.state_dict(moved, binding)["param_groups"][0]["lr"]
        assert (lr.dtype, lr.shape) == ("float32", ())
        assert lr == pytest.approx(opt.param_groups[0]["lr"].item(), rel=1e-6)


def test_the_state_after_a_plan_is_torchs():
    case = CASES["sequential"]
    opt = optimizer(case)
    oracle = case.torch(opt)
    groups = [{"params": key, "lr": lr} for key, lr in zip("abc", LRS, strict=True)]
    tx = sgd(momentum=0.9, param_groups=groups)
    state, ours = case.ours.init(tx.init({key: jnp.ones(2) for key in "abc"}))
    begun = param_groups(ours)
    ours = schedulers.plan(case.ours, state, ours, steps=50).apply(ours, 45)
    state, _ = case.ours.step(state, begun, times=45)
    stepped(opt, oracle, 45)
    assert shown(schedulers.state_dict(state)) == shown(oracle.state_dict())
    assert [group["lr"] for group in param_groups(ours)] == oracle.get_last_lr()


def test_numbers_that_are_set_compile_nothing_anew():
    cycle = schedulers.CyclicLR(0.01, 0.2, step_size_up=3)
    state, opt = cycle.init(adam().init({"w": jnp.ones(3)}))
    shape = jax.tree.structure(opt)
    for _ in range(7):
        state, opt = cycle.step(state, opt)
        assert jax.tree.structure(opt) == shape


def test_a_schedule_waits_for_the_optimizer_that_was_warmed_up():
    """Two schedulers on one optimizer, by turns: the second starts from what the first has left."""
    case = CASES["step"]
    opt = optimizer(case)
    theirs = [
        torch.optim.lr_scheduler.LinearLR(opt, 0.25, total_iters=4),
        torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.3, patience=0),
    ]
    warmup, plateau = (
        schedulers.LinearLR(0.25, total_iters=4),
        schedulers.ReduceLROnPlateau(factor=0.3, patience=0),
    )
    first, groups = warmup.init(copy.deepcopy(groups_of(optimizer(case))))
    second, groups = plateau.init(groups)
    for t in range(9):
        if t < 4:
            stepped(opt, theirs[0])
            first, groups = warmup.step(first, groups)
        else:
            theirs[1].step(1.0)
            second, groups = plateau.step(second, groups, jnp.ones(()))
        assert shown(groups) == shown(groups_of(opt))
    assert groups[2]["lr"] < 0.02


STEP = schedulers.StepLR(3)
STATE, PLAIN = STEP.init([{"lr": 0.1}, {"lr": 0.2}])
TWO = [{"lr": 0.1, "momentum": 0.0}] * 2


@pytest.mark.parametrize(
    "scheduler, found, words",
    [
        (STEP, {}, 'has a list "_last_lr"'),
        (
            STEP,
            schedulers.ExponentialLR(0.5).init(TWO)[0],
            'file lacks "step_size", and has none besides',
        ),
        (
            schedulers.ExponentialLR(0.5),
            STATE,
            'the file lacks none, and has "step_size" besides, as StepLR does',
        ),
        (STEP, {**STATE, "gamma": "0.1"}, "\"gamma\" of StepLR is '0.1', which is no number"),
        (
            STEP,
            {**STATE, "base_lrs": [0.1]},
            '"base_lrs" of StepLR is to be a list with one',
        ),
        (STEP, {**STATE, "_last_lr": ["a", 0.1]}, "and not numbers alone"),
        (
            schedulers.MultiStepLR([3]),
            {**schedulers.MultiStepLR([3]).init(TWO)[0], "milestones": {"3": 1}},
            '"milestones" of MultiStepLR is to count epochs',
        ),
        (
            schedulers.CyclicLR(0.1, 0.2),
            schedulers.CyclicLR(0.1, 0.2, cycle_momentum=False).init(TWO)[0],
            "has cycle_momentum=False; so give it to CyclicLR as well",
        ),
        (
            schedulers.OneCycleLR(0.1, 9, cycle_momentum=False),
            schedulers.OneCycleLR(0.1, 9).init(TWO)[0],
            "has cycle_momentum=True; so give it to OneCycleLR as well",
        ),
        (schedulers.LambdaLR([float, float, float]), STATE, "Expected 2 lr_lambdas, but got 3"),
        (schedulers.ChainedScheduler([STEP]), {"_last_lr": [0.1]}, 'the file lacks "_schedulers"'),
        (
            schedulers.ChainedScheduler([STEP]),
            schedulers.ChainedScheduler([STEP, STEP]).init(TWO)[0],
            "ChainedScheduler is made of 1 schedulers, and the file's is not",
        ),
        (
            schedulers.ChainedScheduler([STEP]),
            schedulers.ChainedScheduler([schedulers.ConstantLR()]).init(TWO)[0],
            r'ChainedScheduler\[0\] \(StepLR\) has other keys .* "step_size", "gamma", .* as ConstantLR does',
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(scheduler, found, words):
    with pytest.raises(OptimizerError, match=words):
        schedulers.load_state_dict(scheduler, found)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: STEP.step(STATE, PLAIN[:1]), "is of 2 param_groups, and the optimizer has 1"),
        (lambda: STEP.step(STATE, TWO), "'initial_lr' is not specified in param_groups\\[0\\]"),
        (lambda: STEP.step(STATE, PLAIN, 1.0), "StepLR.step takes no metrics"),
        (lambda: STEP.step(STATE, PLAIN, epoch=3), "StepLR.step takes no epoch"),
        (lambda: STEP.init([{"params": [0]}]), 'have no "lr"'),
        (lambda: STEP.init(optax.sgd(0.1).init({})), "holds no states of a jaxstate optimizer"),
        (
            lambda: jax.jit(lambda opt: STEP.step(STATE, opt)[1])(sgd().init({"w": jnp.ones(2)})),
            r"steps on the host.* plan = js.optim.schedulers.plan\(scheduler, state, opt, steps\)",
        ),
        (lambda: schedulers.ReduceLROnPlateau().step({}, TWO), "needs the metric"),
        (lambda: schedulers.ReduceLROnPlateau().step({}, TWO, 1.0, times=2), "one metrics is one step"),
        (lambda: schedulers.schedule(schedulers.ReduceLROnPlateau(), {}, TWO, 3), "cannot be planned"),
        (lambda: schedulers.LambdaLR(3), "lr_lambda should be a function, but got int"),  # type: ignore
        (lambda: schedulers.CyclicLR([0.1], 0.2).init(TWO), "base_lr has 1 values, param_groups has 2"),
        (lambda: schedulers.CyclicLR(0.1, 0.2, mode="other"), "mode is invalid and scale_fn is None"),
        (lambda: schedulers.CyclicLR(0.1, 0.2).init([{"lr": 0.1}]), "must support momentum or beta1"),
        (
            lambda: schedulers.CyclicLR(0.1, 0.2).init(sgd().init({"w": jnp.ones(2)})),
            r"no momentum_buffer; make it with js.optim.sgd\(lr=0.1, momentum=0.9",
        ),
        (lambda: schedulers.OneCycleLR(0.1), "You must define either total_steps OR"),
        (lambda: schedulers.OneCycleLR(0.1, 0), "Expected positive integer total_steps, but got 0"),
        (
            lambda: schedulers.OneCycleLR(0.1, epochs=2, steps_per_epoch=0),
            "Expected positive integer steps_per_epoch, but got 0",
        ),
        (lambda: schedulers.OneCycleLR(0.1, 9, pct_start=2.0), "between 0 and 1 pct_start, but got 2.0"),
        (
            lambda: schedulers.OneCycleLR(0.1, 9).step(*schedulers.OneCycleLR(0.1, 9).init(TWO), times=10),
            "Tried to step 10 times. The specified number of total steps is 9",
        ),
        (lambda: schedulers.SWALR(0.1, anneal_strategy="sine"), "instead got sine"),
        (lambda: schedulers.SWALR(0.1, anneal_epochs=-1), "equal or greater than 0, got -1"),
        (lambda: schedulers.ConstantLR(factor=1.5), "expected to be between 0 and 1"),
        (lambda: schedulers.LinearLR(start_factor=0), "greater than 0 and less or equal to 1"),
        (lambda: schedulers.LinearLR(end_factor=2), "Ending multiplicative factor"),
        (lambda: schedulers.CosineAnnealingWarmRestarts(0), "positive integer T_0, but got 0"),
        (lambda: schedulers.CosineAnnealingWarmRestarts(3, 0), "integer T_mult >= 1, but got 0"),
        (lambda: schedulers.ReduceLROnPlateau(factor=1.0), "Factor should be < 1.0."),
        (lambda: schedulers.ReduceLROnPlateau("mean"), "mode mean is unknown!"),
        (lambda: schedulers.ReduceLROnPlateau(threshold_mode="x"), "threshold mode x is unknown!"),
        (lambda: schedulers.ReduceLROnPlateau(min_lr=[0.1]).init(TWO), "expected 2 min_lrs, got 1"),
        (lambda: schedulers.SequentialLR([], []), "at least one scheduler"),
        (lambda: schedulers.SequentialLR([STEP], [3]), "number of schedulers 1 and the number of milestones"),
        (lambda: schedulers.ChainedScheduler([STEP, schedulers.ReduceLROnPlateau()]), "at index 1"),
    ],
)
def test_what_torch_refuses_is_refused(call, words):
    with pytest.raises(OptimizerError, match=words):
        call()


def test_torch_cannot_enter_a_scheduler_of_schedulers_either():
    late = schedulers.SequentialLR([STEP, schedulers.ChainedScheduler([STEP])], milestones=[2])
    state, groups = late.step(*late.init(TWO))
    with pytest.raises(OptimizerError, match="torch cannot enter a ChainedScheduler at a milestone"):
        late.step(state, groups)
    opt = optimizer(CASES["step"])
    inner = torch.optim.lr_scheduler.ChainedScheduler([torch.optim.lr_scheduler.StepLR(opt, 3)])
    first = torch.optim.lr_scheduler.StepLR(opt, 3)
    oracle = torch.optim.lr_scheduler.SequentialLR(opt, [first, inner], milestones=[2])
    stepped(opt, oracle)
    with pytest.raises(NotImplementedError):
        stepped(opt, oracle)
