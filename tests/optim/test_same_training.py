"""Same training: k steps in torch, then n in JAX, are k+n steps in torch, and the other way round."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import BOUND, DIFFERENT, EQUAL, FEW, Pair, jax_step, to_jax, to_torch  # noqa: E402

from jaxstate.optim import adam, adamw, load_state_dict, sgd, state_dict  # noqa: E402


def table(**values):
    """Every combination of the values."""
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


SGD = [
    {"lr": 0.05, **options}
    for options in table(
        momentum=[0.0, 0.9],
        dampening=[0.0, 0.3],
        weight_decay=[0.0, 0.07],
        nesterov=[False, True],
        maximize=[False, True],
    )
    if not options["nesterov"] or (options["momentum"] > 0 and options["dampening"] == 0)
]
ADAM = [
    {"lr": 0.013, "betas": (0.83, 0.997), "eps": 1e-6, **options}
    for options in table(weight_decay=[0.0, 0.07], amsgrad=[False, True], maximize=[False, True])
]
CASES = [
    *((torch.optim.SGD, sgd, options) for options in SGD),
    *((torch.optim.Adam, adam, options) for options in ADAM),
    *((torch.optim.Adam, adam, {**options, "decoupled_weight_decay": True}) for options in ADAM[:2]),
    *((torch.optim.AdamW, adamw, options) for options in ADAM),
]


def named(case):
    return f"{case[0].__name__}-{'-'.join(f'{key}={value}' for key, value in case[2].items() if value)}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_training_goes_on_in_the_other_library(case, dtype):
    torch_class, make, options = case
    with jax.enable_x64(dtype == "float64"):
        pair = Pair(torch_class, make(**options), FEW, options, dtype=dtype)
        errors = pair.errors(5, 6)
    assert max(errors) <= BOUND[dtype], errors


@pytest.mark.parametrize(
    "case",
    [
        (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
        (torch.optim.AdamW, adamw, {"lr": 0.013, "betas": (0.83, 0.997), "weight_decay": 0.07}),
    ],
    ids=named,
)
def test_every_kind_of_rule_carries_the_moments(case):
    torch_class, make, options = case
    pair = Pair(torch_class, make(**options), DIFFERENT, options)
    assert max(pair.errors(4, 4)) <= BOUND["float32"]


GROUPS = [
    {
        "params": [n for n in DIFFERENT.parameters if n.endswith("bias")],
        "weight_decay": 0.0,
        "name": "no decay",
    },
    {"params": [n for n in DIFFERENT.parameters if not n.endswith("bias")], "lr": 0.002},
]
SELECTORS = [
    {**GROUPS[0], "params": "*bias"},
    {**GROUPS[1], "params": lambda name: not name.endswith("bias")},
]


@pytest.mark.parametrize(
    "case",
    [
        (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.AdamW, adamw, {"lr": 0.05, "betas": (0.8, 0.95), "amsgrad": True}),
    ],
    ids=named,
)
def test_groups_are_numbered_in_their_own_order(case):
    torch_class, make, options = case
    tx = make(**options, param_groups=SELECTORS, binding=DIFFERENT)
    pair = Pair(torch_class, tx, DIFFERENT, options, GROUPS)
    assert max(pair.errors(3, 3)) <= BOUND["float32"]


@pytest.mark.parametrize(
    "case",
    [
        (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
        (torch.optim.Adam, adam, {"lr": 0.05, "betas": (0.8, 0.95)}),
    ],
    ids=named,
)
def test_equal_shapes_go_by_name(case):
    torch_class, make, options = case
    pair = Pair(torch_class, make(**options), EQUAL, options)
    assert max(pair.errors(3, 3)) <= BOUND["float32"]


def test_large_parameters_decay_by_the_same_factor():
    # Here 1 - lr * weight_decay is one rounding off where the product is formed in float32, which parameters
    # that are large beside their steps feel every time: 1e-5 instead of 1e-7.
    options = {"lr": 0.097, "weight_decay": 0.05}
    pair = Pair(torch.optim.AdamW, adamw(**options), EQUAL, options)
    pair.start = {name: array * np.float32(100) for name, array in pair.start.items()}
    assert max(pair.errors(5, 7)) <= BOUND["float32"]


FEW_EQUAL = EQUAL.only(["z.weight", "b.weight", "a.*.weight"])


class Skipping(Pair):
    """Some parameters have no gradient in some steps, and one has never any."""

    def __post_init__(self):
        super().__post_init__()
        for t, grads in enumerate(self.grads):
            grads["a.0.weight"] = None
            grads["b.weight"] = None if t % 2 else grads["b.weight"]

    def jax_steps(self, arrays, opt, start, stop):
        params = to_jax(self.binding, arrays)
        for grads in self.grads[start:stop]:
            filled = {name: np.zeros((3, 3), "f") if g is None else g for name, g in grads.items()}
            slopes = to_jax(self.binding, filled)
            slopes["layers_0"]["kernel"] = None
            if grads["b.weight"] is None:
                slopes["z"]["kernel"] = None
            params, opt = jax_step(params, opt, slopes)
        return to_torch(self.binding, params), opt


@pytest.mark.parametrize(
    "case",
    [
        (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
        (torch.optim.AdamW, adamw, {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    ],
    ids=named,
)
def test_a_parameter_without_a_gradient_is_skipped(case):
    torch_class, make, options = case
    pair = Skipping(torch_class, make(**options), FEW_EQUAL, options)
    assert max(pair.errors(3, 4)) <= BOUND["float32"]


def test_steps_of_parameters_differ_and_frozen_ones_have_no_entry():
    pair = Skipping(torch.optim.AdamW, adamw(), FEW_EQUAL, {})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    state = load_state_dict(pair.init(), opt.state_dict(), FEW_EQUAL)
    osd = state_dict(state, FEW_EQUAL)
    names = list(FEW_EQUAL.parameters)
    assert {names[i]: float(entry["step"]) for i, entry in osd["state"].items()} == {
        name: 2.0 if name == "b.weight" else 3.0 for name in names if name != "a.0.weight"
    }


def test_bfloat16_is_computed_in_float32():
    options = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1}
    tx, params = adamw(**options), {"w": jnp.linspace(-2, 2, 50, dtype=jnp.bfloat16)}
    opt = tx.init(params)
    p = torch.nn.Parameter(torch.linspace(-2, 2, 50, dtype=torch.float32).bfloat16())
    oracle = torch.optim.AdamW([p], **options, foreach=False)
    for t in range(10):
        slope = np.sin(np.arange(50) + t).astype(np.float32)
        p.grad = torch.from_numpy(slope).bfloat16()
        oracle.step()
        updates, opt = tx.update({"w": jnp.asarray(slope, jnp.bfloat16)}, opt, params)
        params = optax.apply_updates(params, updates)
    assert params["w"].dtype == opt.buffers["exp_avg"]["w"].dtype == jnp.bfloat16
    # Two roundings of 2^-8 a step where torch, which rounds after each operation, has a few more.
    assert np.max(np.abs(np.asarray(params["w"], np.float32) - p.detach().float().numpy())) < 0.05
