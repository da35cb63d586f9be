"""Pickles that someone made to do harm: each gives one FileError, or an inert value, and at once."""

import pickle
import struct

import numpy as np
import pytest
from hostile_files import archive, ints, number, tensor, text

from jaxstate.io import Global, Opaque

pytestmark = pytest.mark.usefixtures("at_once")


def test_the_tensor_below_is_one(loaded):
    """What the attacks change is right before they change it."""
    assert loaded(archive(tensor(), [np.arange(2, dtype="f4").tobytes()])).tolist() == [0, 1]


# Code.


class Run:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_calls_are_not_made(loaded, tmp_path, protocol):
    import os

    mark = tmp_path / "mark"
    calls = [
        Run(os.mkdir, str(mark)),
        Run(eval, "1/0"),
        Run(getattr, "a", "upper"),
        os.system,
        Run(bytearray, 2**40),
    ]
    ours = loaded(archive(pickle.dumps(calls, protocol)))
    assert not mark.exists()
    assert [type(value) for value in ours] == [Opaque, Opaque, Opaque, Global, Opaque]
    assert ours[0].name.endswith(".mkdir") and ours[0].args == (str(mark),)


@pytest.mark.parametrize(
    "code",
    [
        b"(ios\nsystem\n",
        b"(cos\nsystem\no",
        b"\x82\x01",
        b"Pid\n",
        b"I1\n",
        b"S'a'\n",
        b"V1\n",
        b"\x97",
        b"2",
        b"(l",
        b"(d",
    ],
)
def test_opcodes_that_no_torch_file_needs(refused, code):
    refused(archive(b"\x80\x02" + code + b"."), "refused")


def test_a_shadowed_method(refused, loaded):
    obj = b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items") + b"K\x01sb."
    refused(archive(obj), "_metadata")
    refused(archive(b"\x80\x02]}" + text("append") + b"K\x01sb."), "attributes of a list")


def test_state_of_a_name_is_refused(refused):
    refused(archive(b"\x80\x02ctorch\nfloat32\n}b."), "attributes of a Global")


def test_numpy_arrays_of_objects_or_of_wrong_size(refused, loaded):
    good = pickle.dumps(np.arange(4, dtype="i4"), 2)
    assert loaded(archive(good)).tolist() == [0, 1, 2, 3]
    refused(archive(good.replace(b"K\x04\x85", b"K\x05\x85")), "16 bytes")
    assert isinstance(loaded(archive(good.replace(b"i4", b"O8"))), Opaque)
    assert isinstance(loaded(archive(good.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"))), Opaque)


# Memory and time.


def test_a_bomb_of_shared_tuples(refused):
    body = b"\x80\x02K\x01" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))
    refused(archive(body + b"."), "unfolds")


def test_a_bomb_of_shared_lists(refused):
    body = b"\x80\x02K\x01" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(60))
    refused(archive(body + b"."), "unfolds")


def test_a_list_in_itself(refused):
    refused(archive(b"\x80\x02]q\x00h\x00a."), "contains itself")


def test_a_tuple_in_itself(refused):
    cycle = ([],)
    cycle[0].append(cycle)
    refused(archive(pickle.dumps(cycle, 2)), "contains itself")


@pytest.mark.parametrize("shape", ["list", "tuple", "dict", "opaque"])
def test_deep_nests(refused, shape):
    count = 200_000
    parts = {
        "list": b"]" * count + b"a" * (count - 1),
        "tuple": b"N" + b"\x85" * count,
        "dict": (b"}" + text("a")) * count + b"N" + b"s" * count,
        "opaque": b"ca\nb\n" + b")R" * count,
    }
    refused(archive(b"\x80\x02" + parts[shape] + b"."), "nests deeper")


def test_deep_nests_that_are_dropped(loaded):
    assert loaded(archive(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"0K\x01.")) == 1


def test_marks(refused):
    refused(archive(b"\x80\x02" + b"(" * 200_000 + b"."), "marks")


def test_far_entries_of_the_memo(loaded, refused):
    assert loaded(archive(b"\x80\x02K\x01r\xff\xff\xff\xff.")) == 1
    refused(archive(b"\x80\x02j\xff\xff\xff\xff."), "memo")


def test_colliding_keys(refused, loaded):
    def filled(keys):
        return archive(b"\x80\x02}(" + b"".join(key + b"N" for key in keys) + b"u.")

    refused(filled(number(k * (2**61 - 1)) for k in range(20_000)), "key of type int")
    refused(filled(ints([k, 1]) for k in range(20_000)), "key of type tuple")
    assert len(loaded(filled(number(k << 40) for k in range(20_000)))) == 20_000
    refused(filled([b"](e"]), "key of type list")
    refused(filled([b")\x85"]), "key of type tuple")


@pytest.mark.parametrize(
    "operand",
    [
        *(code + b"\xff" * 4 for code in (b"X", b"B", b"T", b"\x8b")),
        *(code + b"\xff" * 7 + b"\x7f" for code in (b"\x8d", b"\x8e", b"\x96", b"\x95")),
        *(b"\x8d" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"c", b"ca", b"K", b""),
    ],
)
def test_operands_behind_the_end(refused, operand):
    refused(archive(b"\x80\x02" + operand), "data.pkl: ")


@pytest.mark.parametrize(
    "code",
    [
        b"0",
        b"a",
        b"e",
        b"s",
        b"u",
        b"t",
        b"\x85",
        b"\x87",
        b"R",
        b"b",
        b"Q",
        b"q\x00",
        b"",
        b"K\x01K\x02",
        b"(K\x01",
        b"1",
    ],
)
def test_stacks_that_are_too_short_or_too_long(refused, code):
    refused(archive(b"\x80\x02" + code + b"."), "data.pkl: ")


@pytest.mark.parametrize(
    "code",
    [
        b"K\x01K\x02a",
        b"K\x01(K\x02e",
        b"K\x01K\x02K\x02s",
        b"](K\x01u",
        b"}(K\x01u",
        b"K\x01)R",
        b"]K\x02R",
        b"K\x01(\x90",
    ],
)
def test_opcodes_on_the_wrong_type(refused, code):
    refused(archive(b"\x80\x02" + code + b"."), "data.pkl: ")


@pytest.mark.parametrize(
    "function", [b"c__builtin__\nset\n", b"c__builtin__\nfrozenset\n", b"ccollections\nOrderedDict\n"]
)
def test_copies_of_one_argument(refused, function):
    """Seven bytes each that ask for a copy of one list of 20 000: 400 MB if they got it."""
    element = b"M%b" if b"Ordered" not in function else b"M%bN\x86"
    members = b"".join(element % struct.pack("<H", i) for i in range(20_000))
    one = b"\x80\x02" + function + b"q\x00](" + members + b"e\x85q\x01]("
    refused(archive(one + b"h\x00h\x01R" * 2000 + b"e."), "copies")


def test_copies_of_bytes(refused):
    one = b"\x80\x02c_codecs\nencode\nq\x00" + text("a" * 100_000) + text("latin1") + b"\x86q\x01]("
    refused(archive(one + b"h\x00h\x01R" * 2000 + b"e."), "copies")
    refused(archive(b"\x80\x02c_codecs\nencode\n" + text("\u20ac") + text("latin1") + b"\x86R."), "above 255")


def test_copies_of_a_conjugated_tensor(refused):
    storage = bytes(8 << 20)
    body = tensor(
        size=(1 << 20,),
        numel=1 << 20,
        kind=b"torch\nComplexFloatStorage",
        tail=b"}" + text("conj") + b"\x88s",
    )
    one = b"\x80\x02](" + body[2:-2].replace(
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v2\nq\x00", 1
    )
    refused(archive(one + b"q\x01R" + b"h\x00h\x01R" * 50 + b"e.", [storage]), "copies")


def test_a_number_too_long_to_print(refused):
    huge = b"\x8b" + struct.pack("<i", 60_000) + b"\x7f" * 60_000
    refused(archive(tensor().replace(number(2) + b"tQ", huge + b"tQ"), [bytes(8)]))
    refused(archive(tensor().replace(b"tQ" + number(0), b"tQ" + huge), [bytes(8)]))


# Tensors.

GEOMETRY = {
    "more elements than bytes": {"numel": 3},
    "fewer elements than bytes": {"numel": 1},
    "negative elements": {"numel": -2},
    "offset behind the end": {"offset": 1},
    "far offset": {"offset": 2**62 - 1},
    "overflowing offset": {"offset": 2**64 - 1},
    "negative offset": {"offset": -1},
    "size behind the end": {"size": (3,)},
    "negative size": {"size": (-2,)},
    "stride behind the end": {"stride": (2,)},
    "negative stride": {"offset": 1, "stride": (-1,)},
    "overflowing stride": {"stride": (2**63,)},
    "sizes without strides": {"stride": ()},
    "too many axes": {"size": (1,) * 65, "stride": (1,) * 65},
    "unfolds to terabytes": {"size": (2**20, 2**20), "stride": (0, 0)},
    "overflowing product": {"size": (2**61, 2**61), "stride": (0, 0)},
    "empty and huge": {"size": (0, 2**61, 2**61), "stride": (0, 0, 0)},
    "unknown storage class": {"kind": b"os\nFloatStorage"},
    "no such storage": {"key": "1"},
    "path as storage": {"key": "../../../etc/passwd"},
    "metadata of another kind": {"tail": b"}" + text("real") + b"\x88s"},
    "metadata not a dict": {"tail": b"K\x01"},
    "conjugated floats": {"tail": b"}" + text("conj") + b"\x88s"},
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_tensors_out_of_bounds(refused, name):
    refused(archive(tensor(**GEOMETRY[name]), [bytes(8)]), "data.pkl: ")


def test_strides_that_are_never_taken(loaded):
    ours = loaded(archive(tensor(size=(1, 2), stride=(2**60, 1)), [np.arange(2, dtype="f4").tobytes()]))
    assert ours.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "pid", [b"N", b")", b"K\x01", text("storage"), b"(" + text("storage") + b"NNNNt", b"(" + b")" * 5 + b"t"]
)
def test_persistent_ids_of_another_kind(refused, pid):
    refused(archive(b"\x80\x02" + pid + b"Q."), "persistent id")


def test_calls_that_rebuild_each_other(loaded):
    """`_rebuild_from_type_v2` of itself, 100 000 deep, recurses in torch."""
    one = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00ctorch\nTensor\n)}t"
    assert isinstance(loaded(archive(b"\x80\x02" + one + b"R.")), Opaque)


@pytest.mark.parametrize(
    "function", [b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n", b"c__builtin__\nset\n"]
)
def test_tensors_as_arguments_of_other_calls(loaded, function):
    """An array must not be compared with anything: its `==` is an array, and of any size."""
    for count in (1, 2, 4):
        args = text("a") + tensor()[2:-1] + b"q\x05" + b"h\x05" * (count - 2) if count > 1 else tensor()[2:-1]
        ours = loaded(archive(b"\x80\x02" + function + b"(" + args + b"tR.", [bytes(8)]))
        assert isinstance(ours, Opaque) and len(ours.args) == count
