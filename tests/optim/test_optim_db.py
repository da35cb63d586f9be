"""PyTorch's own table of optimizers, `optim_db`, as the judge: its arguments, run in both libraries.

A case is run, or it stands in `unsupported_cases.py` with the reason; there is no third way.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")

from optimizer_pair import BOUND, Pair, as_tensors  # noqa: E402
from torch.testing._internal import common_optimizers as table  # noqa: E402
from unsupported_cases import ELSEWHERE, ERRORS, INPUTS, OPTIMIZERS  # noqa: E402

import jaxstate.optim as optim  # noqa: E402
from jaxstate.binding import Binding, Rule  # noqa: E402
from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import load_state_dict, state_dict  # noqa: E402

BINDING = Binding((Rule("w", "kernel", "i o -> o i", shape=(4, 3)), Rule("b", "bias", "o -> o", shape=(5,))))
INFOS = {info.name: info for info in table.optim_db}
HERE = [info for name, info in INFOS.items() if name not in {**OPTIMIZERS, **ELSEWHERE}]


def constructor(name):
    return {"SparseAdam": "sparse_adam"}.get(name, name.lower())


def shown(value):
    if isinstance(value, torch.Tensor):
        return "tensor"
    return f"({', '.join(map(shown, value))})" if isinstance(value, tuple) else repr(value)


def named(info, case):
    return f"{info.name}({', '.join(f'{key}={shown(value)}' for key, value in case.kwargs.items())})"


def plain(value):
    """An argument as a user without torch gives it."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def ours(info, kwargs):
    return getattr(optim, constructor(info.name))(**{key: plain(value) for key, value in kwargs.items()})


def cases(device):
    found = {
        named(info, case): (info, case) for info in HERE for case in info.optim_inputs_func(device=device)
    }
    return found


CASES = cases("cpu") | cases("cuda")
RUN = {name: case for name, case in CASES.items() if name not in INPUTS}


def test_the_list_is_of_cases_that_there_are():
    assert set(INPUTS) <= set(CASES) and len(RUN) >= 69
    assert {name for name in INFOS if not hasattr(optim, constructor(name))} == set(OPTIMIZERS)
    for name, file in ELSEWHERE.items():
        assert f'cases_of("{name}")' in Path(__file__).with_name(file).read_text()


@pytest.mark.parametrize("name", RUN)
def test_every_case_trains_on_in_the_other_library(name):
    info, case = RUN[name]
    tx = ours(info, case.kwargs)
    pair = Pair(info.optim_cls, tx, BINDING, case.kwargs, scale=1e-4)
    assert max(pair.errors(4, 5)) <= BOUND["float32"]


@pytest.mark.parametrize("name", INPUTS)
def test_what_is_listed_does_not_run_in_torch(name):
    info, case = CASES[name]
    pair = Pair(info.optim_cls, None, BINDING, case.kwargs)
    with pytest.raises(AssertionError, match="If capturable=True"):
        pair.torch_steps(*pair.torch(pair.start), 0, 1)


def implementations():
    for name, (info, case) in RUN.items():
        for flag in ("foreach", "differentiable", *(["fused"] if "cpu" in info.supports_fused_on else [])):
            if not (flag == "foreach" and isinstance(case.kwargs.get("lr"), torch.Tensor)):
                yield pytest.param(info, {**case.kwargs, flag: True}, id=f"{name}-{flag}")


@pytest.mark.parametrize("info, kwargs", list(implementations()))
def test_flags_of_implementations_are_kept(info, kwargs):
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(5)}
    torch_params = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(5))]
    theirs = info.optim_cls(torch_params, **kwargs).state_dict()["param_groups"]
    osd = state_dict(ours(info, kwargs).init(params), BINDING)
    found = as_tensors(osd)["param_groups"]
    assert [list(group) for group in found] == [list(group) for group in theirs]
    assert repr(plain_groups(found)) == repr(plain_groups(theirs))
    again = load_state_dict(ours(info, kwargs).init(params), osd, BINDING)
    assert repr(state_dict(again, BINDING)["param_groups"]) == repr(osd["param_groups"])


def plain_groups(groups):
    return [{key: plain(value) for key, value in group.items()} for group in groups]


WRONG = {
    f"{info.name}: {case.optimizer_error_input.desc}": (info, case)
    for info in HERE
    for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
}


def is_listed(case):
    return case.optimizer_error_input.desc in ERRORS


@pytest.mark.parametrize("name", [name for name, (_, case) in WRONG.items() if not is_listed(case)])
def test_wrong_arguments_are_refused_in_torchs_words(name):
    info, case = WRONG[name]
    with pytest.raises(OptimizerError, match=case.error_regex):
        refused(info, case.optimizer_error_input)


@pytest.mark.parametrize("name", [name for name, (_, case) in WRONG.items() if is_listed(case)])
def test_what_is_listed_cannot_be_said_here(name):
    info, case = WRONG[name]
    assert case.optimizer_error_input.params is not None
    refused(info, case.optimizer_error_input)


def refused(info, given):
    """Ours with the arguments of a case; its parameters are a tree and its groups choose from it by name."""
    params, groups = {"w": jnp.ones(3), "v": jnp.ones(2)}, None
    if isinstance(given.params, list) and all(isinstance(group, dict) for group in given.params):
        ids = [id(group["params"]) for group in given.params]
        names = {i: name for i, name in zip(dict.fromkeys(ids), params, strict=False)}
        groups = [{**group, "params": names[i]} for group, i in zip(given.params, ids, strict=True)]
        params = {name: params[name] for name in names.values()}
    kwargs = {key: plain(value) for key, value in given.kwargs.items()}
    getattr(optim, constructor(info.name))(**kwargs, param_groups=groups).init(params)


def test_the_listed_errors_are_of_the_table():
    assert set(ERRORS) <= {case.optimizer_error_input.desc for _, case in WRONG.values()}


def test_numpy_numbers_are_torchs_tensors():
    state = optim.sgd(lr=np.array(0.1, "f")).init({"w": jnp.ones(2)})
    assert isinstance(optim.param_groups(state)[0]["lr"], np.ndarray)
