"""What is passed by mistake where a file or an object is due; each is a FileError, and nothing is written."""

import numpy as np
import pytest

import jaxstate as js
from jaxstate import io

SD = {"w": np.float32([[1, 2], [3, 4]])}
PATHS = "a path is due, not a"
CALLS = {
    "no path": (lambda at: js.load(None), PATHS + " NoneType"),
    "no paths": (lambda at: js.load([]), PATHS + " list"),
    "a generator of paths": (lambda at: js.load(path for path in [at]), PATHS + " generator"),
    "a dict to load": (lambda at: js.load(SD), PATHS + " dict"),
    "a list of no paths": (lambda at: js.load([None]), PATHS + " NoneType"),
    "bytes": (lambda at: js.load(b"net.pt"), "a path is due as text, not b'net.pt'"),
    "a file that is not there": (lambda at: js.load(at / "net.pt"), "net.pt: "),
    "a folder of nothing": (lambda at: js.load(at), "a folder with nothing in it"),
    "a folder for a program": (lambda at: io.load_constants(at), "not a regular file"),
    "several paths": (lambda at: io.format_of([at]), PATHS + " list"),
    "swapped": (lambda at: js.save(at / "net.pt", SD), PATHS + " dict"),
    "a format among several": (lambda at: js.save(SD, at / "x", format=["pt"]), r"not \['pt'\]"),
    "a format that is none": (lambda at: js.save(SD, at / "x", format=""), "format must be"),
    "a yes for a size": (lambda at: js.save(SD, at / "x", max_shard_size=True), "max_shard_size is a number"),
    "a generator to save": (lambda at: js.save((x for x in [1]), at / "x"), "generator"),
    "a folder in the place": (lambda at: js.save(SD, at), "cannot be written: "),
    "no record": (lambda at: io.state_dict_of(SD), "a record of a pickled module, .* is due, not a dict"),
}


@pytest.mark.parametrize("name", CALLS)
def test_mistakes_are_refused(tmp_path, name):
    call, words = CALLS[name]
    with pytest.raises(js.FileError, match=words):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
