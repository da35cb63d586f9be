"""A part of a stored array is read as its bytes, whatever its elements are."""

import ml_dtypes  # noqa: F401  (teaches numpy the names of the dtypes below)
import numpy as np
import pytest

import jaxstate as js
from jaxstate.orbax._bytes import of_bytes
from jaxstate.orbax._engine import read_region

DTYPES = [
    "float32",
    "bfloat16",
    "float8_e4m3fn",
    "float64",
    "complex64",
    "complex128",
    "int64",
    "int4",
    "bool",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("saved") / "c", np.random.default_rng(4)
    model = {name: (rng.standard_normal((5, 3, 7)) * 3).astype(name) for name in DTYPES}
    model |= {"flat": np.arange(11, dtype="f4"), "scalar": np.array(2.5, "f4"), "odd": np.ones(3, "int8")}
    model |= {"zeros": np.zeros((4, 6), "f4"), "minus": np.full((4, 6), -0.0, "f4")}
    rules = [
        js.Rule(name, name, " ".join("abc"[: x.ndim]) + " -> " + " ".join("abc"[: x.ndim]))
        for name, x in model.items()
    ]
    js.orbax.save(path, model, binding=js.Binding(rules))
    return path, model


def test_every_part_is_that_of_the_array(saved):
    path, model = saved
    for name, array in model.items():
        regions = [tuple((0, n) for n in array.shape), tuple((n // 2, n) for n in array.shape)]
        for region in regions:
            found, part = read_region(path, f"params/{name}", region), array[tuple(slice(*r) for r in region)]
            assert (found.dtype, found.shape) == (part.dtype, part.shape), name
            assert found.tobytes() == np.ascontiguousarray(part).tobytes(), name


def test_what_is_not_stored_as_it_is_stays_what_it_is():
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    inner = {"chunk_shape": [2, 3], "codecs": [plain], "index_codecs": [plain], "index_location": "end"}
    metadata = {
        "shape": [4, 3],
        "data_type": "float32",
        "fill_value": 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }
    found = of_bytes(metadata, 4)
    assert found["shape"] == [4, 12] and found["codecs"][0]["configuration"]["chunk_shape"] == [2, 12]
    assert found["chunk_grid"]["configuration"]["chunk_shape"] == [2, 12] and found["data_type"] == "uint8"
    packed = {**inner, "codecs": [plain, {"name": "zstd"}]}
    others = [
        {"codecs": [{"name": "sharding_indexed", "configuration": packed}]},
        {"codecs": [plain]},
        {"codecs": [*metadata["codecs"], {"name": "crc32c"}]},
        {"fill_value": "NaN"},
        {"fill_value": 1.0},
        {"shape": []},
    ]
    assert all(of_bytes({**metadata, **other}, 4) is None for other in others)
    assert of_bytes(metadata, 1) is None
