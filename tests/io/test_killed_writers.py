"""A process that is killed in the middle of a write leaves the old file whole; reading imports nothing."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from jaxstate.io import load, save

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed")

# Each child writes for itself, and is gone after some bytes of the new file.
KILLED = """
import os, signal, sys
import numpy as np
from jaxstate import io
from jaxstate.io import _atomic

def dying(limit):
    fdopen = os.fdopen
    class File:
        def __init__(self, file):
            self.file, self.left = file, limit
        def __enter__(self):
            return self
        def __exit__(self, *error):
            self.file.close()
        def __getattr__(self, name):
            return getattr(self.file, name)
        def write(self, content):
            content = memoryview(content).cast("B")
            self.file.write(content[: self.left])
            self.left -= len(content)
            if self.left <= 0:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    _atomic.os.fdopen = lambda *args: File(fdopen(*args))

new = {"a": np.zeros((1400, 500), np.float32), "b": np.zeros(3), "s": np.zeros(2, np.int8)}
for path, format, limit in zip(*[iter(sys.argv[1:])] * 3):
    child = os.fork()
    if child == 0:
        dying(int(limit))
        io.save(new, path, format=format)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


@pytest.mark.filterwarnings("ignore")
def test_killed_in_the_middle_of_a_write(tmp_path):
    arguments, old = [], {"a": np.full((30, 5), 2.5, np.float32), "b": np.arange(3)}
    for format in ("pt", "legacy", "safetensors"):
        for limit in (1, 300, 1_000_000):
            path = tmp_path / f"{format}.{limit}" / "net"
            path.parent.mkdir()
            save(old, path, format=format)
            arguments += [str(path), format, str(limit)]
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, *arguments], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == [str(int(signal.SIGKILL))] * 9
    for path in arguments[::3]:
        ours = load(path)
        assert all(np.array_equal(ours[key], value) for key, value in old.items())
        left = [name for name in os.listdir(os.path.dirname(path)) if name != "net"]
        assert len(left) == 1 and left[0].startswith(".net.") and left[0].endswith(".tmp")


READING = """
import sys
from jaxstate import io
from jaxstate.errors import FileError
before = set(sys.modules)
for path in sys.argv[1:]:
    try:
        value = io.load(path, verify=not path.endswith("hostile"))
        if isinstance(value, io.Opaque):
            io.state_dict_of(value)
    except FileError as error:
        print("refused", path)
print(sorted(set(sys.modules) - before))
"""


class Run:
    def __reduce__(self):
        return __import__, ("antigravity",)


@pytest.mark.filterwarnings("ignore")
def test_reading_imports_nothing(tmp_path):
    """Of real files of each kind, and of one that asks for it."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    old = {"_use_new_zipfile_serialization": False}
    checkpoint = {"net": net.state_dict(), "x": np.float32(1), "half": torch.ones(1, dtype=torch.bfloat16)}
    torch.save(checkpoint, tmp_path / "zip")
    torch.save(checkpoint, tmp_path / "stream", **old)
    torch.save(net, tmp_path / "module")
    torch.save(net, tmp_path / "old module", **old)
    torch.save([Run(), np.array([Run()], object)], tmp_path / "hostile")
    torch.jit.script(net).save(tmp_path / "script")
    torch.export.save(torch.export.export(net, (torch.ones(3, 2),)), tmp_path / "program.pt2")
    save({"w": np.ones(2)}, tmp_path / "a.safetensors")
    paths = sorted(map(str, tmp_path.iterdir()))
    out = subprocess.run([sys.executable, "-c", READING, *paths], capture_output=True, text=True, check=True)
    assert len(paths) == 8 and out.stdout.strip() == "[]"
