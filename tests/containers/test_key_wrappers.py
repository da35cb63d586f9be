"""Wrappers are found where torch's own wrappers put them, taken out, and put back."""

import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.containers import Wrappers, unwrap, wrap
from jaxstate.containers._optimizer_names import unwrap_optimizer

NESTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module")


def net():
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2, bias=False))
    return torch.nn.Sequential(torch.nn.Linear(3, 4), inner)


def compiled_inside():
    outer = net()
    outer[1] = torch.compile(outer[1], backend="eager")
    return torch.compile(torch.nn.DataParallel(outer), backend="eager")


MODELS = {
    "bare": (net, ""),
    "DataParallel": (lambda: torch.nn.DataParallel(net()), "module."),
    "compile": (lambda: torch.compile(net(), backend="eager"), "_orig_mod."),
    "compile of DataParallel, and of a part": (compiled_inside, "_orig_mod.module."),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_keys_and_versions_of_the_bare_model_and_back(name):
    construct, prefix = MODELS[name]
    theirs, wrapped = net().state_dict(), construct().state_dict()
    bare, wrappers = unwrap(wrapped)
    assert list(bare) == list(theirs) and wrappers.prefix == prefix
    assert dict(bare._metadata) == dict(theirs._metadata)
    assert all(bare[key] is wrapped[other] for key, other in zip(bare, wrapped, strict=True))
    back = wrap(bare, wrappers)
    assert list(back) == list(wrapped) and list(back._metadata.items()) == list(wrapped._metadata.items())
    construct().load_state_dict(back, strict=True)
    net().load_state_dict(bare, strict=True)


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ddp_and_fsdp_as_torch_names_them():
    cpu = torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about one process and about FSDP's first version
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

        ddp = torch.nn.parallel.DistributedDataParallel(net())
        outer = net()
        outer[1] = FSDP(outer[1], use_orig_params=True, device_id=cpu)
        fsdp = FSDP(outer, use_orig_params=True, device_id=cpu)
    bare, wrappers = unwrap(ddp.state_dict())
    assert list(bare) == list(net().state_dict()) and wrappers.prefix == "module."
    names = [name for name, _ in torch.nn.Module.named_parameters(fsdp)]
    assert "_fsdp_wrapped_module.1._fsdp_wrapped_module.1.weight" in names
    bare, wrappers = unwrap(dict.fromkeys(names))
    assert list(bare) == [name for name, _ in net().named_parameters()]
    assert dict(wrappers.at) == {"": ("_fsdp_wrapped_module",), "1": ("_fsdp_wrapped_module",)}


def test_the_names_in_optimizers_follow():
    wrapped = torch.nn.DataParallel(net())
    optimizer = torch.optim.SGD(wrapped.named_parameters(), lr=0.3, momentum=0.5)
    names = [name for name, _ in net().named_parameters()]
    osd, wrappers = unwrap_optimizer(optimizer.state_dict())
    assert osd["param_groups"][0]["param_names"] == names and wrappers.prefix == "module."
    assert osd["param_groups"][0]["params"] == [0, 1, 2, 3, 4] and osd["param_groups"][0]["lr"] == 0.3
    by_name = {"state": {"module.a.w": {"step": 1}}, "param_groups": [{"params": ["module.a.w"], "lr": 0.2}]}
    assert unwrap_optimizer(by_name)[0] == {
        "state": {"a.w": {"step": 1}},
        "param_groups": [{"params": ["a.w"], "lr": 0.2}],
    }
    flat = {"state.module.a.w.step": 1, "param_groups.module.a.w.lr": 0.2}
    assert unwrap_optimizer(flat)[0] == {"state.a.w.step": 1, "param_groups.a.w.lr": 0.2}
    assert by_name["param_groups"][0]["params"] == ["module.a.w"]


@pytest.mark.parametrize(
    "keys",
    [
        ("module.fc.weight", "fc.bias"),
        ("encoder.module.weight", "encoder.module.bias"),
        ("fc._orig_mod.weight", "fc.bias"),
        ("module", "module.bias"),
        ("_orig_mod",),
        ("model.weight", "model.bias"),
        (),
    ],
)
def test_what_is_no_wrapper_stays(keys):
    sd = dict.fromkeys(keys, 1.0)
    assert unwrap(sd) == (sd, Wrappers())


def test_a_model_of_other_modules_is_refused():
    with pytest.raises(js.CheckpointError, match=r'these modules were wrapped, .* none: "fc", "conv"'):
        wrap({"lin.weight": 1}, Wrappers((("fc", ("_orig_mod",)), ("conv", ("_orig_mod",)))))


def test_attributes_of_a_state_dict_are_kept(tmp_path):
    js.save({"module.b": np.arange(2.0), "module.a": np.arange(3.0)}, tmp_path / "net.safetensors")
    loaded = js.load(tmp_path / "net.safetensors")
    bare, _ = unwrap(loaded)
    assert isinstance(bare, OrderedDict) and vars(bare).keys() == vars(loaded).keys() != set()


PATHS = st.lists(st.sampled_from(["a", "b", "0", "layers"]), max_size=3).map(".".join)
LEAVES = st.sampled_from(["weight", "bias"])
KEYS = st.lists(
    st.tuples(PATHS, LEAVES).map(lambda pair: ".".join(filter(None, pair))), min_size=1, unique=True
)


@st.composite
def wrapped_keys(draw):
    keys = draw(KEYS)
    modules = {".".join(key.split(".")[:n]) for key in keys for n in range(key.count(".") + 1)}
    names = {path: NESTED + (("module",) if path == "" else ()) for path in modules}
    at = {path: tuple(draw(st.lists(st.sampled_from(names[path]), max_size=2))) for path in sorted(modules)}
    return keys, {path: row for path, row in at.items() if row}


@settings(max_examples=60, deadline=None)
@given(wrapped_keys())
def test_unwrap_undoes_wrap(drawn):
    keys, at = drawn
    sd = {key: object() for key in keys}
    wrapped = wrap(sd, Wrappers(tuple(at.items())))
    bare, wrappers = unwrap(wrapped)
    assert list(bare.items()) == list(sd.items()) and dict(wrappers.at) == at
    assert list(wrap(bare, wrappers).items()) == list(wrapped.items())


def test_a_key_of_many_dots_is_left_alone_in_no_time():
    deep = "module." * 50_000 + "weight"
    assert unwrap({deep: 1}) == ({deep: 1}, Wrappers())
