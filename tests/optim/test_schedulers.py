"""Schedulers against torch's own: every number, key, order and type, for 200 steps, to the last bit."""

import copy
import io

import pytest
import torch
from scheduler_pair import CASES, groups_of, optimizer, shown, stepped

import jaxstate as js
from jaxstate.optim import schedulers
from jaxstate.optim.schedulers import load_state_dict, state_dict

# torch itself steps a nested scheduler while it constructs the outer one.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step..` before:UserWarning")

STOPS = [(name, k) for name, case in CASES.items() for k in case.stops]


def plain_groups(case):
    """torch's groups before any scheduler has seen them."""
    return copy.deepcopy(groups_of(optimizer(case)))


@pytest.mark.parametrize("name", CASES)
def test_from_the_first_step_on(name):
    case = CASES[name]
    opt = optimizer(case)
    oracle = case.torch(opt)
    state, groups = case.ours.init(plain_groups(case))
    for _ in range(200):
        assert shown(state_dict(state)) == shown(oracle.state_dict())
        assert shown(groups) == shown(groups_of(opt))
        stepped(opt, oracle)
        state, groups = case.ours.step(state, groups)


@pytest.mark.parametrize("name, k", STOPS)
def test_from_a_file_on(name, k):
    case = CASES[name]
    opt = optimizer(case)
    oracle = case.torch(opt)
    stepped(opt, oracle, k)
    state = load_state_dict(case.other, copy.deepcopy(oracle.state_dict()))
    groups = copy.deepcopy(groups_of(opt))
    for _ in range(200):
        assert shown(state_dict(state)) == shown(oracle.state_dict())
        assert shown(groups) == shown(groups_of(opt))
        stepped(opt, oracle)
        state, groups = case.ours.step(state, groups)


@pytest.mark.parametrize("name, k", STOPS)
def test_back_in_torch(name, k):
    case = CASES[name]
    opt = optimizer(case)
    oracle = case.torch(opt)
    stepped(opt, oracle, k)
    state, groups = case.ours.init(plain_groups(case))
    state, groups = case.ours.step(state, groups, times=k)
    again = optimizer(case)
    resumed = case.torch(again)
    again.load_state_dict({"state": {}, "param_groups": groups})
    resumed.load_state_dict(state_dict(state))
    for _ in range(200):
        assert shown(resumed.state_dict()) == shown(oracle.state_dict())
        assert shown(groups_of(again)) == shown(groups_of(opt))
        stepped(opt, oracle)
        stepped(again, resumed)


@pytest.mark.parametrize("name", CASES)
def test_through_files(name, tmp_path):
    case = CASES[name]
    opt = optimizer(case)
    oracle = case.torch(opt)
    stepped(opt, oracle, 3)
    torch.save({"scheduler": oracle.state_dict()}, tmp_path / "theirs.pt")
    state = load_state_dict(case.ours, js.load(tmp_path / "theirs.pt")["scheduler"])
    assert shown(state_dict(state)) == shown(oracle.state_dict())
    js.save({"scheduler": state_dict(state)}, tmp_path / "ours.pt")
    found = torch.load(tmp_path / "ours.pt", weights_only=True)["scheduler"]
    assert shown(found) == shown(oracle.state_dict())


METRICS = [3.0, 2.5, 2.5, 2.4999, 2.6, 2.7, 2.8, 1.0, 1.2, 1.1, 1.0, 1.0, 0.99999, 0.5, *[0.6] * 60]
PLATEAUS = {
    "rel min": dict(factor=0.37, patience=1, cooldown=2, threshold=0.01, min_lr=[0.01, 0.02, 0.0], eps=1e-3),
    "abs min": dict(factor=0.6, patience=2, threshold=0.05, threshold_mode="abs", min_lr=0.003),
    "rel max": dict(mode="max", factor=0.8, patience=3, threshold=0.2),
    "abs max": dict(mode="max", factor=0.9, patience=0, threshold=0.1, threshold_mode="abs", cooldown=1),
}


@pytest.mark.parametrize("k", [0, 5, 9, 40])
@pytest.mark.parametrize("name", PLATEAUS)
def test_plateaus(name, k):
    opt = optimizer(CASES["step"])
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, **PLATEAUS[name])
    ours = schedulers.ReduceLROnPlateau(**PLATEAUS[name])
    state, groups = ours.init(groups_of(opt))
    assert shown(state_dict(state)) == shown(oracle.state_dict())
    for metric in METRICS[:k]:
        oracle.step(metric)
    state = load_state_dict(schedulers.ReduceLROnPlateau(), oracle.state_dict())
    groups = copy.deepcopy(groups_of(opt))
    again = optimizer(CASES["step"])
    resumed = torch.optim.lr_scheduler.ReduceLROnPlateau(again)
    again.load_state_dict({"state": {}, "param_groups": groups})
    resumed.load_state_dict(state_dict(state))
    for metric in METRICS[k:]:
        oracle.step(torch.tensor(metric, dtype=torch.float64))
        resumed.step(metric)
        state, groups = ours.step(state, groups, metric)
        assert shown(state_dict(state)) == shown(oracle.state_dict()) == shown(resumed.state_dict())
        assert shown(groups) == shown(groups_of(opt)) == shown(groups_of(again))
    assert max(group["lr"] for group in groups) < 1.0


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("T_mult", [1, 3])
def test_fractions_of_epochs(T_mult):
    case = CASES["step"]
    opt = optimizer(case)
    oracle = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=4, T_mult=T_mult)
    ours = schedulers.CosineAnnealingWarmRestarts(T_0=4, T_mult=T_mult)
    state, groups = ours.init(plain_groups(case))
    opt.step()
    for batch in range(160):
        oracle.step(batch / 7)
        state, groups = ours.step(state, groups, epoch=batch / 7)
        assert shown(state_dict(state)) == shown(oracle.state_dict())
    oracle.step()
    state, groups = ours.step(state, groups)
    assert shown((state_dict(state), groups)) == shown((oracle.state_dict(), groups_of(opt)))


@pytest.mark.parametrize("name", ["step", "cosine", "linear", "restarts", "swa", "multiplicative"])
def test_an_lr_in_a_tensor(name):
    case = CASES[name]
    opt = optimizer(case, [torch.tensor(lr) for lr in (0.3, 0.07, 1.9)])
    oracle = case.torch(opt)
    stepped(opt, oracle, 4)
    state = load_state_dict(case.other, oracle.state_dict())
    groups = copy.deepcopy(groups_of(opt))
    for _ in range(50):
        stepped(opt, oracle)
        state, groups = case.ours.step(state, groups)
        found = [group["lr"] for group in groups]
        assert [array.dtype for array in found] == ["float32"] * 3
        expected = [group["lr"].item() for group in opt.param_groups]
        assert [array.item() for array in found] == pytest.approx(expected, rel=1e-6)
        assert [array.item() for array in state["_last_lr"]] == [array.item() for array in found]


@pytest.mark.parametrize(
    "name", ["step", "exponential", "cosine", "linear", "polynomial", "lambda", "restarts", "cyclic"]
)
def test_last_epoch_resumes_without_a_file(name):
    case = CASES[name]
    opt = optimizer(case)
    stepped(opt, case.torch(opt), 6)
    groups = copy.deepcopy(groups_of(opt))
    late = dict(last_epoch=6)
    makers = {
        "step": ("StepLR", dict(step_size=7, gamma=0.83)),
        "exponential": ("ExponentialLR", dict(gamma=0.987)),
        "cosine": ("CosineAnnealingLR", dict(T_max=12, eta_min=0.0031)),
        "linear": ("LinearLR", dict(start_factor=0.13, end_factor=0.71, total_iters=17)),
        "polynomial": ("PolynomialLR", dict(total_iters=150, power=1.7)),
        "lambda": ("LambdaLR", dict(lr_lambda=lambda t: 0.97**t)),
        "restarts": ("CosineAnnealingWarmRestarts", dict(T_0=7, T_mult=2)),
        "cyclic": ("CyclicLR", dict(base_lr=0.01, max_lr=0.2, step_size_up=6)),
    }
    kind, arguments = makers[name]
    oracle = getattr(torch.optim.lr_scheduler, kind)(opt, **arguments, **late)
    ours = getattr(schedulers, kind)(**arguments, **late)
    state, groups = ours.init(groups)
    for _ in range(20):
        assert shown((state_dict(state), groups)) == shown((oracle.state_dict(), groups_of(opt)))
        stepped(opt, oracle)
        state, groups = ours.step(state, groups)


def test_a_cosine_that_lost_count():
    case = CASES["cosine"]
    opt = optimizer(case)
    oracle = case.torch(opt)
    opt.step()
    found = {**oracle.state_dict(), "_step_count": 0, "last_epoch": 7}
    oracle.load_state_dict(found)
    state, groups = load_state_dict(case.other, found), copy.deepcopy(groups_of(opt))
    for _ in range(20):
        oracle.step()
        opt.step()
        state, groups = case.ours.step(state, groups)
        assert shown((state_dict(state), groups)) == shown((oracle.state_dict(), groups_of(opt)))


@pytest.mark.parametrize(
    "name, arguments", [("ConstantLR", dict(factor=0.3, total_iters=0)), ("StepLR", {"step_size": 1})]
)
def test_entering_what_ends_at_once(name, arguments):
    opt = optimizer(CASES["step"])
    kinds = torch.optim.lr_scheduler
    parts = [kinds.ExponentialLR(opt, 0.9), getattr(kinds, name)(opt, **arguments)]
    oracle = kinds.SequentialLR(opt, parts, milestones=[3])
    ours = schedulers.SequentialLR(
        [schedulers.ExponentialLR(0.9), getattr(schedulers, name)(**arguments)], milestones=[3]
    )
    state, groups = ours.init(plain_groups(CASES["step"]))
    for _ in range(8):
        stepped(opt, oracle)
        state, groups = ours.step(state, groups)
        assert shown((state_dict(state), groups)) == shown((oracle.state_dict(), groups_of(opt)))


def test_nothing_given_is_changed():
    case = CASES["nested"]
    opt = optimizer(case)
    found, groups = case.torch(opt).state_dict(), groups_of(opt)
    before = shown((found, groups))
    state = load_state_dict(case.ours, found)
    kept = shown(state)
    case.ours.step(state, groups, times=20)
    assert shown((found, groups)) == before and shown(state) == kept
    assert state_dict(state)["_schedulers"][0] is not state["_schedulers"][0]


def test_a_callable_object_is_not_touched():
    case = CASES["lambdas"]
    opt = optimizer(case)
    state = load_state_dict(case.other, case.torch(opt).state_dict())
    _, groups = case.other.step(state, copy.deepcopy(groups_of(opt)), times=2)
    assert groups[0]["lr"] == 0.3 * 0.9**2
    assert case.other.init([{"lr": 1.0}] * 3)[0]["lr_lambdas"] == [{"base": 3.0}, None, {"base": 4.0}]


def test_a_file_of_an_older_torch():
    opt = optimizer(CASES["step"])
    found = CASES["step"].torch(opt).state_dict()
    older = {**{k: v for k, v in found.items() if k != "_is_initial"}, "verbose": False}
    state = load_state_dict(CASES["step"].other, older)
    assert shown(state_dict(state)) == shown({**found, "verbose": False})


def test_one_step_is_one_epoch_and_several_are_several():
    buffer = io.BytesIO()
    state, groups = schedulers.StepLR(3).init([{"lr": 1.0, "params": [0]}])
    torch.save(state_dict(state), buffer)
    assert schedulers.StepLR(3).step(state, groups, times=0) == (state, groups)
    once = schedulers.StepLR(3).step(*schedulers.StepLR(3).step(state, groups))
    assert once == schedulers.StepLR(3).step(state, groups, times=2)
    assert list(once[1][0]) == ["lr", "initial_lr", "params"]
