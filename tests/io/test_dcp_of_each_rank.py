"""Folders in which every rank has metadata of its own: what the ranks say must be of one checkpoint."""

import numpy as np
import pytest

from jaxstate.errors import FileError
from jaxstate.io import Global, Opaque, PerRank, Raw, load, save
from jaxstate.io._dcp_parts import Part, write_index, write_parts
from jaxstate.io._same_values import same_values

ROWS = np.arange(12, dtype="f4").reshape(4, 3)
F4 = np.dtype("f4")


def written(folder, *ranks):
    """A folder of ranks: each the parts that it writes, and what it says of the tensors among them."""
    folder.mkdir()
    for rank, (tensors, parts) in enumerate(ranks):
        write_index(str(folder), tensors, [write_parts(str(folder), rank, parts)], rank=rank)
    return folder


def part(start, values, name="w"):
    return Part(name, (start, *[0] * (values.ndim - 1)), values)


def test_ranks_make_a_whole(tmp_path):
    said = {"w": (F4, (4, 3))}
    rows = [(said, [part(0, ROWS[:1])]), (said, [part(1, ROWS[1:]), part(0, ROWS[:1])])]
    assert np.asarray(load(written(tmp_path / "a", *rows))["w"]).tobytes() == ROWS.tobytes()


DIFFERENT = "its shape or dtype is not the same in all ranks"
CASES = {
    "shape": (
        [({"w": (F4, (4, 3))}, [part(0, ROWS)]), ({"w": (F4, (5, 3))}, [part(4, ROWS[:1])])],
        DIFFERENT,
    ),
    "dtype": (
        [
            ({"w": (F4, (4, 3))}, [part(0, ROWS[:2])]),
            ({"w": (np.dtype("i4"), (4, 3))}, [part(2, ROWS[2:].view("i4"))]),
        ],
        DIFFERENT,
    ),
    "tensor": (
        [({"w": (F4, (4, 3))}, [part(0, ROWS)]), ({}, [Part("w", None, 3)])],
        "it is a tensor in one rank and none in another",
    ),
    "out": (
        [({"w": (F4, (4, 3))}, [part(0, ROWS[:1])]), ({"w": (F4, (4, 3))}, [part(3, ROWS[:2])])],
        "a chunk reaches out of shape (4, 3)",
    ),
    "overlap": (
        [({"w": (F4, (9, 3))}, [part(0, ROWS[:2])]), ({"w": (F4, (9, 3))}, [part(1, ROWS[:3])])],
        "two chunks overlap, one of them at (",
    ),
}


@pytest.mark.parametrize("ranks, words", CASES.values(), ids=CASES)
def test_ranks_that_contradict_each_other(tmp_path, ranks, words):
    for n, rows in enumerate([ranks, ranks[::-1]]):
        with pytest.raises(FileError) as caught:
            load(written(tmp_path / str(n), *rows))
        assert f'{n}: entry "w": {words}' in str(caught.value)


@pytest.mark.parametrize(
    "one, other", [(3, 4), (1, True), ((1, [2.5, None]), (1, [2.5])), ({"a": 1}, {"b": 1})]
)
def test_a_value_of_each_rank_is_not_chosen(tmp_path, one, other):
    ranks = [({}, [Part("v", None, value), Part("same", None, "x")]) for value in (one, one, other)]
    found = load(written(tmp_path / "a", *ranks))
    paths = [str(tmp_path / "a" / f"__{rank}_0.distcp") for rank in range(3)]
    assert isinstance(found["v"], PerRank) and found["v"].values == dict(
        zip(paths, (one, one, other), strict=True)
    )
    assert found["same"] == "x" and all(path in repr(found["v"]) for path in paths)
    with pytest.raises(FileError, match="PerRank is not written"):
        save(found, tmp_path / "b", format="dcp")


def test_a_value_that_is_spelled_otherwise_is_the_same(tmp_path):
    values = {"a": 1.5, "b": (2, "x")}, {"b": (2, "x"), "a": 1.5}
    found = load(written(tmp_path / "a", *[({}, [Part("v", None, [value, 3])]) for value in values]))
    files = [(tmp_path / "a" / f"__{rank}_0.distcp").read_bytes() for rank in range(2)]
    assert files[0] != files[1] and found == {"v": [values[0], 3]}


@pytest.mark.parametrize("checksums", [True, False])
def test_a_tensor_that_ranks_do_not_agree_on(tmp_path, checksums):
    """Of a whole one none is chosen; a part is no rank's own."""
    said, other = {"w": (F4, (4, 3))}, np.float32([*ROWS.ravel()[:11], 11.5]).reshape(4, 3)
    folder = written(tmp_path / "a", *[(said, [part(0, rows)]) for rows in (ROWS, ROWS, other)])
    paths = [tmp_path / "a" / f"__{rank}_0.distcp" for rank in range(3)]
    for path in paths if not checksums else []:
        without_checksums(path)
    found = load(folder)["w"]
    assert isinstance(found, PerRank) and list(found.values) == [str(path) for path in paths]
    for values, wanted in zip(found.values.values(), (ROWS, ROWS, other), strict=True):
        assert np.array_equal(values, wanted)
    apart = [(said, [part(0, ROWS[:2])]), (said, [part(2, ROWS[2:])]), (said, [part(2, other[2:])])]
    with pytest.raises(
        FileError, match=r'"w": the part of shape \(2, 3\) at \(2, 0\) is not the same in .*__1'
    ):
        load(written(tmp_path / "b", *apart))


def without_checksums(path):
    """As torch writes it after `torch.serialization.set_crc32_options(False)`: none of a storage's bytes."""
    data = bytearray(path.read_bytes())
    for signature, crc, name_at in ((b"PK\3\4", 14, 30), (b"PK\1\2", 16, 46)):
        at = data.find(signature)
        while at >= 0:
            length = int.from_bytes(data[at + name_at - 4 : at + name_at - 2], "little")
            length = length if name_at == 30 else int.from_bytes(data[at + 28 : at + 30], "little")
            if b"/data/" in data[at + name_at : at + name_at + length]:
                data[at + crc : at + crc + 4] = bytes(4)
            at = data.find(signature, at + 4)
    path.write_bytes(data)


def records(number):
    device = Opaque(Global("torch", "device"), ("cuda", number))
    return [
        device,
        {"x": Raw("bits8", (2,), np.uint8([number, 1]))},
        np.float32([number, np.nan]),
        float("nan"),
    ]


def test_records_are_compared_by_what_they_hold():
    assert same_values(records(3), records(3)) and records(3) != records(3)
    for changed in range(3):
        mixed = [records(4 if n == changed else 3)[n] for n in range(4)]
        assert not same_values(records(3), mixed)
    assert not same_values(np.float32([0.0]), np.float32([-0.0]))
