"""Interprets the pickle inside a torch file. Nothing is imported, called or set: no byte chooses code.

The machine knows the opcodes of protocols 2 to 5 and builds plain lists, dicts, tuples and numbers. What a
pickle would call becomes a name and arguments, and the caller says what they mean (`_emulate.py`). The
opcodes are those of `pickletools` in Python's library.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxstate.errors import FileError

from ._machine import Machine, Meaning, text
from ._records import Global, Opaque

MAX_OPCODES = 50_000_000
MAX_MARKS = 10_000
MAX_LONG_BYTES = 65_536


def interpret(data: bytes, meaning: Meaning, start: int = 0) -> tuple[object, int]:
    """The object that the pickle at `start` holds, and the position behind its STOP.

    Raises:
        FileError: an opcode that no torch file needs, or a stack, a memo or an operand out of bounds.

    >>> import pickle
    >>> inert = Meaning(Opaque, lambda pid: pid, lambda made, state: made)
    >>> interpret(pickle.dumps({"lr": 0.5, "betas": (1, 2)}, 2), inert)[0]
    {'lr': 0.5, 'betas': (1, 2)}
    >>> interpret(pickle.dumps(print, 2), inert)[0]
    Global(module='builtins', attribute='print')
    """
    machine = Machine(data, meaning, start)
    for _ in range(MAX_OPCODES):
        code = machine.take(1)[0]
        if code == _STOP:
            return machine.result(), machine.position
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise FileError(
                f"opcode {bytes([code])!r} at byte {machine.position - 1} of the pickle is refused; {_HINT}"
            )
        opcode(machine)
    raise FileError(f"the pickle has more than {MAX_OPCODES} opcodes")


_STOP = ord(".")
_HINT = "jaxstate reads protocols 2 to 5, and torch.save writes protocol 2 unless it is told otherwise"


_U1, _U2, _U4, _U8 = (struct.Struct(f) for f in ("<B", "<H", "<I", "<Q"))
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")


# Values that stand in the stream.


def _proto(m: Machine) -> None:
    version = m.number(_U1)
    if not 2 <= version <= 5:
        raise FileError(f"the pickle is of protocol {version}; {_HINT}")


def _number(format: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: m.push(m.number(format))


def _string(length: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: m.push(text(m.take(m.number(length))))


def _bytes(length: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(length)))


def _bytearray(m: Machine) -> None:
    m.push(bytearray(m.take(m.number(_U8))))


def _constant(value: object) -> Callable[[Machine], None]:
    return lambda m: m.push(value)


def _empty(kind: type) -> Callable[[Machine], None]:
    return lambda m: m.push(kind())


def _long(length: struct.Struct) -> Callable[[Machine], None]:
    def push(m: Machine) -> None:
        count = m.number(length)
        if not 0 <= count <= MAX_LONG_BYTES:
            raise FileError(f"an int of {count} bytes in the pickle")
        m.push(int.from_bytes(m.take(count), "little", signed=True))

    return push


# The stack and the memo.


def _mark(m: Machine) -> None:
    if len(m.marks) >= MAX_MARKS:
        raise FileError(f"the pickle nests more than {MAX_MARKS} marks")
    m.marks.append(len(m.stack))


def _pop(m: Machine) -> None:
    # Python's pickler drops a mark, too, by POP; see `save_tuple` for tuples that contain themselves.
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _pop_mark(m: Machine) -> None:
    m.pop_mark()


def _memoize(m: Machine, index: int) -> None:
    value = m.top()
    m.memo[index] = value
    if type(value) is Opaque:
        m.places[id(value)] = index


def _put(index: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: _memoize(m, m.number(index))


def _next_put(m: Machine) -> None:
    _memoize(m, len(m.memo))


def _get(index: struct.Struct) -> Callable[[Machine], None]:
    def push(m: Machine) -> None:
        place = m.number(index)
        if place not in m.memo:
            raise FileError(f"the pickle reads entry {place} of its memo, which it never wrote")
        m.push(m.memo[place])

    return push


# Containers.


def _tuple(count: int) -> Callable[[Machine], None]:
    return lambda m: m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _tuple_to_mark(m: Machine) -> None:
    m.push(tuple(m.pop_mark()))


def _extend(m: Machine, values: list) -> None:
    target = m.top()
    if type(target) is list:
        target.extend(values)
    elif type(target) is Opaque:
        target.elements.extend(values)
    else:
        raise FileError(f"the pickle appends to a {type(target).__name__}")


def _append(m: Machine) -> None:
    value = m.pop()
    _extend(m, [value])


def _appends(m: Machine) -> None:
    values = m.pop_mark()
    _extend(m, values)


def _add_items(m: Machine) -> None:
    values = m.pop_mark()
    target = m.top()
    if type(target) is Opaque:
        target.elements.extend(values)
    elif type(target) is set:
        target.update(m.key(value) for value in values)
    else:
        raise FileError(f"the pickle adds to a {type(target).__name__}")


def _frozenset(m: Machine) -> None:
    m.push(frozenset(m.key(value) for value in m.pop_mark()))


def _set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    _store(m, [key, value])


def _set_items(m: Machine) -> None:
    values = m.pop_mark()
    if len(values) % 2:
        raise FileError("the pickle stores a key without a value")
    _store(m, values)


def _store(m: Machine, values: list) -> None:
    target = m.top()
    pairs = zip(values[::2], values[1::2], strict=True)
    if type(target) is Opaque:
        target.items.extend(pairs)
    elif type(target) in (dict, OrderedDict):
        for key, value in pairs:
            target[m.key(key)] = value
    else:
        raise FileError(f"the pickle stores into a {type(target).__name__}")


# What reaches outside.


def _global(m: Machine) -> None:
    module = m.line()
    m.push(m.named(module, m.line()))


def _stack_global(m: Machine) -> None:
    attribute, module = m.pop(), m.pop()
    m.push(m.named(module, attribute))


def _reduce(m: Machine) -> None:
    args, function = m.pop(), m.pop()
    if not (type(args) is tuple and isinstance(function, (Global, Opaque))):
        raise FileError(f"the pickle calls a {type(function).__name__} with a {type(args).__name__}")
    m.push(m.meaning.construct(function, args))


def _new_object(m: Machine) -> None:
    args, cls = m.pop(), m.pop()
    if not (type(args) is tuple and isinstance(cls, (Global, Opaque))):
        raise FileError(f"the pickle makes an object of a {type(cls).__name__}")
    m.push(Opaque(cls, args))


def _new_object_ex(m: Machine) -> None:
    kwargs, args, cls = m.pop(), m.pop(), m.pop()
    if not (type(args) is tuple and type(kwargs) is dict and isinstance(cls, (Global, Opaque))):
        raise FileError(f"the pickle makes an object of a {type(cls).__name__}")
    m.push(Opaque(cls, (*args, kwargs)))


def _build(m: Machine) -> None:
    state, made = m.pop(), m.pop()
    built = m.meaning.build(made, state)
    place = m.places.get(id(made))
    if place is not None and m.memo[place] is made:
        m.memo[place] = built
    m.push(built)


def _persistent(m: Machine) -> None:
    m.push(m.meaning.persistent(m.pop()))


def _frame(m: Machine) -> None:
    if m.number(_U8) > len(m.data) - m.position:
        raise FileError("a frame of the pickle reaches behind its end")


_OPCODES: Mapping[int, Callable[[Machine], None]] = MappingProxyType(
    {
        0x80: _proto,
        0x95: _frame,
        ord("N"): _constant(None),
        0x88: _constant(True),
        0x89: _constant(False),
        ord("J"): _number(_I4),
        ord("K"): _number(_U1),
        ord("M"): _number(_U2),
        ord("G"): _number(_F8),
        0x8A: _long(_U1),
        0x8B: _long(_I4),
        ord("X"): _string(_U4),
        0x8C: _string(_U1),
        0x8D: _string(_U8),
        ord("T"): _string(_I4),
        ord("U"): _string(_U1),
        ord("B"): _bytes(_U4),
        ord("C"): _bytes(_U1),
        0x8E: _bytes(_U8),
        0x96: _bytearray,
        ord("]"): _empty(list),
        ord("}"): _empty(dict),
        ord(")"): _constant(()),
        0x8F: _empty(set),
        ord("("): _mark,
        ord("0"): _pop,
        ord("1"): _pop_mark,
        ord("q"): _put(_U1),
        ord("r"): _put(_U4),
        0x94: _next_put,
        ord("h"): _get(_U1),
        ord("j"): _get(_U4),
        0x85: _tuple(1),
        0x86: _tuple(2),
        0x87: _tuple(3),
        ord("t"): _tuple_to_mark,
        ord("a"): _append,
        ord("e"): _appends,
        0x90: _add_items,
        0x91: _frozenset,
        ord("s"): _set_item,
        ord("u"): _set_items,
        ord("c"): _global,
        0x93: _stack_global,
        ord("R"): _reduce,
        0x81: _new_object,
        0x92: _new_object_ex,
        ord("b"): _build,
        ord("Q"): _persistent,
    }
)
