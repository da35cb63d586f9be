"""Every scheduler of torch's, with numbers that are no defaults, beside ours."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import lr_scheduler as theirs
from torch.optim.swa_utils import SWALR

from jaxstate.optim import schedulers as ours

LRS = (0.3, 0.07, 1.9)


class Power:
    """A callable object: torch keeps its attributes."""

    def __init__(self, base):
        self.base = base

    def __call__(self, epoch):
        return self.base**epoch


@dataclass(frozen=True)
class Case:
    """One scheduler.

    Args:
        torch: makes it for an optimizer.
        ours: the same.
        other: ours with other numbers, which a file is to replace.
        stops: where to stop: in the middle of something, at the end of something, behind everything.
        adam: True for an optimizer with betas.
    """

    torch: Any
    ours: Any
    other: Any
    stops: tuple[int, ...]
    adam: bool = False


def both(name, other, stops, adam=False, **arguments):
    torch_class = SWALR if name == "SWALR" else getattr(theirs, name)
    make = getattr(ours, name)
    return Case(lambda opt: torch_class(opt, **arguments), make(**arguments), make(**other), stops, adam)


CYCLE = dict(max_lr=[0.5, 0.2, 2.5], base_momentum=[0.7, 0.75, 0.8], max_momentum=0.93)

CASES = {
    "lambda": both("LambdaLR", dict(lr_lambda=lambda t: 0.97**t), (0, 7), lr_lambda=lambda t: 0.97**t),
    "lambdas": both(
        "LambdaLR",
        dict(lr_lambda=[Power(3.0), lambda t: 1 / (1 + t), Power(4.0)]),
        (0, 5),
        lr_lambda=[Power(0.9), lambda t: 1 / (1 + t), Power(0.8)],
    ),
    "multiplicative": both(
        "MultiplicativeLR", dict(lr_lambda=lambda t: 1 - 0.1 / t), (0, 9), lr_lambda=lambda t: 1 - 0.1 / t
    ),
    "step": both("StepLR", dict(step_size=2), (0, 6, 7, 300), step_size=7, gamma=0.83),
    "multi step": both(
        "MultiStepLR", dict(milestones=[1]), (0, 4, 5, 30), milestones=[5, 9, 9, 21], gamma=0.37
    ),
    "constant": both("ConstantLR", {}, (0, 5, 11, 40), factor=0.23, total_iters=11),
    "linear": both("LinearLR", {}, (0, 8, 17, 90), start_factor=0.13, end_factor=0.71, total_iters=17),
    "exponential": both("ExponentialLR", dict(gamma=0.5), (0, 13), gamma=0.987),
    "polynomial": both("PolynomialLR", {}, (0, 60, 149, 160), total_iters=150, power=1.7),
    "cosine": both("CosineAnnealingLR", dict(T_max=3), (0, 5, 12, 13, 24, 25, 130), T_max=12, eta_min=0.0031),
    "cosine to zero": both("CosineAnnealingLR", dict(T_max=3), (0, 49, 50, 51), T_max=50),
    "restarts": both(
        "CosineAnnealingWarmRestarts", dict(T_0=2), (0, 6, 7, 21), T_0=7, T_mult=2, eta_min=0.0017
    ),
    "equal restarts": both("CosineAnnealingWarmRestarts", dict(T_0=2, T_mult=3), (0, 8, 9), T_0=9),
    "one cycle": both(
        "OneCycleLR",
        dict(max_lr=1.0, total_steps=7),
        (0, 80, 103, 150),
        total_steps=419,
        pct_start=0.25,
        div_factor=11.0,
        final_div_factor=123.0,
        **CYCLE,
    ),
    "one cycle, three phases": both(
        "OneCycleLR",
        dict(max_lr=1.0, total_steps=7, three_phase=True),
        (0, 100, 170),
        adam=True,
        epochs=21,
        steps_per_epoch=20,
        anneal_strategy="linear",
        three_phase=True,
        **CYCLE,
    ),
    "one cycle of the lr": both(
        "OneCycleLR",
        dict(max_lr=1.0, total_steps=7, cycle_momentum=False),
        (0, 100),
        max_lr=0.6,
        total_steps=350,
        cycle_momentum=False,
    ),
    "cyclic": both(
        "CyclicLR",
        dict(base_lr=0.1, max_lr=0.2),
        (0, 5, 6, 14, 15),
        base_lr=[0.01, 0.02, 0.03],
        step_size_up=6,
        step_size_down=9,
        mode="triangular2",
        **CYCLE,
    ),
    "cyclic, in a range": both(
        "CyclicLR",
        dict(base_lr=0.1, max_lr=0.2),
        (0, 5, 31),
        adam=True,
        base_lr=0.01,
        max_lr=0.2,
        step_size_up=11,
        mode="exp_range",
        gamma=0.98,
    ),
    "cyclic, of a function": both(
        "CyclicLR",
        dict(base_lr=0.1, max_lr=0.2, cycle_momentum=False, scale_fn=Power(2.0)),
        (0, 3, 8),
        base_lr=0.01,
        max_lr=0.2,
        step_size_up=4,
        cycle_momentum=False,
        scale_fn=Power(0.95),
        scale_mode="iterations",
    ),
    "swa": both("SWALR", dict(swa_lr=1.0), (0, 4, 13, 20), swa_lr=[0.02, 0.3, 0.5], anneal_epochs=13),
    "swa, linear": both(
        "SWALR", dict(swa_lr=1.0), (0, 4, 9), swa_lr=0.02, anneal_epochs=8, anneal_strategy="linear"
    ),
    "swa at once": both("SWALR", dict(swa_lr=1.0), (0, 1), swa_lr=0.02, anneal_epochs=0),
    "sequential": Case(
        lambda o: theirs.SequentialLR(
            o,
            [
                theirs.LinearLR(o, start_factor=0.2, total_iters=6),
                theirs.CosineAnnealingLR(o, T_max=20, eta_min=0.001),
                theirs.MultiStepLR(o, [0, 4], gamma=0.9),
                theirs.CosineAnnealingWarmRestarts(o, T_0=8, T_mult=2),
                theirs.LambdaLR(o, lambda t: 0.9**t),
            ],
            milestones=[6, 30, 40, 70],
        ),
        ours.SequentialLR(
            [
                ours.LinearLR(start_factor=0.2, total_iters=6),
                ours.CosineAnnealingLR(T_max=20, eta_min=0.001),
                ours.MultiStepLR([0, 4], gamma=0.9),
                ours.CosineAnnealingWarmRestarts(T_0=8, T_mult=2),
                ours.LambdaLR(lambda t: 0.9**t),
            ],
            milestones=[6, 30, 40, 70],
        ),
        ours.SequentialLR(
            [
                ours.LinearLR(),
                ours.CosineAnnealingLR(T_max=2),
                ours.MultiStepLR([1]),
                ours.CosineAnnealingWarmRestarts(T_0=1),
                ours.LambdaLR(lambda t: 0.9**t),
            ],
            milestones=[1, 2, 3, 4],
        ),
        (0, 4, 6, 7, 30, 39, 40, 71, 120),
    ),
    "sequential of others": Case(
        lambda o: theirs.SequentialLR(
            o,
            [
                theirs.ConstantLR(o, factor=0.5, total_iters=3),
                theirs.PolynomialLR(o, total_iters=9, power=0.7),
                theirs.MultiplicativeLR(o, lambda t: 0.99),
                SWALR(o, swa_lr=0.01, anneal_epochs=5),
                theirs.StepLR(o, 4, gamma=0.7),
                theirs.ExponentialLR(o, 0.99),
            ],
            milestones=[5, 12, 20, 30, 45],
        ),
        ours.SequentialLR(
            [
                ours.ConstantLR(factor=0.5, total_iters=3),
                ours.PolynomialLR(total_iters=9, power=0.7),
                ours.MultiplicativeLR(lambda t: 0.99),
                ours.SWALR(swa_lr=0.01, anneal_epochs=5),
                ours.StepLR(4, gamma=0.7),
                ours.ExponentialLR(0.99),
            ],
            milestones=[5, 12, 20, 30, 45],
        ),
        ours.SequentialLR(
            [
                ours.ConstantLR(),
                ours.PolynomialLR(),
                ours.MultiplicativeLR(lambda t: 0.99),
                ours.SWALR(swa_lr=1.0),
                ours.StepLR(1),
                ours.ExponentialLR(0.5),
            ],
            milestones=[1, 2, 3, 4, 5],
        ),
        (0, 5, 14, 20, 31, 50),
    ),
    "sequential, entering cycles": Case(
        lambda o: theirs.SequentialLR(
            o,
            [
                theirs.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
                theirs.LinearLR(o, start_factor=0.3, total_iters=5),
                theirs.ConstantLR(o, factor=0.4, total_iters=6),
                theirs.OneCycleLR(o, max_lr=0.7, total_steps=250),
            ],
            milestones=[8, 15, 25],
        ),
        ours.SequentialLR(
            [
                ours.CyclicLR(0.01, 0.1, step_size_up=3, cycle_momentum=False),
                ours.LinearLR(start_factor=0.3, total_iters=5),
                ours.ConstantLR(factor=0.4, total_iters=6),
                ours.OneCycleLR(max_lr=0.7, total_steps=250),
            ],
            milestones=[8, 15, 25],
        ),
        ours.SequentialLR(
            [
                ours.CyclicLR(0.1, 0.2, cycle_momentum=False),
                ours.LinearLR(),
                ours.ConstantLR(),
                ours.OneCycleLR(max_lr=0.1, total_steps=2),
            ],
            milestones=[1, 2, 3],
        ),
        (0, 9, 16, 26),
    ),
    "chained": Case(
        lambda o: theirs.ChainedScheduler(
            [
                theirs.ConstantLR(o, factor=0.3, total_iters=8),
                theirs.ExponentialLR(o, 0.97),
                theirs.MultiStepLR(o, [6, 11], gamma=0.6),
            ]
        ),
        ours.ChainedScheduler(
            [
                ours.ConstantLR(factor=0.3, total_iters=8),
                ours.ExponentialLR(0.97),
                ours.MultiStepLR([6, 11], gamma=0.6),
            ]
        ),
        ours.ChainedScheduler([ours.ConstantLR(), ours.ExponentialLR(0.5), ours.MultiStepLR([1])]),
        (0, 4, 8, 11, 30),
    ),
    "nested": Case(
        lambda o: theirs.SequentialLR(
            o,
            [
                theirs.SequentialLR(
                    o,
                    [
                        theirs.ChainedScheduler([theirs.ConstantLR(o), theirs.ExponentialLR(o, 0.9)]),
                        theirs.StepLR(o, 3),
                    ],
                    milestones=[4],
                ),
                theirs.ExponentialLR(o, 0.95),
            ],
            milestones=[11],
        ),
        ours.SequentialLR(
            [
                ours.SequentialLR(
                    [
                        ours.ChainedScheduler([ours.ConstantLR(), ours.ExponentialLR(0.9)]),
                        ours.StepLR(3),
                    ],
                    milestones=[4],
                ),
                ours.ExponentialLR(0.95),
            ],
            milestones=[11],
        ),
        ours.SequentialLR(
            [
                ours.SequentialLR(
                    [
                        ours.ChainedScheduler([ours.ConstantLR(0.1), ours.ExponentialLR(0.1)]),
                        ours.StepLR(9),
                    ],
                    milestones=[1],
                ),
                ours.ExponentialLR(0.1),
            ],
            milestones=[2],
        ),
        (0, 2, 3, 4, 11, 20),
    ),
    "chained of sequential": Case(
        lambda o: theirs.ChainedScheduler(
            [
                theirs.SequentialLR(o, [theirs.LinearLR(o), theirs.CosineAnnealingLR(o, 30)], milestones=[5]),
                theirs.StepLR(o, 6, gamma=0.8),
            ]
        ),
        ours.ChainedScheduler(
            [
                ours.SequentialLR([ours.LinearLR(), ours.CosineAnnealingLR(30)], milestones=[5]),
                ours.StepLR(6, gamma=0.8),
            ]
        ),
        ours.ChainedScheduler(
            [
                ours.SequentialLR([ours.LinearLR(0.1), ours.CosineAnnealingLR(3)], milestones=[1]),
                ours.StepLR(1),
            ]
        ),
        (0, 3, 5, 6, 40),
    ),
}


def optimizer(case, lrs=LRS):
    """torch's, with a group for each lr; the parameters get no gradient."""
    rows = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    kind = torch.optim.AdamW if case.adam else torch.optim.SGD
    opt = kind(rows, lr=0.5, **({} if case.adam else {"momentum": 0.9}))
    return opt


def stepped(opt, scheduler, times=1):
    """Steps of torch's, in the order that it wants."""
    for _ in range(times):
        opt.step()
        scheduler.step()


def groups_of(opt):
    """torch's groups as a checkpoint has them."""
    return opt.state_dict()["param_groups"]


def shown(value):
    """A value with its types and its order of keys, to the last bit."""
    return repr(value)
