"""Old files of torch, and TorchScript, that someone made to do harm: one FileError, or an inert value."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import archive, ints, number, stream, tensor, text

from jaxstate.errors import FileError
from jaxstate.io import Global, Opaque, load

pytestmark = pytest.mark.usefixtures("at_once")

TWO = np.arange(2, dtype="f4").tobytes()


def good(**changes):
    return stream(tensor(view=b"N", **changes), [("0", 2, TWO)])


def test_the_stream_below_is_one(loaded):
    """What the attacks change is right before they change it."""
    theirs = torch.load(io.BytesIO(good()), weights_only=True)
    assert loaded(good()).tolist() == theirs.tolist() == [0, 1]


def test_truncation(refused):
    for cut in range(14, len(good())):
        refused(good()[:cut])


def test_bytes_behind_the_end(refused):
    refused(good() + b"\0", "the last storage ends")
    refused(good() + good(), "the last storage ends")


class Run:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_not_made(loaded, tmp_path, protocol):
    import os

    mark = tmp_path / "mark"
    calls = pickle.dumps(
        [Run(os.mkdir, str(mark)), Run(eval, "1/0"), os.system, Run(bytearray, 2**40)], protocol
    )
    ours = loaded(stream(calls, []))
    assert [type(value) for value in ours] == [Opaque, Opaque, Global, Opaque] and not mark.exists()


@pytest.mark.parametrize("place", ["version", "facts", "keys"])
def test_calls_in_the_other_pickles(refused, tmp_path, place):
    """They are read as strictly as the object's."""
    import os

    mark = tmp_path / "mark"
    refused(
        stream(
            b"\x80\x02N.", [], **{place: Run(os.mkdir, str(mark))} if place != "facts" else {"facts": b"N"}
        )
    )
    assert not mark.exists()


@pytest.mark.parametrize("code", [b"(ios\nsystem\n", b"\x82\x01", b"Pid\n", b"I1\n", b"\x97", b"2"])
def test_opcodes_that_no_torch_file_needs(refused, code):
    refused(stream(b"\x80\x02" + code + b".", []), "refused")


GEOMETRY = {
    "offset behind the end": {"offset": 1},
    "overflowing offset": {"offset": 2**64 - 1},
    "negative offset": {"offset": -1},
    "size behind the end": {"size": (3,)},
    "negative size": {"size": (-2,)},
    "negative stride": {"offset": 1, "stride": (-1,)},
    "unfolds to terabytes": {"size": (2**20, 2**20), "stride": (0, 0)},
    "more elements than stand there": {"numel": 3},
    "fewer elements than stand there": {"numel": 1},
    "negative elements": {"numel": -2},
    "elements without end": {"numel": 2**61},
    "unknown storage class": {"kind": b"torch\nStorage"},
    "class of another module": {"kind": b"os\nFloatStorage"},
    "no such storage": {"key": "1"},
    "conjugated floats": {"tail": b"}" + text("conj") + b"\x88s"},
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_tensors_out_of_bounds(refused, name):
    refused(good(**GEOMETRY[name]))


@pytest.mark.parametrize("offset, numel", [(1, 2), (3, 0), (-1, 1), (0, -1), (2**62, 2**62), (0, 2**64)])
def test_views_of_a_storage_out_of_bounds(refused, offset, numel):
    view = b"(" + text("9") + number(offset) + number(numel) + b"t"
    refused(stream(tensor(view=view), [("0", 2, TWO)]), "view of it that it does not hold")


@pytest.mark.parametrize("view", [b"K\x01", b"]", b")", ints([1, 2]), b"(" + text("a") + b"NNt"])
def test_views_of_another_kind(refused, view):
    refused(stream(tensor(view=view), [("0", 2, TWO)]), "view of it")


@pytest.mark.parametrize("pid", [b"N", b")", b"K\x01", text("storage"), b"(" + text("storage") + b"NNNNNt"])
def test_persistent_ids_of_another_kind(refused, pid):
    refused(stream(b"\x80\x02" + pid + b"Q.", []), "persistent id")


def test_an_id_of_five_parts_is_of_the_newer_format(refused):
    refused(stream(tensor(), [("0", 2, TWO)]), "persistent id")


@pytest.mark.parametrize("keys", [[], ["1"], ["0", "1"], ["0", "0"], "0", {"0": 1}, [0], None, [["0"]]])
def test_lists_of_storages(refused, keys):
    raw = good().replace(pickle.dumps(["0"], 2), pickle.dumps(keys, 2))
    refused(raw, "storage|list of names")


def test_many_names_of_one_storage(refused):
    """A hundred thousand times the same name is found without comparing each with each."""
    refused(stream(tensor(view=b"N"), [("0", 2, TWO)], keys=["0"] * 100_000), "once each")


def test_one_storage_under_two_classes(refused):
    two = tensor(view=b"N")[2:-1] + tensor(view=b"N", kind=b"torch\nIntStorage")[2:-1]
    refused(stream(b"\x80\x02](" + two + b"e.", [("0", 2, TWO)]), "FloatStorage of 2 and torch.IntStorage")


@pytest.mark.parametrize("count", [3, 1, -1, 2**63 - 1, -(2**63)])
def test_counts_in_front_of_the_bytes(refused, count):
    refused(stream(tensor(view=b"N"), [("0", count, TWO)]), "2 elements announced")


def test_versions_and_facts(refused, loaded):
    refused(stream(b"\x80\x02N.", [], version=1002), "of another version")
    refused(stream(b"\x80\x02N.", [], version="1001"), "of another version")
    refused(stream(b"\x80\x02N.", [], version=10**5000), "of another version")
    refused(stream(b"\x80\x02N.", [], facts=b"]"), "goes on otherwise")
    assert loaded(stream(b"\x80\x02N.", [])) is None


BOMBS = {
    "shared tuples": b"K\x01" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60)),
    "a list in itself": b"]q\x00h\x00a",
    "deep lists": b"]" * 50_000 + b"a" * 49_999,
    "deep calls": b"ca\nb\n" + b")R" * 50_000,
    "marks": b"(" * 200_000,
    "colliding keys": b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(20_000)) + b"u",
    "far memo": b"j\xff\xff\xff\xff",
    "text of 4 GB": b"X\xff\xff\xff\xff",
    "int of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "copies": b"c__builtin__\nset\nq\x00]("
    + b"".join(b"M" + struct.pack("<H", i) for i in range(20_000))
    + b"e\x85q\x01]("
    + b"h\x00h\x01R" * 2000
    + b"e",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(refused, name):
    refused(stream(b"\x80\x02" + BOMBS[name] + b".", []))


# TorchScript.


def script(pkl, code, storages=(), **more):
    """An archive of TorchScript with this pickle and this text of `__torch__.Net`."""
    entries = {"constants.pkl": b"\x80\x02).", "code/__torch__.py": code, **more}
    return archive(pkl, storages, **entries)


NET = b'class Net(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n  w : Tensor\n'
OBJECT = b"c__torch__\nNet\n)\x81}(" + text("w") + tensor()[2:-1] + b"ub"


def test_the_script_below_is_one(loaded):
    ours = loaded(script(b"\x80\x02" + OBJECT + b".", NET, [TWO]))
    assert list(ours) == ["w"] and ours["w"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "pkl",
    [
        b"N",
        b"}",
        b"cos\nsystem\n",
        b"cos\nsystem\n" + text("true") + b"\x85R",
        b"c__torch__\nOther\n)\x81}b",
        b"c__torch__.os\nNet\n)\x81}b",
        b"c__torch__/../a\nNet\n)\x81}b",
        b"c__torch__\nNet\n)\x81)b",
        b"c__torch__\nNet\n)\x81",
        b"c__torch__\nNet\n)\x81}(K\x01K\x02ub",
        b"ca\nb\n)R)\x81}b",
    ],
)
def test_roots_that_are_no_modules(refused, pkl):
    refused(script(b"\x80\x02" + pkl + b".", NET))


def test_modules_that_share_each_other(refused):
    """Forty modules, each twice in the next: 2**40 keys."""
    grow = b"".join(
        b"q%c0c__torch__\nNet\n)\x81}(" % i + text("a") + b"h%c" % i + text("b") + b"h%cub" % i
        for i in range(40)
    )
    refused(script(b"\x80\x02" + OBJECT + grow + b".", NET, [TWO]), "unfolds|more than")


def test_a_module_in_itself(refused):
    own = b"c__torch__\nNet\n)\x81q\x00}(" + text("a") + b"h\x00ub."
    refused(script(b"\x80\x02" + own, NET), "contains itself")


SLOW = {
    "quotes": (b"  x = " + b'"' * 10**6, None),
    "annotations": (b'  __annotations__["' + b'"]' * 10**6, None),
    "a name without end": (b'  __buffers__ = ["' + b"a" * 10**6 + b"]", "lists of names"),
    "names without a comma": (b"  __buffers__ = [" + b'"a"' * 10**6 + b"]", "lists of names"),
    "many names": (b"  __buffers__ = [" + b'"a", ' * 10**6 + b"]", None),
}


@pytest.mark.parametrize("name", SLOW)
def test_code_that_is_slow_to_match(loaded, refused, name):
    line, message = SLOW[name]
    code = NET.replace(b"  __buffers__ = []", b"") if b"__buffers__" in line else NET
    raw = script(b"\x80\x02" + OBJECT + b".", code + line + b"\n", [TWO])
    if message:
        refused(raw, message)
    else:
        assert list(loaded(raw)) == ["w"]


def test_lists_of_names_that_stand_twice(refused):
    refused(script(b"\x80\x02" + OBJECT + b".", NET + b"  __parameters__ = []\n", [TWO]), "lists of names")


def test_code_that_inflates_without_end(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        out.writestr("a/data.pkl", b"\x80\x02c__torch__.x0\nNet\n)\x81}b.")
        out.writestr("a/constants.pkl", b"\x80\x02).")
        out.writestr("a/version", b"3")
        out.writestr("a/code/__torch__/x0.py", bytes(100 << 20))
    (tmp_path / "a.pt").write_bytes(file.getvalue())
    for verify in (False, True):
        with pytest.raises(FileError, match="a.pt: .*(no more than|compressed)"):
            load(tmp_path / "a.pt", verify=verify)
