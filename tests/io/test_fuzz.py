"""Any bytes give a value or a FileError; any plain object goes through both readers and writers."""

import io
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxstate.errors import FileError
from jaxstate.io import load, save

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")
FAST = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


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


def read(folder, content):
    (folder / "fuzz").write_bytes(content)
    try:
        load(folder / "fuzz")
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


@FAST
@given(raw=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\3\4", b"\x20\0\0\0\0\0\0\0{"]))
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
