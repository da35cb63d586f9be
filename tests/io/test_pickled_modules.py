"""Modules, optimizers and schedulers that were pickled whole, against their own `state_dict()`."""

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from jaxstate.errors import FileError
from jaxstate.io import Opaque, Storage, state_dict_of

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source", "ignore:.*quantized tensor")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("transient", torch.full((2,), 7.0), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.a = nn.Parameter(torch.randn(2).to(torch.bfloat16))
        self.register_parameter("none", None)
        self.z = nn.Linear(2, 3)
        self.plain = torch.full((4,), 3.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.seq = Inner(), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
        self.tied, self.w, self.off = self.seq[1], self.seq[1].weight, None
        self.layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(11)])
        self.rnn = nn.LSTM(3, 2, 2, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8)
        self.many = nn.ParameterDict({"b": nn.Parameter(torch.ones(1)), "a": nn.Parameter(torch.ones(2))})
        self.some = nn.ParameterList([nn.Parameter(torch.full((2,), float(i))) for i in range(3)])


@pytest.fixture(params=["pt", "legacy", "protocol 4"])
def pickled(request, loaded):
    """What jaxstate reads of an object that torch pickled whole, and what torch reads back."""

    def roundtrip(obj):
        file = io.BytesIO()
        options = {"_use_new_zipfile_serialization": False} if request.param == "legacy" else {}
        torch.save(obj, file, pickle_protocol=4 if request.param == "protocol 4" else 2, **options)
        file.seek(0)
        return loaded(file.getvalue()), torch.load(file, weights_only=False)

    return roundtrip


def without_metadata(module):
    return OrderedDict(module.state_dict())  # a copy has none


def test_a_module(pickled, same):
    ours, theirs = pickled(Net())
    assert isinstance(ours, Opaque) and ours.name.endswith("Net")
    same(state_dict_of(ours), without_metadata(theirs))
    assert state_dict_of(ours)["w"] is state_dict_of(ours)["tied.weight"]


def test_a_module_in_a_checkpoint_with_its_optimizer(pickled, same, net, trained):
    other = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer = torch.optim.Adam(
        [
            {"params": [net[2].weight, net[0].bias], "lr": 0.3},
            {"params": [net[0].weight], "betas": (0.5, 0.6)},
        ]
    )
    trained(net, optimizer, 2)
    ours, theirs = pickled({"epoch": 3, "net": nn.DataParallel(net), "opt": optimizer, "other": other})
    same(state_dict_of(ours["net"]), without_metadata(theirs["net"]))
    same(state_dict_of(ours["opt"]), theirs["opt"].state_dict())
    same(state_dict_of(ours["other"]), other.state_dict())
    assert state_dict_of(ours["opt"])["param_groups"][1]["params"] == [2]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_ids_of_a_group_that_names_a_parameter_twice(pickled, same):
    a, b, c = (nn.Parameter(torch.full((2,), float(i))) for i in range(3))
    optimizer = torch.optim.SGD([{"params": [a, b, a]}, {"params": [c]}], lr=0.1, momentum=0.9)
    for p in (a, b, c):
        p.grad = p.detach() + 1
    optimizer.step()
    ours, theirs = pickled(optimizer)
    same(state_dict_of(ours), theirs.state_dict())


def test_state_of_what_is_in_no_group(loaded):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.state["global"] = {"step": 3}
    assert state_dict_of(loaded(saved(optimizer)))["state"] == {"global": {"step": 3}}
    optimizer.state[nn.Parameter(torch.ones(3))] = {"step": 4}
    with pytest.raises(FileError, match="state of a ndarray that none of its groups names"):
        state_dict_of(loaded(saved(optimizer)))


def test_schedulers(pickled, same):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    kinds = torch.optim.lr_scheduler
    parts = [kinds.LinearLR(optimizer, total_iters=3), kinds.CosineAnnealingLR(optimizer, 10)]
    wholes = [
        kinds.MultiStepLR(optimizer, [2, 5], 0.3),
        kinds.ReduceLROnPlateau(optimizer, patience=3),
        kinds.SequentialLR(optimizer, parts, [3]),
    ]
    for whole in wholes:
        ours, theirs = pickled(whole)
        same(state_dict_of(ours), theirs.state_dict())


def test_tensors_without_a_numpy_form_stay_records(loaded):
    holder = nn.Module()
    holder.register_buffer("coo", torch.eye(2).to_sparse())
    holder.register_buffer("q", torch.quantize_per_tensor(torch.arange(3.0), 0.5, 1, torch.qint8))
    file = io.BytesIO()
    torch.save(holder, file)
    ours = state_dict_of(loaded(file.getvalue()))
    assert list(ours) == ["coo", "q"] and isinstance(ours["q"].args[0], Storage)


def saved(obj):
    file = io.BytesIO()
    torch.save(obj, file)
    return file.getvalue()


def replaced(module, **attributes):
    module.__dict__.update(attributes)
    return module


class Strange(nn.Module):
    def __reduce__(self):
        return Strange, (), (1, 2)


def hook(module, destination, prefix, metadata):
    return None


def hooked(module):
    module.register_state_dict_post_hook(hook)
    return module


REFUSED = {
    "'1' .*BatchNorm1d.*computes": lambda: nn.Sequential(nn.Linear(1, 1), hooked(nn.BatchNorm1d(1))),
    "'0' .*SpectralNorm|'0' .*Linear.*computes": lambda: nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(2, 2))
    ),
    "'0' .*torch.ao.*computes": lambda: torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(1, 1))
    ),
    "'0' .*Strange.* not a module with its": lambda: nn.Sequential(Strange()),
    "record .*Linear.* lacks one of": lambda: replaced(nn.Linear(1, 1), _buffers=None),
    "'x' .*int.* not a module": lambda: replaced(nn.Module(), _modules={"x": 3}),
    "no set": lambda: replaced(nn.Module(), _non_persistent_buffers_set=[]),
    "key 'a.b' twice": lambda: replaced(
        nn.Module(),
        _parameters={"a.b": nn.Parameter(torch.ones(1))},
        _modules={"a": replaced(nn.Module(), _parameters={"b": nn.Parameter(torch.ones(2))})},
    ),
    "record .*Counter|due, not a": lambda: {"a": 1},
    "LambdaLR keeps functions": lambda: torch.optim.lr_scheduler.LambdaLR(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), float
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("message", REFUSED)
def test_what_computes_its_state_dict_is_refused(loaded, message):
    with pytest.raises(FileError, match=message):
        state_dict_of(loaded(saved(REFUSED[message]())))


def test_a_module_of_a_torch_without_transient_buffers(loaded):
    """Before 1.6 there was no such set."""
    module = nn.BatchNorm1d(2)
    del module.__dict__["_non_persistent_buffers_set"]
    ours = state_dict_of(loaded(saved(module)))
    assert list(ours) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert np.array_equal(ours["running_var"], [1, 1])


def test_modules_that_share_each_other_do_not_unfold(loaded):
    """Twenty lines of code, a million keys and more."""
    module = nn.Linear(1, 1)
    for _ in range(20):
        module = nn.Sequential(OrderedDict(a=module, b=module))
    with pytest.raises(FileError, match="unfolds|more than 1000000 keys"):
        state_dict_of(loaded(saved(module)))
