"""What a newcomer passes by mistake: swapped, of another kind, not called. Each is refused in our own words.

Where torch's constructor refuses too, it is the judge of what is refused; where it passes a value that means
nothing (`lr=True`, `maximize="no"`), it is shown to.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.training.dynamic_scale import DynamicScale

import jaxstate as js
from jaxstate.errors import OptimizerError
from jaxstate.optim import grad_scaler, schedulers

BINDING = js.Binding((js.Rule("fc.weight", "w", "i o -> o i"), js.Rule("fc.bias", "b", "o -> o")))
PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) + 1, "b": jnp.array([0.5, 2.0, 3.0])}
TX = js.optim.adamw(lr=0.25)
OPT = TX.update(PARAMS, TX.init(PARAMS), PARAMS)[1]
PART = TX.init({"w": PARAMS["w"]})
OSD = js.optim.state_dict(OPT, BINDING)
SD = js.state_dict(PARAMS, BINDING)
NAN = float("nan")
OURS = {
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "asgd": torch.optim.ASGD,
    "lbfgs": torch.optim.LBFGS,
    "muon": torch.optim.Muon,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
    "sparse_adam": torch.optim.SparseAdam,
}


@pytest.mark.parametrize("lr", ["0.1", None, [0.1], 1j, True], ids=repr)
@pytest.mark.parametrize("name", OURS)
def test_a_rate_is_a_number(name, lr):
    make, their_make = getattr(js.optim, name), OURS[name]
    theirs = [torch.nn.Parameter(torch.ones(2, 3))]
    if lr is True:
        assert their_make(theirs, lr=lr).param_groups[0]["lr"] is True, "torch takes it"
    else:
        with pytest.raises(TypeError):
            their_make(theirs, lr=lr)
    with pytest.raises(OptimizerError, match=r"lr is one number, such as .*, not "):
        make(lr=lr)


@pytest.mark.parametrize("name", OURS)
def test_a_rate_is_no_nan_and_no_row(name):
    make = getattr(js.optim, name)
    with pytest.raises(OptimizerError, match="(Invalid learning rate|should be >= 0 but is): nan"):
        make(lr=NAN)
    with pytest.raises(OptimizerError, match="Tensor lr must be 1-element"):
        make(lr=jnp.ones(2))
    if name != "lbfgs":
        with pytest.raises(OptimizerError, match="(Invalid learning rate|should be >= 0 but is): nan"):
            make(param_groups=[{"params": "*", "lr": NAN}])


GROUPS = "param_groups is a list of dicts"
CHOSEN = r'chosen by a pattern of names, such as "\*.bias", a list of patterns, or a predicate of a name, not'
BOUND = r"a Binding is due, such as binding = js.bind\(model\), .*; this is of type"
MADE = r"optimizer= is what a constructor of js.optim makes, such as js.optim.adamw\(lr=1e-3\), and not"
CONSTRUCTED = {
    "no number": (lambda: js.optim.sgd(weight_decay="1e-2"), "weight_decay is one number, such as 0, not '1"),
    "a yes for a number": (lambda: js.optim.sgd(momentum=True), "momentum is one number, .* not True"),
    "one beta": (lambda: js.optim.adam(betas=0.9), r"betas is 2 numbers, such as \(0.9, 0.999\), not 0.9"),
    "a beta too few": (lambda: js.optim.adam(betas=(0.9,)), r"betas is 2 numbers, .* not \(0.9,\)"),
    "a flag in words": (lambda: js.optim.sgd(maximize="no"), "maximize is True or False, not 'no'"),
    "one group": (lambda: js.optim.sgd(param_groups={"params": "*"}), GROUPS),
    "a pattern for groups": (lambda: js.optim.sgd(param_groups="*"), GROUPS),
    "a number for groups": (lambda: js.optim.sgd(param_groups=3), GROUPS),
    "no groups": (lambda: js.optim.sgd(param_groups=[]), "optimizer got an empty parameter list"),
    "a pattern for a group": (lambda: js.optim.sgd(param_groups=["*"]), "a group says what its parameters"),
    "arrays for params": (lambda: js.optim.sgd(param_groups=[{"params": [jnp.ones(3)]}]), CHOSEN),
    "None for params": (lambda: js.optim.sgd(param_groups=[{"params": None}]), CHOSEN),
    "a set": (lambda: js.optim.sgd(param_groups=[{"params": {"w", "b"}}]), "ordering of tensors in sets"),
    "optax's name": (
        lambda: js.optim.sgd(param_groups=[{"params": "*", "learning_rate": 0.5}]),
        'a group has "learning_rate", which SGD does not read; did you mean "lr"',
    ),
    "a misspelled option": (
        lambda: js.optim.adamw(param_groups=[{"params": "*", "weigth_decay": 0.0}]),
        'a group has "weigth_decay", which AdamW does not read; did you mean "weight_decay"',
    ),
    "no Binding": (lambda: js.optim.sgd(param_groups=[{"params": "*"}], binding=SD).init(PARAMS), BOUND),
}
TAKEN = {
    "None": (lambda: TX.init(None), "init takes the tree of the parameters, not None"),
    "a Python number": (lambda: TX.init({"w": 1.0}), r"parameters can be optimized, not w \(float\)"),
    "text": (lambda: TX.init({"w": PARAMS["w"], "b": "x"}), r"can be optimized, not b \(str\)"),
    "tensors": (lambda: TX.init({"w": torch.ones(2)}), r"can be optimized, not w \(torch.float32\)"),
    "parameters for the state": (
        lambda: TX.update(PARAMS, PARAMS, OPT),
        "takes the state that init made, a S",
    ),
    "a dict for the state": (lambda: TX.update(PARAMS, OSD, PARAMS), "a State, and not what is of type dict"),
    "another state": (
        lambda: js.optim.sgd(lr=lambda count: 0.5).update(PARAMS, OPT, PARAMS),
        "a ScheduledState, and not what is of type State",
    ),
    "parameters for Muon's state": (
        lambda: js.optim.muon(binding=BINDING.only("fc.weight")).update(PART, {"w": PARAMS["w"]}, PART),
        "a State, and not what is of type dict",
    ),
    "a gradient too few": (
        lambda: TX.update({"w": PARAMS["w"]}, OPT, PARAMS),
        "the gradients are no tree like the parameters",
    ),
    "no gradients": (lambda: TX.update(None, OPT, PARAMS), "the gradients are no tree like the parameters"),
}


def changed(option, value, group=True):
    """torch's dict with one thing else."""
    if group:
        return {**OSD, "param_groups": [{**OSD["param_groups"][0], option: value}]}
    return {**OSD, "state": {**OSD["state"], option: value}}


def load(osd, opt=OPT, binding=BINDING, **options):
    return js.optim.load_state_dict(opt, osd, binding, **options)


PLAIN = optax.adamw(0.25).init(PARAMS)
ENVELOPE = 'an optimizer\'s state_dict has "state" and "param_groups", not'
IDS = '"param_groups" is a list of dicts, each of which lists its ids under "params"'
NONE_HERE = "the optimizer state holds no states of a jaxstate optimizer"
LOADED = {
    "the model's": (lambda: load(SD), ENVELOPE + ' "fc.weight", "fc.bias"|"fc.bias", "fc.weight"'),
    "the whole checkpoint": (lambda: load({"model": SD, "optimizer": OSD}), ENVELOPE),
    "an empty dict": (lambda: load({}), ENVELOPE),
    "None": (lambda: load(None), ENVELOPE + " NoneType"),
    "a path": (lambda: load("ckpt.pt"), ENVELOPE + " str"),
    "swapped": (lambda: load(OPT, OSD), NONE_HERE),
    "the transformation": (lambda: load(OSD, TX), NONE_HERE),
    "the parameters": (lambda: load(OSD, PARAMS), NONE_HERE),
    "no Binding": (lambda: load(OSD, binding=None), BOUND + " NoneType"),
    "the model for the Binding": (lambda: load(OSD, binding=PARAMS), BOUND + " dict"),
    "a name for the optimizer": (lambda: load(OSD, PLAIN, optimizer="adamw"), MADE + " 'adamw'"),
    "a constructor": (lambda: load(OSD, PLAIN, optimizer=js.optim.adamw), MADE + " <function adamw"),
    "torch's class": (lambda: load(OSD, PLAIN, optimizer=torch.optim.AdamW), MADE + " <class 'torch"),
    "half a step": (
        lambda: load(OSD, step=1.5),
        "step= is how many steps were taken, a whole number, not 1.5",
    ),
    "a step below zero": (lambda: load(OSD, step=-1), "step= is how many steps were taken"),
    "params that are none": (lambda: load(changed("params", None)), IDS),
    "one id": (lambda: load(changed("params", 2)), IDS),
    "arrays for ids": (lambda: load(changed("params", [np.ones(1), np.ones(1)])), IDS),
    "a dict of ids": (lambda: load(changed("params", {0: "w", 1: "b"})), IDS),
    "one group": (lambda: load({**OSD, "param_groups": OSD["param_groups"][0]}), IDS),
    "names that are none": (
        lambda: load(changed("param_names", 3)),
        "has the names 3, and they are a list of",
    ),
    "a name that is none": (
        lambda: load(changed("param_names", ["fc.weight", 3])),
        "they are a list of text",
    ),
    "a flag of several": (lambda: load(changed("maximize", np.ones(2))), "neither True nor False"),
    "an array for an entry": (lambda: load(changed(0, np.ones(3), group=False)), "is no dict but array"),
    "a rate in words": (lambda: load(changed("lr", "0.1")), "has lr='0.1', which is no number"),
    "a yes for a rate": (lambda: load(changed("lr", True)), "has lr=True, which is no number"),
}
WRITTEN = {
    "swapped": (lambda: js.optim.state_dict(BINDING, OPT), NONE_HERE),
    "no Binding": (lambda: js.optim.state_dict(OPT, {}), BOUND),
    "names": (lambda: js.optim.state_dict(OPT, BINDING, param_names=["w"]), "param_names= is True or False"),
    "abstract": (
        lambda: js.optim.state_dict(jax.eval_shape(TX.init, PARAMS), BINDING),
        "the optimizer's state is abstract or traced and holds no values",
    ),
    "a step below zero": (
        lambda: js.optim.state_dict(PLAIN, BINDING, optimizer=TX, step=-1),
        "step= is how many steps were taken, a whole number, not -1",
    ),
    "a constructor": (lambda: js.optim.state_dict(PLAIN, BINDING, optimizer=js.optim.adamw), MADE),
}
SET = {
    "NaN": (lambda: js.optim.set_hyperparameters(OPT, lr=NAN), "Invalid learning rate: nan"),
    "below zero": (lambda: js.optim.set_hyperparameters(OPT, lr=-0.5), "Invalid learning rate: -0.5"),
    "a beta of two": (lambda: js.optim.set_hyperparameters(OPT, betas=(2.0, 0.9)), "Invalid beta parameter"),
    "a yes": (lambda: js.optim.set_hyperparameters(OPT, lr=True), "lr is one number, .* not True"),
    "text": (lambda: js.optim.set_hyperparameters(OPT, lr="0.1"), "lr is one number, .* not '0.1'"),
    "None": (lambda: js.optim.set_hyperparameters(OPT, lr=None), "lr is one number, .* not None"),
    "a row": (lambda: js.optim.set_hyperparameters(OPT, lr=jnp.ones(2)), "lr is one number, .* not Array"),
    "a schedule": (
        lambda: js.optim.set_hyperparameters(OPT, lr=lambda n: 0.1),
        "lr is one number, .*function",
    ),
    "a group by name": (
        lambda: js.optim.set_hyperparameters(OPT, group="a", lr=0.1),
        "there is no group 'a'",
    ),
    "half a group": (lambda: js.optim.set_hyperparameters(OPT, group=0.0, lr=0.1), "there is no group 0.0"),
    "the transformation": (lambda: js.optim.param_groups(TX), NONE_HERE),
}
GROWN = {
    "a number": (lambda: js.optim.add_param_group(PART, {"params": 3}, PARAMS, optimizer=TX), CHOSEN),
    "a name for the optimizer": (
        lambda: js.optim.add_param_group(PART, {"params": "b"}, PARAMS, optimizer="adamw"),
        MADE,
    ),
    "no Binding": (lambda: js.optim.add_param_group(PART, {"params": "b"}, PARAMS, SD, optimizer=TX), BOUND),
    "a list of labels": (lambda: js.optim.labels(PARAMS, ["*"]), "groups is a dict by label"),
    "no labels": (lambda: js.optim.labels(PARAMS, None), "groups is a dict by label, .* not None"),
    "swapped labels": (lambda: js.optim.labels({"a": "*"}, PARAMS), CHOSEN),
}
STEPS = schedulers.StepLR(step_size=2, gamma=0.5)
STATE = STEPS.init([{"lr": 0.5}])[0]
SCHEDULERS = "a scheduler is what a constructor of js.optim.schedulers makes"
STATES = "a scheduler's state is the first of the two things that init and step return"
SCALE = "a flax.training.dynamic_scale.DynamicScale is due"
DRIVEN = {
    "text": (lambda: schedulers.StepLR(step_size="2"), "StepLR is given step_size='2', which is no number"),
    "NaN": (lambda: schedulers.ExponentialLR(gamma=NAN), "ExponentialLR is given gamma=nan, which is no num"),
    "None": (lambda: schedulers.CosineAnnealingLR(T_max=None), "given T_max=None, which is no number"),
    "zero": (lambda: schedulers.StepLR(step_size=0), "given step_size=0, and divides by it"),
    "one milestone": (
        lambda: schedulers.MultiStepLR(30),
        r"milestones is a list of epochs, \[30, 80\], not 30",
    ),
    "milestones in words": (lambda: schedulers.MultiStepLR(["30"]), "milestones is a list of epochs"),
    "no schedulers": (lambda: schedulers.SequentialLR([1, 2], milestones=[3]), SCHEDULERS),
    "a class": (lambda: schedulers.load_state_dict(schedulers.StepLR, STATE), SCHEDULERS),
    "swapped": (lambda: schedulers.load_state_dict(STATE, STEPS), SCHEDULERS),
    "the optimizer's": (lambda: schedulers.load_state_dict(STEPS, OSD), 'has a list "_last_lr"'),
    "groups to write": (lambda: schedulers.state_dict([{"lr": 0.5}]), STATES),
    "a scheduler to write": (lambda: schedulers.state_dict(STEPS), STATES),
    "no state": (lambda: STEPS.step(None, OPT), STATES),
    "another state": (lambda: STEPS.step(OSD, OPT), STATES),
    "a dict for a scale": (lambda: grad_scaler.state_dict({"scale": 2.0}), SCALE),
    "None for a scale": (lambda: grad_scaler.load_state_dict(None, {}), SCALE),
    "None for a scaler's dict": (
        lambda: grad_scaler.load_state_dict(DynamicScale(), None),
        "is a dict, not of",
    ),
}
ALL = {
    f"{what}: {name}": case
    for what, cases in (
        ("constructor", CONSTRUCTED),
        ("init and update", TAKEN),
        ("load_state_dict", LOADED),
        ("state_dict", WRITTEN),
        ("set_hyperparameters", SET),
        ("add_param_group and labels", GROWN),
        ("schedulers and scalers", DRIVEN),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_mistakes_are_refused_with_what_would_work(case):
    call, words = case
    with pytest.raises(OptimizerError, match=words):
        call()


def test_a_generator_of_patterns_is_read_once():
    tx = js.optim.sgd(param_groups=({"params": (name for name in names)} for names in (["w"], ["b"])))
    assert [group["params"] for group in js.optim.param_groups(tx.init(PARAMS))] == [["w"], ["b"]]


def test_options_that_torch_keeps_are_kept():
    extras = {"name": "slow", "initial_lr": 0.5, "max_momentum": 0.9, "base_momentum": 0.8, "swa_lr": 0.1}
    group = {"params": "*", "momentum": np.float32(0.5), "nesterov": 1, **extras}
    found = js.optim.param_groups(js.optim.sgd(lr=np.float64(0.5), param_groups=[group]).init(PARAMS))[0]
    assert {key: found[key] for key in extras} == extras
    assert (found["lr"], found["momentum"], found["nesterov"]) == (0.5, 0.5, 1)
