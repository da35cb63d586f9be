"""Any bytes give a value or a FileError; any plain object goes through both readers and writers.

A longer run, of some minutes: `pytest -m slow tests/io/test_fuzz.py`.
"""

import io
import warnings
import zipfile
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from hostile_files import MAGIC, repacked, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxstate.errors import FileError
from jaxstate.io import load, load_constants, save, state_dict_of

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support", "ignore:Couldn't retrieve source")
FAST = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LONG = settings(FAST, max_examples=10_000)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Small real files: torch's, torch's of protocol 5, and safetensors."""
    folder = tmp_path_factory.mktemp("seeds")
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    obj = {
        "net": net.state_dict(),
        "opt": optimizer.state_dict(),
        "c": torch.ones(2, dtype=torch.complex64).conj(),
    }
    raw = []
    for protocol in (2, 5):
        file = io.BytesIO()
        torch.save(
            {**obj, "np": np.arange(3), "s": np.float32(1), "set": {1}}, file, pickle_protocol=protocol
        )
        raw.append(file.getvalue())
    save({"a": np.ones((2, 2)), "b": np.arange(3, dtype=np.int8)}, folder / "a.safetensors")
    return [*raw, (folder / "a.safetensors").read_bytes()]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Small real files of the other kinds: before 1.6, a module pickled whole, TorchScript, torch.export."""
    folder = tmp_path_factory.mktemp("programs")
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    net(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, folder / "dict", **old)
    torch.save([net, optimizer], folder / "whole", **old)
    torch.save([net, optimizer], folder / "module")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(folder / "script")
        torch.export.save(torch.export.export(net, (torch.ones(3, 2),)), folder / "program.pt2")
    unpacked = repacked(folder / "script", lambda name, raw: raw, zipfile.ZIP_STORED)
    names = ("dict", "whole", "module", "script", "program.pt2")
    return [*((folder / name).read_bytes() for name in names), unpacked]


def read(folder, content):
    (folder / "fuzz").write_bytes(content)
    for reader in (load, partial(load, verify=True), load_constants):
        try:
            value = reader(folder / "fuzz")
            for record in value if type(value) is list else [value]:
                state_dict_of(record)
        except FileError as error:
            assert str(error)


@FAST
@given(data=st.data())
def test_flipped_bytes(tmp_path, seeds, data):
    raw = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    read(tmp_path, raw)


@FAST
@given(data=st.data())
def test_flipped_bytes_of_the_pickle(tmp_path, seeds, data):
    raw = bytearray(data.draw(st.sampled_from(seeds[:2])))
    start = raw.find(b"\x80", 30)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(start, start + 900))] = data.draw(st.integers(0, 255))
    read(tmp_path, raw)


@FAST
@given(data=st.data())
def test_flipped_bytes_of_the_directory(tmp_path, seeds, data):
    raw = bytearray(data.draw(st.sampled_from(seeds[:2])))
    start = raw.find(b"PK\1\2")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(start, len(raw) - 1))] = data.draw(st.integers(0, 255))
    read(tmp_path, raw)


@FAST
@given(data=st.data())
def test_cut_and_inserted(tmp_path, seeds, data):
    raw = data.draw(st.sampled_from(seeds))
    at, until = sorted((data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, len(raw)))))
    read(tmp_path, raw[:at] + data.draw(st.binary(max_size=8)) + raw[until:])


def change(data, raw, start=0):
    """A few bytes of the file changed, at any place from `start` on."""
    raw = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(start, len(raw) - 1))] = data.draw(st.integers(0, 255))
    return bytes(raw)


@FAST
@given(data=st.data())
def test_flipped_bytes_of_streams(tmp_path, programs, data):
    read(tmp_path, change(data, data.draw(st.sampled_from(programs[:2])), start=14))


@FAST
@given(data=st.data())
def test_flipped_bytes_of_programs(tmp_path, programs, data):
    raw = data.draw(st.sampled_from(programs[2:]))
    near = st.sampled_from([b"data.pkl", b"code/", b"config.json", b"constants.pkl", b"PK\1\2"])
    read(tmp_path, change(data, raw, start=max(raw.find(data.draw(near)), 0)))


@FAST
@given(data=st.data())
def test_cut_and_inserted_in_programs(tmp_path, programs, data):
    raw = data.draw(st.sampled_from(programs))
    at, until = sorted((data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, len(raw)))))
    read(tmp_path, raw[:at] + data.draw(st.binary(max_size=8)) + raw[until:])


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_flipped_bytes_for_long(tmp_path, seeds, programs, data):
    read(tmp_path, change(data, data.draw(st.sampled_from([*seeds, *programs]))))


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_spliced_files_for_long(tmp_path, seeds, programs, data):
    """The beginning of one file, and the end of another."""
    one, other = (data.draw(st.sampled_from([*seeds, *programs])) for _ in range(2))
    head, tail = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, len(other)))
    read(tmp_path, one[:head] + data.draw(st.binary(max_size=8)) + other[tail:])


@FAST
@given(raw=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\3\4", b"\x20\0\0\0\0\0\0\0{", MAGIC]))
def test_any_bytes(tmp_path, raw, head):
    read(tmp_path, head + raw)


OPCODES = b"N\x88\x89JKMG\x8aXCU]})\x8f(01qr\x94hj\x85\x86\x87tae\x90\x91suc\x93R\x81\x92bQ."


@FAST
@given(
    codes=st.lists(
        st.sampled_from([bytes([c]) for c in OPCODES] + [b"ctorch\nSize\n", b"h\0", b"q\0", b"K\1"]),
        max_size=60,
    )
)
def test_any_opcodes(tmp_path, codes):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(codes) + b".")
        archive.writestr("a/version", b"3")
    read(tmp_path, file.getvalue())
    read(tmp_path, stream(b"\x80\x02" + b"".join(codes) + b".", []))


ARRAYS = st.builds(
    lambda shape, dtype: np.arange(int(np.prod(shape))).astype(dtype).reshape(shape),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(["f4", "f8", "i1", "i8", "u2", "?", "c8", "f2", ">f4"]),
)
KEYS = st.one_of(st.text(max_size=5), st.integers(-(2**63), 2**63 - 1), st.none(), st.booleans())
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=9),
    ARRAYS,
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@FAST
@given(obj=OBJECTS)
def test_any_object_is_what_torch_and_we_read_back(tmp_path, same, obj):
    save(obj, tmp_path / "a.pt")
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    same(load(tmp_path / "a.pt"), theirs)
    save(theirs, tmp_path / "b.pt")
    torch.save(theirs, tmp_path / "c.pt")
    same(load(tmp_path / "b.pt"), theirs)
    same(load(tmp_path / "c.pt"), theirs)


@FAST
@given(obj=OBJECTS)
def test_any_object_goes_through_a_stream(tmp_path, same, obj):
    try:
        save(obj, tmp_path / "a.pt", format="legacy")
    except FileError as error:
        assert "uint16" in str(error)
        return
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    same(load(tmp_path / "a.pt"), theirs)
    torch.save(theirs, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    same(load(tmp_path / "b.pt"), theirs)
