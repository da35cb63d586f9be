"""Shared by the tests of `io`: the oracle is torch, and equality is of bits, types, order and strides."""

import time
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from jaxstate.errors import FileError
from jaxstate.io import Raw, load


def bits_of_tensor(tensor):
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def bits_of_array(array):
    return np.ascontiguousarray(array.data if isinstance(array, Raw) else array).tobytes()


def dtype_name(array):
    return array.dtype if isinstance(array, Raw) else array.dtype.name


def assert_same(ours, theirs, path="obj"):
    """`ours`, from jaxstate, is `theirs`, from torch, with arrays in the place of tensors."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, (np.ndarray, Raw)), path
        assert tuple(ours.shape) == tuple(theirs.shape), path
        assert f"torch.{dtype_name(ours)}" == str(theirs.dtype), path
        assert bits_of_array(ours) == bits_of_tensor(theirs), path
    elif isinstance(theirs, dict):
        expected = type(theirs) if type(theirs) in (OrderedDict, Counter) else dict
        assert type(ours) is expected and list(ours) == list(theirs), path
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}[{key!r}]")
        assert getattr(ours, "_metadata", None) == getattr(theirs, "_metadata", None), path
    elif isinstance(theirs, (list, tuple)):
        expected = tuple if isinstance(theirs, torch.Size) else type(theirs)
        assert type(ours) is expected and len(ours) == len(theirs), path
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        assert type(ours) is type(theirs) and (ours == theirs or ours != ours and theirs != theirs), path


@pytest.fixture
def same():
    return assert_same


DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 "
    "complex32 uint16 uint32 uint64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "float8_e8m0fnu float4_e2m1fn_x2 bits8 bits1x8 bits2x4 bits4x2 bits16 "
).split()


@pytest.fixture(params=DTYPES)
def every_dtype(request):
    """A tensor (2, 3) of each dtype that torch.save writes, of arbitrary bits."""
    dtype = getattr(torch, request.param)
    if dtype is torch.bool:
        return torch.tensor([[True, False, True], [False, False, True]])
    generator = torch.Generator().manual_seed(7)
    # `float8_e8m0fnu` and the bits types have no arithmetic: all are made by a view of bytes.
    raw = torch.randint(0, 256, (2, 3 * dtype.itemsize), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def train(net, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def trained():
    return train


@pytest.fixture
def at_once():
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


@pytest.fixture
def loaded(tmp_path):
    def read(content):
        (tmp_path / "a.pt").write_bytes(content)
        return load(tmp_path / "a.pt")

    return read


@pytest.fixture
def refused(loaded):
    def check(content, message=""):
        with pytest.raises(FileError, match=f"a.pt: .*{message}"):
            loaded(content)

    return check
