"""The machine that a pickle runs on: a stack, the marks on it and a memo, each checked before it is used.

What its opcodes do is in `_pickle.py`.
"""

import struct
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from jaxstate.errors import FileError

from ._records import Global, Opaque

MAX_TUPLE_KEYS = 1_000
"""How many dict keys may be tuples: their hashes can be made to collide, those of str and int64 cannot."""

_PYTHON_2_MODULES = MappingProxyType({"__builtin__": "builtins", "copy_reg": "copyreg"})


class Meaning(NamedTuple):
    """What the caller makes of the three opcodes by which a pickle reaches outside of itself."""

    construct: Callable[[Global | Opaque, tuple], object]
    persistent: Callable[[object], object]
    build: Callable[[object, object], object]


class Machine:
    """One run over one pickle."""

    __slots__ = ("data", "meaning", "position", "stack", "marks", "memo", "places", "names", "tuple_keys")

    def __init__(self, data: bytes, meaning: Meaning, start: int):
        self.data, self.meaning, self.position = data, meaning, start
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.places: dict[int, int] = {}
        self.names: dict[tuple[str, str], Global] = {}
        self.tuple_keys = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if not self.position <= end <= len(self.data):
            raise FileError(f"the pickle ends at byte {len(self.data)}, in the middle of an operand")
        start, self.position = self.position, end
        return self.data[start:end]

    def number(self, format: struct.Struct) -> int:
        return format.unpack(self.take(format.size))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 4096)
        if end < 0:
            raise FileError(f"the name at byte {self.position} of the pickle does not end")
        return text(self.take(end + 1 - self.position)[:-1])

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise FileError(f"the pickle takes from an empty stack at byte {self.position}")
        return self.stack.pop()

    def top(self):
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list:
        if not self.marks:
            raise FileError(f"the pickle takes to a mark that is not there, at byte {self.position}")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def named(self, module: object, attribute: object) -> Global:
        """One record for one name, so that names serve as dict keys."""
        if not (type(module) is str and type(attribute) is str):
            raise FileError(f"a global's name is not text, at byte {self.position} of the pickle")
        key = _PYTHON_2_MODULES.get(module, module), attribute
        return self.names.setdefault(key, Global(*key))

    def key(self, key: object):
        """The key, if hashing it is harmless: its hash can neither recurse nor be made to collide."""
        if is_plain_key(key) or isinstance(key, (Global, Opaque)):
            return key
        if type(key) is tuple and len(key) <= 16 and all(map(is_plain_key, key)):
            self.tuple_keys += 1
            if self.tuple_keys <= MAX_TUPLE_KEYS:
                return key
        raise FileError(f"a key of type {type(key).__name__} in a dict or set of the pickle is refused")

    def result(self) -> object:
        if self.marks or len(self.stack) != 1:
            raise FileError("the pickle stops with more or less than one value")
        return self.stack[0]


def text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FileError("a text in the pickle is not UTF-8") from error


def is_plain_key(key: object) -> bool:
    """Whether the key is None, a text, bytes, a float, or an int of 64 bits."""
    return (type(key) is int and -(2**63) <= key < 2**63) or type(key) in (
        str,
        bytes,
        bool,
        float,
        type(None),
    )
