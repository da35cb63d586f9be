"""Reads what `torch.jit.save` writes: the state_dict of the module, and the tensors that its code holds.

The pickle holds each module as an object of a class `__torch__.a.b.Net` with all its attributes in one dict.
Which of them are parameters and which buffers is said in the text of the class, `code/__torch__/a/b.py`
(torch's `torch/csrc/jit/serialization/python_print.cpp`). That text is read line by line, as data.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxstate.errors import FileError

from ._archive import Archive
from ._records import Opaque, Raw
from ._torch_reader import unpickled

MAX_CODE = 64 << 20
MAX_KEYS = 1_000_000
"""How many entries a state_dict may have; modules that share each other multiply them."""


class Class(NamedTuple):
    """What the text of a module's class says of its attributes.

    Attributes:
        parameters: the names of its parameters.
        buffers: the names of its buffers; None where the text has no list of them.
        tensors: the names of the attributes whose type is Tensor.
        packed: whether it turns its state into something else, by a method of its own.
    """

    parameters: frozenset[str]
    buffers: frozenset[str] | None
    tensors: frozenset[str]
    packed: bool


def read(archive: Archive) -> OrderedDict:
    """The state_dict of the module, in the order in which `torch.jit.load(path).state_dict()` has it.

    Raises:
        FileError: damaged or hostile; or a module that is packed, as quantized ones are.
    """
    root = unpickled(archive, "data.pkl", "data/")
    return collected(_entries(root, "", _classes(archive)))


def constants(archive: Archive) -> OrderedDict:
    """The tensors that the code names `CONSTANTS.c0`, `CONSTANTS.c1`, ..., by those names."""
    values = unpickled(archive, "constants.pkl", "constants/")
    if type(values) not in (tuple, list):
        raise FileError(f"constants.pkl holds a {type(values).__name__} in the place of a tuple")
    return OrderedDict((f"c{i}", value) for i, value in enumerate(values) if is_tensor(value))  # pyright: ignore


def collected(entries: Iterable[tuple[str, object]]) -> OrderedDict:
    """The entries as a state_dict, unless they are too many, or one key stands twice."""
    result = OrderedDict()
    for count, (key, value) in enumerate(entries):
        if key in result or count >= MAX_KEYS:
            raise FileError(f"the state_dict has key {key[:200]!r} twice, or more than {MAX_KEYS} keys")
        result[key] = value
    return result


def is_tensor(value: object) -> bool:
    """Whether torch would make a tensor of this: an array, or a record of one that numpy has no form for."""
    return isinstance(value, (np.ndarray, Raw)) or (
        isinstance(value, Opaque) and value.name.startswith("torch._utils._rebuild")
    )


Classes = Callable[[Opaque], Class | None]


def _entries(module: object, prefix: str, classes: Classes) -> Iterator[tuple[str, object]]:
    declared = classes(module) if isinstance(module, Opaque) else None
    if not isinstance(module, Opaque) or declared is None:
        raise FileError("data.pkl does not hold a module of TorchScript")
    attributes = _attributes(module, prefix, declared)
    for name in (*_parameters(attributes, declared), *_buffers(attributes, declared, module, prefix)):
        yield prefix + name, attributes[name]
    for name, value in attributes.items():
        if isinstance(value, Opaque) and classes(value) is not None:
            yield from _entries(value, f"{prefix}{name}.", classes)


def _attributes(module: Opaque, prefix: str, declared: Class) -> Mapping[str, object]:
    state = module.state
    if declared.packed or type(state) is not dict or any(map(_is_custom, state.items())):
        raise FileError(
            f"module {prefix[:-1]!r} of class {module.name} packs its state by a method of its own, as "
            "quantized modules do; save `torch.jit.load(path).state_dict()` with torch.save"
        )
    return state


def _is_custom(item: tuple[object, object]) -> bool:
    """Whether an attribute is an object of C++, such as the packed weights of a quantized layer."""
    name, value = item
    return type(name) is not str or (
        isinstance(value, Opaque) and value.name.startswith("__torch__.torch.classes.")
    )


def _parameters(attributes: Mapping[str, object], declared: Class) -> list[str]:
    return [n for n, value in attributes.items() if n in declared.parameters and is_tensor(value)]


def _buffers(attributes: Mapping[str, object], declared: Class, module: Opaque, prefix: str) -> list[str]:
    """torch counts a buffer only where its declared type is Tensor, and not where it is optional."""
    rest = [n for n in attributes if n in declared.tensors and n not in declared.parameters]
    if declared.buffers is None and rest:
        raise FileError(
            f"module {prefix[:-1]!r} of class {module.name} does not say which of {rest[:8]} are buffers, as "
            "torch before 1.6 did not; load it with such a torch and save its state_dict with torch.save"
        )
    return [name for name in rest if name in (declared.buffers or ())]


def _classes(archive: Archive) -> Classes:
    """Finds the class of an object in the archive's code; None where it is not that of a module."""
    files: dict[str, Mapping[str, Class]] = {}

    def find(value: Opaque) -> Class | None:
        function = value.function
        if isinstance(function, Opaque) or not (function.module + ".").startswith("__torch__."):
            return None
        path = f"code/{function.module.replace('.', '/')}.py"
        if path not in files:
            files[path] = _declared(archive, path)
        return files[path].get(function.attribute)

    return find


def _declared(archive: Archive, path: str) -> Mapping[str, Class]:
    if path not in archive.entries:
        raise FileError(f"the archive has no entry {path[:200]!r}, which would say what its modules hold")
    try:
        return declared(archive.content(path, MAX_CODE).decode())
    except UnicodeDecodeError as error:
        raise FileError(f"entry {path[:200]!r} is not UTF-8") from error


_CLASS = re.compile(r"class (\w+)\((\w+)\):")
_LIST = re.compile(r"  (__parameters__|__buffers__) = (.*)")
_NAMES = re.compile(r'\[("[^"\\]*", )*\]')
_FIELD = re.compile(r"  (\w+) : Tensor|  __annotations__\[(\".*\")\] = Tensor")
_NAME = re.compile(r'"([^"\\]*)"')


def declared(text: str) -> Mapping[str, Class]:
    """The classes of modules in one file of code, by their names.

    >>> code = 'class Net(Module):\\n  __parameters__ = ["w", ]\\n  __buffers__ = []\\n  w : Tensor\\n'
    >>> declared(code)["Net"].parameters
    frozenset({'w'})
    """
    found: dict[str, Class] = {}
    for name, base, body in _blocks(text):
        if name in found:
            raise FileError(f"the code declares class {name[:200]} twice")
        if base == "Module":
            found[name] = _class(body)
    return found


def _blocks(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(name, base, lines) of each class: its lines are indented."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if line[:1] not in ("", " ")] + [len(lines)]
    for start, stop in zip(starts, starts[1:], strict=False):
        match = _CLASS.fullmatch(lines[start])
        if match:
            yield match[1], match[2], lines[start + 1 : stop]


def _lists(matches: list[re.Match[str]]) -> Mapping[str, frozenset[str]]:
    """The names in the lists of a class. torch writes a quote in a name as it is, and cannot read it back."""
    lists = {match[1]: frozenset(_NAME.findall(match[2])) for match in matches}
    if len(lists) != len(matches) or not all(_NAMES.fullmatch(match[2]) for match in matches):
        raise FileError(
            f"the code has lists of names that torch cannot read: {matches[0][0].strip()[:200]!r}"
        )
    return lists


def _class(lines: list[str]) -> Class:
    lists = _lists([match for match in map(_LIST.fullmatch, lines) if match])
    fields = [match for match in map(_FIELD.fullmatch, lines) if match]
    tensors = frozenset(match[1] or match[2][1:-1] for match in fields)
    packed = any(line.startswith("  def __setstate__(") for line in lines)
    return Class(lists.get("__parameters__", frozenset()), lists.get("__buffers__"), tensors, packed)
