"""Archives of torch.export.save: the state_dict that torch.export.load gives, bit for bit."""

import json
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import repacked
from torch import nn
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE, serialize

from jaxstate.io import load, load_constants
from jaxstate.io._dtypes import BY_EXPORT

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:No complete tensor found"
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 2))
        self.fc = nn.Linear(2, 3)
        self.tied = self.fc
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("bf", torch.arange(3).to(torch.bfloat16))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("f8", torch.arange(3.0).to(torch.float8_e5m2))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("transient", torch.full((3,), 7.0), persistent=False)
        self.plain = torch.full((3,), 5.0)

    def forward(self, x):
        return self.norm(self.tied(x)) @ self.w + self.plain.sum() + self.transient.sum()


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return torch.export.export(Net().eval(), (torch.randn(4, 2),))


@pytest.fixture(scope="module")
def exported(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    torch.export.save(program, path)
    return path


def test_state_dict(exported, same, program):
    theirs = torch.export.load(exported)
    ours = load(exported, verify=True)
    assert set(ours) == set(program.state_dict)
    same(dict(ours), dict(theirs.state_dict))
    assert ours["fc.weight"].ctypes.data == ours["tied.weight"].ctypes.data
    assert ours["turned"].strides == (4, 12)


def test_constants(exported, same):
    theirs = torch.export.load(exported).constants
    ours = load_constants(exported, mmap=False)
    assert set(ours) == {"plain", "transient"} == set(theirs)
    same({k: ours[k] for k in sorted(ours)}, {k: theirs[k] for k in sorted(theirs)})


def test_from_before_torch_2_8(tmp_path, same, program):
    """The parts are torch's own; only the archive around them is made here."""
    parts = serialize(program)
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", parts.exported_program)
        archive.writestr("serialized_state_dict.pt", parts.state_dict)
        archive.writestr("serialized_constants.pt", parts.constants)
        archive.writestr("serialized_example_inputs.pt", parts.example_inputs)
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
    same(dict(load(tmp_path / "a.pt2")), dict(torch.export.load(tmp_path / "a.pt2").state_dict))


def test_numbers_of_dtypes():
    """All that torch writes, and no others."""
    theirs = {
        int(number): str(dtype).removeprefix("torch.") for dtype, number in _TORCH_TO_SERIALIZE_DTYPE.items()
    }
    assert dict(BY_EXPORT) == theirs


def _config(change):
    def edit(name, raw):
        if name != "data/weights/model_weights_config.json":
            return raw
        config = json.loads(raw)
        change(config["config"])
        return json.dumps(config).encode()

    return edit


def _meta(key, **fields):
    return _config(lambda config: config[key]["tensor_meta"].update(fields))


HOSTILE = {
    "another dtype": (_meta("w", dtype=8), "ends at element|unfolds"),
    "no such dtype": (_meta("w", dtype=99), "lacks a proper dtype"),
    "a dtype that is a list": (_meta("w", dtype=[7]), "lacks a proper"),
    "larger than its bytes": (_meta("w", sizes=[{"as_int": 3}, {"as_int": 3}]), "ends at element"),
    "negative size": (_meta("w", sizes=[{"as_int": -3}, {"as_int": 2}]), "proper offset, shape"),
    "size as text": (_meta("w", sizes=[{"as_int": "3"}, {"as_int": 2}]), "proper offset, shape"),
    "symbolic size": (_meta("w", sizes=[{"as_expr": "s0"}, {"as_int": 2}]), "lacks a proper"),
    "sizes of another type": (_meta("w", sizes=3), "lacks a proper"),
    "offset": (_meta("w", storage_offset={"as_int": 5}), "ends at element"),
    "unfolds": (_meta("w", sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}]), "unfolds"),
    "sparse": (_meta("w", layout=1), "not strided"),
    "no storage": (_config(lambda c: c["w"].update(path_name="weight_99")), "no entry.*weight_99"),
    "storage elsewhere": (_config(lambda c: c["w"].update(path_name="../../archive_format")), "no entry"),
    "storage without a name": (_config(lambda c: c["w"].update(path_name=[])), "lacks a proper"),
    "no place": (_config(lambda c: c["w"].pop("tensor_meta")), "lacks a proper"),
    "not a dict": (_config(lambda c: c.update(w=3)), "not a map"),
    "a pickle": (_config(lambda c: c["w"].update(use_pickle=True)), "weight_0|zip"),
    "no values": (lambda name, raw: b"" if name == "data/weights/weight_0" else raw, "ends at element"),
    "two programs": (lambda name, raw: raw, "holds model, other"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_config_that_does_not_fit(refused, exported, tmp_path, name):
    change, message = HOSTILE[name]
    raw = repacked(exported, change)
    if name == "two programs":
        (tmp_path / "two.pt2").write_bytes(raw)
        with zipfile.ZipFile(tmp_path / "two.pt2", "a") as archive:
            archive.writestr("net/models/other.json", "{}")
        raw = (tmp_path / "two.pt2").read_bytes()
    refused(raw, message)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"config": {"a": 1, "a": 2}}', b"\xff", b"[" * 100_000])
def test_a_config_that_is_none(refused, exported, text):
    refused(
        repacked(exported, lambda name, raw: text if name.endswith("weights_config.json") else raw),
        "model_weights_config.json",
    )


def test_a_tensor_that_was_pickled(exported, loaded):
    """As torch.export stores tensors of a subclass."""
    import io

    file = io.BytesIO()
    torch.save(torch.arange(6.0).reshape(2, 3), file)

    def change(name, raw):
        raw = file.getvalue() if name == "data/weights/weight_0" else raw
        return _config(lambda config: config["w"].update(use_pickle=True))(name, raw)

    with zipfile.ZipFile(exported) as archive:
        config = json.loads(archive.read("net/data/weights/model_weights_config.json"))["config"]
    assert config["w"]["path_name"] == "weight_0"
    assert np.array_equal(loaded(repacked(exported, change))["w"], np.arange(6.0).reshape(2, 3))
