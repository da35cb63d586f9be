"""Options for optimizers that move each element by itself: numbers not the default, each flag both ways."""

import pytest

from jaxstate import optim

torch = pytest.importorskip("torch")


def rows(shared, *varied):
    return [{**shared, **row} for row in varied]


CASES = {
    "asgd": rows(
        {"lr": 0.05, "alpha": 0.6},
        {"lambd": 0.01},
        {"lambd": 0.3, "t0": 4, "weight_decay": 0.07},
        {"lambd": 0.2, "t0": 2.5, "maximize": True},
    ),
    "adadelta": rows({"lr": 7.0, "rho": 0.83, "eps": 1e-3}, {}, {"weight_decay": 0.07, "maximize": True}),
    "adagrad": rows(
        {"lr": 0.05},
        {},
        {"lr_decay": 0.13, "eps": 1e-3, "weight_decay": 0.07},
        {"lr_decay": 0.5, "initial_accumulator_value": 0.2, "maximize": True},
    ),
    "adamax": rows(
        {"lr": 0.05, "betas": (0.83, 0.97)}, {"eps": 1e-2}, {"weight_decay": 0.07, "maximize": True}
    ),
    "nadam": rows(
        {"lr": 0.05, "betas": (0.83, 0.997), "momentum_decay": 0.02},
        {"eps": 1e-3},
        {"weight_decay": 0.07, "maximize": True},
        {"weight_decay": 0.07, "decoupled_weight_decay": True},
    ),
    "radam": rows(
        {"lr": 0.05},
        {"betas": (0.83, 0.997), "eps": 1e-3},
        {"betas": (0.4, 0.85), "weight_decay": 0.07, "maximize": True},
        {"betas": (0.9, 0.6667), "weight_decay": 0.07, "decoupled_weight_decay": True},
        {"betas": (0.9, 0.5), "weight_decay": 0.07},
    ),
    "rmsprop": rows(
        {"lr": 0.05, "alpha": 0.83},
        {"eps": 1e-2},
        {"momentum": 0.7, "weight_decay": 0.07},
        {"centered": True, "maximize": True},
        {"momentum": 0.7, "centered": True, "weight_decay": 0.07},
    ),
    "rprop": rows({"lr": 0.05, "etas": (0.4, 1.3)}, {}, {"step_sizes": (0.04, 0.06), "maximize": True}),
    "sgd": rows({"lr": 0.05}, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.07}),
    "adam": rows({"lr": 0.05}, {"betas": (0.83, 0.997), "amsgrad": True}),
    "adamw": rows({"lr": 0.05}, {"betas": (0.83, 0.997), "weight_decay": 0.07}),
}

CLASSES = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__ if name.lower() in CASES}

# The optimizer, torch's class, ours, the options.
NEW = [
    pytest.param(CLASSES[name], getattr(optim, name), row, id=f"{name}-{i}")
    for name, found in CASES.items()
    if name not in ("sgd", "adam", "adamw")
    for i, row in enumerate(found)
]
ONE_EACH = [
    pytest.param(CLASSES[name], getattr(optim, name), found[-1], id=name) for name, found in CASES.items()
]
