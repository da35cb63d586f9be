"""Adafactor and Muon, which another layout would change: same training as torch's, on torch's parameters."""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import BOUND, DIFFERENT, EQUAL, Pair, as_tensors, cases_of, to_jax, to_torch  # noqa: E402
from torch.optim._muon import _zeropower_via_newtonschulz  # noqa: E402

from jaxstate.optim import adafactor, adamw, labels, load_state_dict, muon, state_dict  # noqa: E402

MATRICES = DIFFERENT.only(["fc.weight", "attn.in_proj", "h.*.weight", "wte.weight", "head.weight"])


def Adafactor(params, foreach, **options):
    return torch.optim.Adafactor(params, **tensors(options))


def Muon(params, foreach, **options):
    return torch.optim.Muon(params, **tensors(options))


def tensors(options):
    return {key: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for key, v in options.items()}


@cache
def jitted(make, binding):
    """One step of this optimizer with any options: they are in its state."""
    update = make(binding=binding).update

    @jax.jit
    def step(params, opt, grads):
        updates, opt = update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    return step


class Bound(Pair):
    """A pair whose transformation computes in torch's layout."""

    make = staticmethod(adafactor)

    def jax_steps(self, arrays, opt, start, stop):
        params, step = to_jax(self.binding, arrays), jitted(self.make, self.binding)
        for grads in self.grads[start:stop]:
            params, opt = step(params, opt, to_jax(self.binding, grads))
        return to_torch(self.binding, params), opt


class BoundMuon(Bound):
    """Muon, whose matrices are rounded to bfloat16 dozens of times in a step.

    Where a sum lies between two such numbers, the order of its terms decides, in torch as here. That befalls
    one of the parameters now and then, and moves it by parts in a hundred; the others agree in float32.
    """

    make = staticmethod(muon)

    def check(self, k, n):
        for found, reference in self.ends(k, n):
            far = max(np.max(np.abs(reference[name] - self.start[name])) for name in self.start)
            *most, worst = sorted(np.max(np.abs(found[x] - reference[x])) / far for x in self.start)
            assert max(most) <= 1e-4 and worst <= 0.05, (most, worst)


def table(**values):
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


def named(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


ADAFACTOR = [
    {"lr": 0.7 if options["weight_decay"] else 0.05, "beta2_decay": -0.6, **options}
    for options in table(
        eps=[(None, 1e-3), (0.3, 2.0)], d=[1.0, 1.7], weight_decay=[0.0, 0.07], maximize=[False, True]
    )
    if (options["d"] == 1.0) == (bool(options["weight_decay"]) == options["maximize"])
]
MUON = [
    *(
        {"lr": 0.05, "weight_decay": 0.07, "momentum": 0.8, **options}
        for options in table(nesterov=[False, True], adjust_lr_fn=[None, "match_rms_adamw"])
    ),
    {"lr": 0.05, "momentum": 0.3, "eps": 30.0, "adjust_lr_fn": "original"},
    {"lr": 0.05, "ns_steps": 3, "ns_coefficients": (3.0, -3.2, 1.2)},
    {"lr": 0.05, "weight_decay": 0.0, "ns_steps": 9, "ns_coefficients": (1.5, -0.5, 0.0)},
]


CASES = [
    *((options, "float32") for options in ADAFACTOR + cases_of("Adafactor")),
    *((options, "float64") for options in ADAFACTOR[::2]),
]


@pytest.mark.parametrize("options, dtype", CASES, ids=lambda x: x if isinstance(x, str) else named(x))
def test_adafactor_goes_on_in_the_other_library(options, dtype):
    with jax.enable_x64(dtype == "float64"):
        # Where the steps are small beside the parameters, the roundings of the parameters are not.
        scale = 1 if options in ADAFACTOR else 1e-4
        tx = adafactor(**options, binding=DIFFERENT)
        pair = Bound(Adafactor, tx, DIFFERENT, options, dtype=dtype, scale=scale)
        errors = pair.errors(4, 5)
    assert max(errors) <= BOUND[dtype], errors


@pytest.mark.parametrize("options", MUON + cases_of("Muon"), ids=named)
def test_muon_goes_on_in_the_other_library(options):
    BoundMuon(Muon, muon(**options, binding=MATRICES), MATRICES, options).check(3, 3)


def test_muon_of_float64():
    options = {"lr": 0.05, "weight_decay": 0.07}
    with jax.enable_x64(True):
        pair = BoundMuon(Muon, muon(**options, binding=MATRICES), MATRICES, options, dtype="float64")
        pair.check(3, 3)


def test_large_matrices_differ_as_torch_differs_from_itself():
    rng, ours, itself = np.random.default_rng(0), [], []
    tx, params = muon(lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False), {"w": jnp.zeros((128, 128))}
    update, opt = jax.jit(tx.update), tx.init(params)
    for _ in range(5):
        g, order = rng.normal(size=(128, 128)).astype("f"), rng.permutation(128)
        expected, largest = _orthogonal(g), np.max(np.abs(_orthogonal(g)))
        shuffled = _orthogonal(g[order])[np.argsort(order)]
        found = -np.asarray(update({"w": g}, opt, params)[0]["w"])
        itself.append(np.max(np.abs(expected - shuffled)) / largest)
        ours.append(np.max(np.abs(expected - found)) / largest)
    assert 0.002 < max(itself) and max(ours) < 2 * max(itself)


def _orthogonal(g):
    g = torch.from_numpy(g.copy())
    return _zeropower_via_newtonschulz(g, (3.4445, -4.775, 2.0315), 5, 1e-7).float().numpy()


@pytest.mark.parametrize(
    "pair",
    [
        lambda: Bound(Adafactor, adafactor(binding=EQUAL), EQUAL, {}),
        lambda: BoundMuon(Muon, muon(binding=EQUAL), EQUAL, {}),
    ],
    ids=["adafactor", "muon"],
)
def test_equal_shapes_go_by_name(pair):
    for found, reference in pair().ends(2, 3):
        for name in reference:
            assert np.max(np.abs(found[name] - reference[name])) < 1e-6, name


def test_groups_are_chosen_by_torchs_names_and_numbered_in_their_own_order():
    names = DIFFERENT.parameters
    here = {
        "bias": [n for n in names if n.endswith("bias")],
        "rest": [n for n in names if not n.endswith("bias")],
    }
    options = {"eps": (1e-3, 1e-2), "d": 1.3}
    groups = [
        {"params": here["bias"], "weight_decay": 0.3, "name": "x"},
        {"params": here["rest"], "lr": 0.2},
    ]
    selectors = [{**groups[0], "params": "*bias"}, {**groups[1], "params": here["rest"]}]
    tx = adafactor(**options, param_groups=selectors, binding=DIFFERENT)
    pair = Bound(Adafactor, tx, DIFFERENT, options, groups)
    assert max(pair.errors(3, 3)) <= BOUND["float32"]


def is_matrix(name):
    return len(DIFFERENT.shapes[name]) == 2


def test_muon_for_matrices_and_adamw_for_the_rest():
    options = {"muon": {"lr": 0.05, "weight_decay": 0.2}, "adamw": {"lr": 0.01, "betas": (0.8, 0.95)}}
    tx = optax.partition(
        {"muon": muon(**options["muon"], binding=DIFFERENT), "adamw": adamw(**options["adamw"])},
        lambda params: labels(
            params, {"muon": is_matrix, "adamw": lambda name: not is_matrix(name)}, DIFFERENT
        ),
    )
    pair = Bound(None, tx, DIFFERENT, {})
    step = jax.jit(lambda p, opt, g: (lambda u, o: (optax.apply_updates(p, u), o))(*tx.update(g, opt, p)))
    params = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in pair.start.items()}
    matrices, rest = ([p for n, p in params.items() if is_matrix(n) == chosen] for chosen in (True, False))
    oracles = {
        "muon": torch.optim.Muon(matrices, **options["muon"]),
        "adamw": torch.optim.AdamW(rest, **options["adamw"]),
    }
    ours, opt = to_jax(DIFFERENT, pair.start), tx.init(to_jax(DIFFERENT, pair.start))
    for grads in pair.grads[:3]:
        ours, opt = step(ours, opt, to_jax(DIFFERENT, grads))
        for name, p in params.items():
            p.grad = torch.from_numpy(grads[name].copy())
        [oracle.step() for oracle in oracles.values()]
    found = to_torch(DIFFERENT, ours)
    errors = sorted(np.max(np.abs(found[name] - p.detach().numpy())) for name, p in params.items())
    assert max(errors[:-1]) < 2e-6 and errors[-1] < 1e-2
    for label, oracle in oracles.items():
        inner = opt.inner_states[label]
        osd = state_dict(inner, DIFFERENT)
        theirs = oracle.state_dict()
        assert list(osd["state"]) == list(theirs["state"])
        assert all(
            np.allclose(osd["state"][i][key], value, rtol=1e-5, atol=1e-6)
            for i, entry in theirs["state"].items()
            for key, value in entry.items()
        )
        oracle.load_state_dict(as_tensors(osd))
        again = state_dict(load_state_dict(inner, theirs, DIFFERENT), DIFFERENT)
        assert again["param_groups"] == osd["param_groups"] == theirs["param_groups"]
        assert all(
            np.array_equal(again["state"][i][key], value.numpy())
            for i, entry in theirs["state"].items()
            for key, value in entry.items()
        )


def test_the_epsilon_of_bfloat16_is_its_own():
    start = np.linspace(-2, 2, 48, dtype=np.float32).reshape(6, 8)
    slope = (1e-4 * np.sin(np.arange(48.0))).astype(np.float32).reshape(6, 8)
    p = torch.nn.Parameter(torch.from_numpy(start).bfloat16())
    p.grad = torch.from_numpy(slope).bfloat16()
    torch.optim.Adafactor([p], lr=0.5).step()
    params = {"w": jnp.asarray(start, jnp.bfloat16)}
    tx = adafactor(lr=0.5)
    updates, opt = jax.jit(tx.update)({"w": jnp.asarray(slope, jnp.bfloat16)}, tx.init(params), params)
    moved = np.asarray(optax.apply_updates(params, updates)["w"], np.float32)
    far = np.max(np.abs(p.detach().float().numpy() - np.asarray(params["w"], np.float32)))
    assert np.max(np.abs(moved - p.detach().float().numpy())) < 0.05 * far
    assert opt.buffers["row_var"]["w"].dtype == jnp.bfloat16
    assert opt.param_groups[0].to_torch()["eps"] == (None, 1e-3)


def test_an_epsilon_that_torch_leaks_from_one_dtype_into_another_is_asked_for():
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.full((3, 4), 0.5)}
    with pytest.raises(ValueError, match=r"\['bfloat16', 'float32'\].*whichever comes first"):
        adafactor().init(params)
    tensors = [
        torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16)),
        torch.nn.Parameter(torch.full((3, 4), 0.5)),
    ]
    tensors[0].grad, tensors[1].grad = torch.ones(2, 3, dtype=torch.bfloat16), torch.full((3, 4), 1e-5)
    torch.optim.Adafactor(tensors).step()
    tx = adafactor(eps=(2.0**-7, 1e-3))
    grads = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.full((3, 4), 1e-5)}
    updates, _ = tx.update(grads, tx.init(params), params)
    moved = tensors[1].detach().numpy() - 0.5
    assert np.allclose(updates["b"], moved, rtol=1e-3)
    apart = adafactor(param_groups=[{"params": "a"}, {"params": "b"}])
    assert np.all(apart.update(grads, apart.init(params), params)[0]["b"] < 2 * moved)
