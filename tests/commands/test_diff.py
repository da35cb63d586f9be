"""`jaxstate diff`: what torch changed is what is found, across formats, with an exit status."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from command_line import jaxstate, saved, training  # noqa: F401

from jaxstate.commands._diff import differing


def changed(training, path, change):
    torch.save(change(training), path)
    return path


def test_a_file_does_not_differ_from_itself(jaxstate, saved):
    done = jaxstate("diff", saved, saved)
    assert done.status == 0 and done.out == "0 of 28 differ, 28 are in both\n"


def test_one_changed_weight_is_named_with_its_size(jaxstate, saved, training, tmp_path):
    weight = training["model"]["0.weight"]
    before = weight[1, 2].item()
    weight[1, 2] += 1e-4
    torch.save(training, tmp_path / "new.pt")
    done = jaxstate("diff", saved, tmp_path / "new.pt", "--json")
    (line,) = json.loads(done.out)["differing"]
    assert done.status == 1
    assert line["path"] == "model/0.weight" and line["where"] == [1, 2] and line["count"] == 1
    assert line["max_abs"] == pytest.approx(abs(weight[1, 2].item() - before), rel=1e-12)
    steps = np.float32(before).view("int32").astype(int) - weight[1, 2].numpy().view("int32").astype(int)
    assert line["max_ulps"] == abs(steps)


@pytest.mark.parametrize("option", [("--atol", "1e-3"), ("--rtol", "0.9"), ("--ulps", "20000000")])
def test_tolerances(jaxstate, saved, training, tmp_path, option):
    training["model"]["0.weight"][1, 2] += 1e-4
    torch.save(training, tmp_path / "new.pt")
    assert jaxstate("diff", saved, tmp_path / "new.pt", *option).status == 0
    option = (option[0], "1e-9" if option[0] != "--ulps" else "1")
    assert jaxstate("diff", saved, tmp_path / "new.pt", *option).status == 1


def test_across_formats_by_part(jaxstate, saved, training, tmp_path):
    arrays = {key: tensor.numpy().copy() for key, tensor in training["model"].items()}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    assert jaxstate("diff", saved, tmp_path / "model.safetensors", "--part", "model").status == 0
    arrays["2.weight"][0, 0] = np.nan
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    done = jaxstate("diff", saved, tmp_path / "model.safetensors", "--part", "model", "--json")
    assert done.status == 1 and json.loads(done.out)["differing"][0]["max_abs"] == "inf"


def test_keys_shapes_and_dtypes(jaxstate, tmp_path):
    a = {"w": torch.full((2, 3), 0.5), "n": torch.tensor(3), "gone": torch.ones(1), "lr": 0.1}
    b = {"w": torch.full((2, 3), 0.5, dtype=torch.bfloat16), "n": torch.tensor([3]), "lr": 0.2, "new": "x"}
    torch.save(a, tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")
    lines = json.loads(jaxstate("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--json").out)["differing"]
    assert {line["path"]: line["what"] for line in lines} == {
        "w": "float32[2, 3] against bfloat16[2, 3]",
        "n": "int64[] against int64[1]",
        "gone": "only in A: float32[1]",
        "lr": "0.1 against 0.2",
        "new": "only in B: 'x'",
    }
    some = jaxstate("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--keys", "w", "--ignore-dtype")
    assert some.status == 0


def test_values_of_two_types_are_not_the_same():
    pairs = [(1, True), (1, 1.0), ("1", 1), (None, 0), (0.5, np.float32([0.5]))]
    for a, b in pairs:
        assert [line.path for line in differing({"x": a}, {"x": b}, lambda d: False)] == ["x"]
    assert not list(differing({"x": float("nan")}, {"x": float("nan")}, lambda d: False))


def test_every_dtype_of_torch_is_compared(tmp_path, jaxstate):
    dtypes = [
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex64,
        torch.int64,
    ]
    tensors = {str(dtype): torch.tensor([0.5, 1, 3]).to(dtype) for dtype in dtypes}
    torch.save(tensors, tmp_path / "a.pt")
    other = {name: torch.tensor([0.5, 1, 2]).to(tensor.dtype) for name, tensor in tensors.items()}
    torch.save(other, tmp_path / "b.pt")
    lines = json.loads(jaxstate("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--json").out)["differing"]
    assert [line["path"] for line in lines] == list(tensors)
    assert all(line["where"] == [2] and line["max_abs"] == 1 for line in lines)
    fp8 = np.array([2, 3], ml_dtypes.float8_e4m3fn).view("uint8").astype(int)
    assert next(line for line in lines if "e4m3fn" in line["path"])["max_ulps"] == abs(fp8[0] - fp8[1])
