"""Optimizer dicts by names, nested and flat, against torch.distributed.checkpoint.state_dict itself."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import adamw, load_state_dict, sgd, state_dict  # noqa: E402
from jaxstate.rules.declared import Tied  # noqa: E402

SHAPES = {"z.weight": (4, 3), "z.bias": (4,), "a.0.weight": (2, 4), "a.0.bias": (2,), "head.weight": (2, 4)}
BINDING = Binding(
    (
        Rule("z.weight", "z.kernel", "i o -> o i", shape=(3, 4)),
        Rule("z.bias", "z.bias", "o -> o", shape=(4,)),
        Rule("a.{l}.weight", "blocks.kernel", "l i o -> o i", l=range(1), shape=(1, 4, 2)),
        Rule("a.{l}.bias", "blocks.bias", "l o -> o", l=range(1), shape=(1, 2)),
        Tied("head.weight", "a.0.weight"),
    )
)
NAMES = BINDING.parameters
OPTIONS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}
FORMS = {"fqn": False, "flat": True}


class Net(torch.nn.Module):
    """Its first registered child sorts last, and two of its weights are one."""

    def __init__(self):
        super().__init__()
        self.z = torch.nn.Linear(3, 4)
        self.a = torch.nn.Sequential(torch.nn.Linear(4, 2))
        self.head = torch.nn.Linear(4, 2, bias=False)
        self.head.weight = self.a[0].weight


def random(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SHAPES[name]).astype("f") for name in NAMES}


START, GRADS = random(0), [random(seed) for seed in range(1, 10)]


def tree(arrays):
    leaves = BINDING.leaves({key: arrays[key] for key in BINDING.keys if key in arrays})
    made = {path: jnp.array(leaf) for path, leaf in leaves.items()}
    return {
        "z": {"kernel": made["z.kernel"], "bias": made["z.bias"]},
        "blocks": {"kernel": made["blocks.kernel"], "bias": made["blocks.bias"]},
    }


def theirs(torch_class, options, groups=None, arrays=START):
    net = Net()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(arrays[name]))
    params = dict(net.named_parameters())
    rows = groups or [{"params": list(params)}]
    return net, torch_class(
        [{**row, "params": [params[n] for n in row["params"]]} for row in rows], **options
    )


def torch_steps(net, opt, start, stop):
    for grads in GRADS[start:stop]:
        for name, p in net.named_parameters():
            p.grad = torch.from_numpy(grads[name].copy())
        opt.step()
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def jax_steps(tx, params, opt, start, stop):
    for grads in GRADS[start:stop]:
        updates, opt = tx.update(tree(grads), opt, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, opt


def as_tensors(x):
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def tensors(osd):
    if "state" not in osd:
        return {key: as_tensors(value) for key, value in osd.items()}
    state = {n: {k: as_tensors(v) for k, v in entry.items()} for n, entry in osd["state"].items()}
    return {"state": state, "param_groups": osd["param_groups"]}


def error(found, expected):
    moved = max(np.abs(expected[n] - START[n]).max() for n in NAMES)
    return max(np.abs(found[n] - expected[n]).max() for n in NAMES) / moved


GROUPS = [
    {"params": ["a.0.bias", "z.bias"], "weight_decay": 0.0, "lr": 0.02},
    {"params": ["a.0.weight", "z.weight"]},
]
OURS = [{"params": "*.bias", "weight_decay": 0.0, "lr": 0.02}, {"params": "*.weight"}]
CASES = {
    "adamw": (torch.optim.AdamW, adamw, OPTIONS, None, None),
    "groups": (torch.optim.AdamW, adamw, OPTIONS, GROUPS, OURS),
    "sgd": (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9, "dampening": 0.25}, GROUPS, OURS),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_training_goes_on_by_names(form, case):
    torch_class, make, options, groups, ours = CASES[case]
    how = StateDictOptions(flatten_optimizer_state_dict=FORMS[form])
    tx = make(**options, param_groups=ours, binding=BINDING)
    reference = torch_steps(*theirs(torch_class, options, groups), 0, 8)

    net, opt = theirs(torch_class, options, groups)
    arrays = torch_steps(net, opt, 0, 4)
    osd = get_optimizer_state_dict(net, opt, options=how)
    assert ("state" in osd) == (form == "fqn")
    loaded = load_state_dict(tx.init(tree(START)), osd, BINDING)
    params, loaded = jax_steps(tx, tree(arrays), loaded, 4, 8)
    moved = BINDING.state_dict({**flat(params)})
    assert error({n: np.asarray(moved[n]) for n in NAMES}, reference) < 2e-6

    params, state = jax_steps(tx, tree(START), tx.init(tree(START)), 0, 4)
    moved = {n: np.array(x) for n, x in BINDING.state_dict(flat(params)).items()}
    net, opt = theirs(torch_class, {**options, "lr": 9.0}, groups_without_options(groups), moved)
    set_optimizer_state_dict(net, opt, tensors(state_dict(state, BINDING, keys=form)), options=how)
    assert error(torch_steps(net, opt, 4, 8), reference) < 2e-6


def groups_without_options(groups):
    return groups and [{"params": row["params"]} for row in groups]


def flat(params):
    return {f"{a}.{b}": leaf for a, row in params.items() for b, leaf in row.items()}


@pytest.mark.parametrize("form", FORMS)
def test_the_keys_are_torchs(form):
    net, opt = theirs(torch.optim.AdamW, OPTIONS, GROUPS)
    torch_steps(net, opt, 0, 2)
    osd = get_optimizer_state_dict(
        net, opt, options=StateDictOptions(flatten_optimizer_state_dict=FORMS[form])
    )
    tx = adamw(**OPTIONS, param_groups=OURS, binding=BINDING)
    again = state_dict(load_state_dict(tx.init(tree(START)), osd, BINDING), BINDING, keys=form)
    if form == "flat":
        assert sorted(again) == sorted(osd)
    else:
        assert sorted(again["state"]) == sorted(osd["state"])
        assert [sorted(g["params"]) for g in again["param_groups"]] == [sorted(g["params"]) for g in GROUPS]


def test_the_three_forms_say_the_same():
    tx = adamw(**OPTIONS, param_groups=OURS, binding=BINDING)
    _, opt = jax_steps(tx, tree(START), tx.init(tree(START)), 0, 3)
    for form in ("id", "fqn", "flat"):
        osd = state_dict(opt, BINDING, keys=form)
        before = copy.deepcopy(osd)
        again = load_state_dict(tx.init(tree(START)), osd, BINDING)
        assert str(state_dict(again, BINDING)) == str(state_dict(opt, BINDING))
        assert str(before) == str(osd)


def fqn(change, form="fqn"):
    tx = adamw(**OPTIONS, param_groups=OURS, binding=BINDING)
    _, opt = jax_steps(tx, tree(START), tx.init(tree(START)), 0, 2)
    osd = state_dict(opt, BINDING, keys=form)
    change(osd)
    return tx.init(tree(START)), osd


def rename(osd):
    osd["param_groups"][0]["params"][0] = "z.bios"
    osd["state"]["z.bios"] = osd["state"].pop("z.bias")


def swap(osd):
    one, other = (group["params"] for group in osd["param_groups"])
    one[0], other[0] = other[0], one[0]


def split(osd):
    group = osd["param_groups"].pop(0)
    osd["param_groups"] += [{**group, "params": [name], "lr": 0.02} for name in group["params"]]


@pytest.mark.parametrize(
    "change, form, words",
    [
        (
            rename,
            "fqn",
            r'(?s)Missing param.*: "z.bias".*Unexpected param.*: "z.bios".*Did you mean',
        ),
        (swap, "fqn", r'group 0 of the optimizer lacks "a.0.weight"|lacks "z.weight"'),
        (split, "fqn", r'group 0 of the optimizer is several groups in the file: "z.bias", "a.0.bias"'),
        (
            lambda osd: osd.update({"param_groups.z.bias.lr": 0.5}),
            "flat",
            r"group 0 of the optimizer has one lr, and the file has 0.5, 0.02",
        ),
        (lambda osd: osd.pop("state.z.bias.exp_avg"), "flat", r'\("z.bias"\) has no "exp_avg"'),
        (lambda osd: osd.update({"state.no.step": 1.0}), "flat", r'Unexpected parameter\(s\): "no"'),
        (lambda osd: osd.pop("param_groups.z.bias.lr"), "flat", "group 0 of the optimizer has one lr"),
    ],
)
def test_names_that_do_not_fit_are_refused(change, form, words):
    opt, osd = fqn(change, form)
    with pytest.raises(OptimizerError, match=words):
        load_state_dict(opt, osd, BINDING)


def test_other_forms_are_refused():
    opt = adamw().init(tree(START))
    with pytest.raises(OptimizerError, match='keys is "id", "fqn" or "flat", not \'names\''):
        state_dict(opt, BINDING, keys="names")  # pyright: ignore[reportArgumentType]
