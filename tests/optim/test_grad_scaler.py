"""DynamicScale against torch.amp.GradScaler: the same scale after every step, finite or not."""

import jax
import jax.numpy as jnp
import pytest
import torch
from flax.training.dynamic_scale import DynamicScale

from jaxstate.errors import OptimizerError
from jaxstate.optim import grad_scaler

FINITE = [True] * 5 + [False, True, True, False, False] + [True] * 9 + [False] + [True] * 4


class Oracle:
    """A GradScaler on its own."""

    def __init__(self, **options):
        self.scaler = torch.amp.GradScaler("cpu", **options)
        self.p = torch.nn.Parameter(torch.ones(2))
        self.opt = torch.optim.SGD([self.p], lr=0.0)

    def step(self, finite):
        self.scaler.scale(torch.zeros(()))
        self.p.grad = torch.full((2,), 1.0 if finite else float("inf"))
        self.scaler.step(self.opt)
        self.scaler.update()
        return self.scaler.state_dict()


@jax.jit
def ours_step(scale, finite):
    slope = jnp.where(finite, 1.0, jnp.inf)
    return scale.value_and_grad(lambda p: p * slope)(jnp.ones(()))[0]


OPTIONS = [
    dict(init_scale=1024.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=3),
    dict(init_scale=2.0**15, growth_factor=2.0, backoff_factor=0.5, growth_interval=1),
    dict(init_scale=640.0, growth_factor=1.5, backoff_factor=0.75, growth_interval=4),
]


@pytest.mark.parametrize("k", [0, 2, 3, 6, 10])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_scales_both_ways(options, k):
    oracle = Oracle(**options)
    for finite in FINITE[:k]:
        oracle.step(finite)
    scale = grad_scaler.load_state_dict(DynamicScale(), oracle.scaler.state_dict())
    back = Oracle()
    back.scaler.load_state_dict(grad_scaler.state_dict(scale))
    seen = set()
    for finite in FINITE[k:]:
        expected = oracle.step(finite)
        scale = ours_step(scale, finite)
        assert repr(grad_scaler.state_dict(scale)) == repr(expected) == repr(back.step(finite))
        seen.add(expected["scale"])
    assert len(seen) > 2


def test_loading_compiles_nothing_anew():
    scale = grad_scaler.load_state_dict(DynamicScale(), Oracle(**OPTIONS[0]).scaler.state_dict())
    step = jax.jit(lambda scale: ours_step(scale, True))
    for _ in range(3):
        scale = step(scale)
    assert step._cache_size() == 1


def test_a_disabled_scaler_is_refused_in_torchs_words():
    disabled = torch.amp.GradScaler("cpu", enabled=False).state_dict()
    with pytest.raises(RuntimeError) as theirs:
        Oracle().scaler.load_state_dict(disabled)
    with pytest.raises(OptimizerError) as ours:
        grad_scaler.load_state_dict(DynamicScale(), disabled)
    assert str(ours.value) == str(theirs.value)


def test_other_dicts_are_refused():
    good = Oracle().scaler.state_dict()
    with pytest.raises(OptimizerError, match='lacks "_growth_tracker" and has "tracker" besides'):
        bad = {**{k: v for k, v in good.items() if k != "_growth_tracker"}, "tracker": 1}
        grad_scaler.load_state_dict(DynamicScale(), bad)
    with pytest.raises(OptimizerError, match='"scale" of a GradScaler'):
        grad_scaler.load_state_dict(DynamicScale(), {**good, "scale": "large"})
    tensors = {key: torch.tensor(value) for key, value in good.items()}
    assert grad_scaler.state_dict(grad_scaler.load_state_dict(DynamicScale(), tensors)) == good


def test_a_floor_stays_and_is_not_written():
    scale = grad_scaler.load_state_dict(DynamicScale(minimum_scale=1.0), Oracle().scaler.state_dict())
    assert scale.minimum_scale == 1.0
    with pytest.raises(OptimizerError, match=r"scale.replace\(minimum_scale=None\)"):
        grad_scaler.state_dict(scale)
    assert grad_scaler.state_dict(scale.replace(minimum_scale=None)) == Oracle().scaler.state_dict()
