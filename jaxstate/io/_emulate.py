"""What the calls in a pickle mean when they are Python's or numpy's own: the few whose result is plain data.

Each reads its arguments, checks them, and answers with a value, or with None where the arguments are not
those that Python's pickler writes; the call then stays an inert `Opaque`.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

import numpy as np

from jaxstate.errors import FileError

from ._machine import is_plain_key
from ._records import Global, Opaque


class Budget:
    """How much a file may have us copy: three bytes that say "that list again, as a set" must stay cheap."""

    __slots__ = ("left",)

    def __init__(self, limit: int):
        self.left = limit

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise FileError("the pickle asks for far more copies than it has bytes")


Emulation = Callable[[tuple, Budget], object | None]


def build(budget: Budget) -> Callable[[object, object], object]:
    """How an object takes its state: `_metadata` of an OrderedDict, the contents of a numpy array.

    The function that is returned raises FileError for another attribute of an OrderedDict (it could hide a
    method) and for the state of plain data.
    """

    def give(made: object, state: object) -> object:
        if type(made) is OrderedDict:
            return _with_metadata(made, state)
        if type(made) is not Opaque:
            raise FileError(f"the pickle sets attributes of a {type(made).__name__}")
        array = _array(state, budget) if made.name in _RECONSTRUCT else None
        if array is None:
            object.__setattr__(made, "state", state)
            return made
        return array

    return give


def _with_metadata(made: OrderedDict, state: object) -> OrderedDict:
    if type(state) is not dict or list(state) != ["_metadata"]:
        raise FileError("the pickle sets attributes of an OrderedDict other than `_metadata`")
    made._metadata = state["_metadata"]  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _is_one_of(value: object, *texts: str) -> bool:
    # The type comes first: what a file puts here may be an array, whose `==` is one more array.
    return type(value) is str and value in texts


# Python's own. Protocol 2 has no opcodes for bytes, sets and complex numbers: they are calls.


def _ordered_dict(args: tuple, budget: Budget) -> OrderedDict | None:
    if args == ():
        return OrderedDict()
    pairs = args[0] if len(args) == 1 and type(args[0]) is list else None
    if pairs is None or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        return None
    budget.spend(len(pairs))
    return OrderedDict(pairs) if all(is_plain_key(key) for key, _ in pairs) else None


def _counter(args: tuple, budget: Budget) -> Counter | None:
    if len(args) != 1 or type(args[0]) is not dict:
        return None
    budget.spend(len(args[0]))
    return Counter(args[0])


def _set(kind: type) -> Emulation:
    def emulate(args: tuple, budget: Budget):
        if len(args) != 1 or type(args[0]) is not list or not all(map(is_plain_key, args[0])):
            return None
        budget.spend(len(args[0]))
        return kind(args[0])

    return emulate


def _encode(args: tuple, budget: Budget) -> bytes | None:
    if len(args) != 2 or type(args[0]) is not str or not _is_one_of(args[1], "latin1", "latin-1"):
        return None
    budget.spend(len(args[0]))
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise FileError("bytes in the pickle are spelled with characters above 255") from error


def _empty_bytes(args: tuple, budget: Budget) -> bytes | None:
    return b"" if args == () else None


def _bytearray(args: tuple, budget: Budget) -> bytearray | None:
    if args == ():
        return bytearray()
    raw = args[0] if len(args) == 1 and type(args[0]) is bytes else _encode(args, budget)
    return None if raw is None else bytearray(raw)


def _complex(args: tuple, budget: Budget) -> complex | None:
    return complex(*args) if len(args) == 2 and all(type(part) is float for part in args) else None


def _size(args: tuple, budget: Budget) -> tuple | None:
    return args[0] if len(args) == 1 and type(args[0]) is tuple else None


# TorchScript's own: C++ writes the type of a list or a dict beside it, as in `Dict[str, bool]`.


def _untagged(args: tuple, budget: Budget) -> object | None:
    return args[0] if len(args) == 2 and type(args[1]) is str and type(args[0]) in (list, dict) else None


def _built_list(args: tuple, budget: Budget) -> list | None:
    return args[0] if len(args) == 1 and type(args[0]) is list else None


# numpy's own. An array of kind O would hold pickles again; only numbers are read.


def dtype_of(record: object) -> np.dtype | None:
    """The dtype that `numpy.dtype("f8", False, True)` with state `(3, "<", None, ...)` stands for."""
    if not (isinstance(record, Opaque) and record.name == "numpy.dtype" and type(record.state) is tuple):
        return None
    code, order = record.args[0] if record.args else None, record.state[1] if len(record.state) > 1 else None
    plain = type(code) is str and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code)
    return np.dtype(f"{order}{code}") if plain and _is_one_of(order, "<", ">", "|", "=") else None


def _filled(dtype: np.dtype | None, shape, raw, order: str, budget: Budget) -> np.ndarray | None:
    if dtype is None or not _is_shape(shape) or type(raw) not in (bytes, bytearray):
        return None
    budget.spend(len(raw))
    if prod(shape) * dtype.itemsize != len(raw):
        raise FileError(
            f"a numpy array of shape {shape} and dtype {dtype} has {len(raw)} bytes in the pickle"
        )
    array = np.frombuffer(bytes(raw), dtype).reshape(shape, order="F" if order == "F" else "C")
    return array if dtype.isnative else _read_only(array.astype(dtype.newbyteorder("=")))


def _is_shape(shape: object) -> bool:
    return type(shape) is tuple and len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**62 for n in shape)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _array(state: object, budget: Budget) -> np.ndarray | None:
    if type(state) is not tuple or len(state) != 5:
        return None
    _, shape, dtype, fortran, raw = state
    return _filled(dtype_of(dtype), shape, raw, "F" if fortran is True else "C", budget)


def _from_buffer(args: tuple, budget: Budget) -> np.ndarray | None:
    if len(args) != 4 or not _is_one_of(args[3], "C", "F"):
        return None
    return _filled(dtype_of(args[1]), args[2], args[0], args[3], budget)


def _scalar(args: tuple, budget: Budget) -> np.generic | None:
    array = _filled(dtype_of(args[0]), (), args[1], "C", budget) if len(args) == 2 else None
    return None if array is None else array.reshape(-1)[0]


_RECONSTRUCT = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")

EMULATIONS: Mapping[str, Emulation] = MappingProxyType(
    {
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _counter,
        "builtins.set": _set(set),
        "builtins.frozenset": _set(frozenset),
        "builtins.bytes": _empty_bytes,
        "builtins.bytearray": _bytearray,
        "builtins.complex": _complex,
        "_codecs.encode": _encode,
        "torch.Size": _size,
        "torch.jit._pickle.restore_type_tag": _untagged,
        "torch.jit._pickle.build_intlist": _built_list,
        "torch.jit._pickle.build_doublelist": _built_list,
        "torch.jit._pickle.build_boollist": _built_list,
        "torch.jit._pickle.build_tensorlist": _built_list,
        "numpy._core.multiarray.scalar": _scalar,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.numeric._frombuffer": _from_buffer,
        "numpy.core.numeric._frombuffer": _from_buffer,
    }
)


def construct(
    emulations: Mapping[str, Emulation], budget: Budget
) -> Callable[[Global | Opaque, tuple], object]:
    """What a call in the pickle gives: the value of its emulation, or an Opaque."""

    def call(function: Global | Opaque, args: tuple) -> object:
        emulate = emulations.get(function.name) if isinstance(function, Global) else None
        value = None if emulate is None else emulate(args, budget)
        return Opaque(function, args) if value is None else value

    return call
