"""Archives of torch.jit.save: the state_dict that torch.jit.load gives, bit for bit and in its order."""

import re
import zipfile
from collections import OrderedDict
from typing import Optional  # noqa: F401  TorchScript reads annotations by this name

import numpy as np
import pytest
import torch
from hostile_files import repacked
from torch import nn

from jaxstate.errors import FileError
from jaxstate.io import Opaque, load, load_constants, save

pytestmark = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support", "ignore::DeprecationWarning", "ignore:.*quantized tensor", "ignore:Sparse"
)


class Inner(nn.Module):
    optional: Optional[torch.Tensor]  # noqa: UP045

    def __init__(self):
        super().__init__()
        self.z = nn.Linear(2, 3)
        self.register_buffer("transient", torch.full((2,), 7.0), persistent=False)
        self.register_buffer("optional", torch.full((2,), 8.0))
        self.register_buffer("nothing", None)
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.a = nn.Parameter(torch.randn(2))
        self.register_parameter("none", None)
        self.plain, self.tensors = torch.full((4,), 3.0), [torch.ones(2)]

    def forward(self, x):
        return self.z(x) * self.turned.sum() + self.plain.sum()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.seq = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
        self.tied, self.w = self.seq[1], self.seq[1].weight
        self.layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(11)])
        self.rnn = nn.LSTM(3, 2, 2, bidirectional=True)

    def forward(self, x):
        return self.seq(self.inner(x))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("scripted") / "net.pt"
    torch.jit.script(Net()).save(path)
    return path


def assert_same_state_dict(ours, path, same):
    theirs = OrderedDict(torch.jit.load(path).state_dict())  # a copy has no `_metadata`
    same(ours, theirs)
    return theirs


@pytest.mark.parametrize("mmap", [True, False])
def test_scripted(scripted, same, mmap):
    theirs = assert_same_state_dict(load(scripted, mmap=mmap, verify=True), scripted, same)
    assert "inner.turned" in theirs and not {"inner.plain", "inner.optional"} & set(theirs)


def test_what_is_tied_stays_tied(scripted):
    ours = load(scripted)
    assert ours["w"].ctypes.data == ours["seq.1.weight"].ctypes.data == ours["tied.weight"].ctypes.data
    assert ours["inner.turned"].strides == (4, 12)


def test_traced(tmp_path, same):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    torch.jit.trace(net, torch.randn(4, 2)).save(tmp_path / "a.pt")
    assert list(assert_same_state_dict(load(tmp_path / "a.pt"), tmp_path / "a.pt", same)) == list(
        net.state_dict()
    )


def test_for_mobile(tmp_path, same):
    torch.jit.script(nn.Linear(2, 3))._save_for_lite_interpreter(str(tmp_path / "a.ptl"))
    assert_same_state_dict(load(tmp_path / "a.ptl"), tmp_path / "a.ptl", same)


def test_into_a_module_of_torch(scripted, tmp_path):
    """The state_dict that we write of it is one for the module that was scripted."""
    ours = load(scripted)
    save(OrderedDict((k, v) for k, v in ours.items() if k != "inner.transient"), tmp_path / "b.pt")
    theirs = torch.load(tmp_path / "b.pt", weights_only=True)
    net = Net()
    assert net.load_state_dict(theirs, strict=False).missing_keys == ["inner.optional"]
    assert np.array_equal(net.inner.a.detach().numpy(), ours["inner.a"])


class Named(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.full((2,), float(len(name))))

    def forward(self, x: torch.Tensor):
        return x


def test_names_of_any_kind(tmp_path, same):
    torch.jit.script(Named("a-b", "1w", "a b", "\u00fc", "forward_")).save(tmp_path / "a.pt")
    assert_same_state_dict(load(tmp_path / "a.pt"), tmp_path / "a.pt", same)


@pytest.mark.parametrize("name", ['q"x', "b\\s", "n\nl"])
def test_names_that_torch_writes_and_cannot_read(tmp_path, name):
    torch.jit.script(Named("w", name)).save(tmp_path / "a.pt")
    with pytest.raises(RuntimeError):
        torch.jit.load(tmp_path / "a.pt")
    with pytest.raises(FileError, match="lists of names that torch cannot read"):
        load(tmp_path / "a.pt")


class Holder(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("x", value)

    def forward(self, x: torch.Tensor):
        return x


def test_every_dtype(tmp_path, same, every_dtype):
    """C++ names a storage class for each dtype, where Python has none for the newer ones."""
    torch.jit.script(Holder(every_dtype)).save(tmp_path / "a.pt")
    assert_same_state_dict(load(tmp_path / "a.pt"), tmp_path / "a.pt", same)


def test_other_tensors(tmp_path, same):
    conj = torch.tensor([1 + 2j, 3 - 1j]).conj()
    for value in (conj, torch._neg_view(torch.tensor([1.0, -2.0]))):
        torch.jit.script(Holder(value)).save(tmp_path / "a.pt")
        assert_same_state_dict(load(tmp_path / "a.pt"), tmp_path / "a.pt", same)
    quantized = torch.quantize_per_tensor(torch.arange(3.0), 0.5, 1, torch.qint8)
    for value in (torch.eye(2).to_sparse(), quantized, torch.empty(2, device="meta")):
        torch.jit.script(Holder(value)).save(tmp_path / "a.pt")
        assert isinstance(load(tmp_path / "a.pt")["x"], Opaque)


def test_constants(tmp_path):
    """A frozen module has its weights in the code."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).eval()
    torch.jit.freeze(torch.jit.script(net)).save(tmp_path / "a.pt")
    theirs = torch.jit.load(tmp_path / "a.pt").code_with_constants[1].const_mapping
    ours = load_constants(tmp_path / "a.pt")
    assert len(ours) >= 4 and set(ours) == set(theirs)
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value.detach().numpy())
    assert load(tmp_path / "a.pt") == {}


def test_only_programs_have_constants(tmp_path):
    for save_it in (torch.save, lambda obj, path: path.write_bytes(b"GGUF")):
        save_it({"a": 1}, tmp_path / "a.pt")
        with pytest.raises(FileError, match="a.pt: neither.*jaxstate.load"):
            load_constants(tmp_path / "a.pt")


# What cannot be known is refused.


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return (self.w * 2, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = state[0]
        self.training = state[1]

    def forward(self, x):
        return x + self.w


def test_state_of_another_form(tmp_path):
    torch.jit.script(nn.Sequential(Packed())).save(tmp_path / "a.pt")
    with pytest.raises(FileError, match="a.pt: module '0' of class __torch__.*Packed packs its state"):
        load(tmp_path / "a.pt")


def test_packed_weights_of_quantized_layers(tmp_path):
    """torch's own state_dict of them is empty: the weights would be lost."""
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), dtype=torch.qint8)
    torch.jit.script(net).save(tmp_path / "a.pt")
    assert not torch.jit.load(tmp_path / "a.pt").state_dict()
    with pytest.raises(FileError, match="module '0._packed_params'.*packs its state.*torch.jit.load"):
        load(tmp_path / "a.pt")


def _code(change):
    return lambda name, raw: change(raw) if name.endswith(".py") else raw


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: re.sub(rb"  __buffers__ = .*\n", b"", raw), "which of .* are buffers.*before 1.6"),
        (lambda raw: None, "no entry 'code/"),
        (lambda raw: raw + raw, "twice"),
        (lambda raw: b"\xff" + raw, "UTF-8"),
        (lambda raw: raw.replace(b"(Module)", b"(NamedTuple)"), "does not hold a module"),
    ],
)
def test_code_that_says_too_little(refused, scripted, change, message):
    refused(repacked(scripted, _code(change)), message)


def test_code_is_not_run(loaded, scripted, tmp_path):
    """Whatever stands in it, it is text."""
    harm = f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n".encode()
    ours = loaded(repacked(scripted, _code(lambda raw: harm + raw)))
    assert list(ours) == list(load(scripted)) and not (tmp_path / "mark").exists()


def test_the_entries_are_as_torch_writes_them(scripted):
    """What the reader leans on: compressed code, storages that are not."""
    with zipfile.ZipFile(scripted) as archive:
        methods = {(i.filename.split("/")[1], i.compress_type) for i in archive.infolist() if i.file_size}
    assert ("code", zipfile.ZIP_DEFLATED) in methods and ("data", zipfile.ZIP_DEFLATED) not in methods
