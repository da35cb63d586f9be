"""Reads what `torch.export.save` writes (`.pt2`): the state_dict of the program, and its constants.

Since torch 2.8 the storages lie as they are in `data/weights/weight_0`, ..., and a JSON text beside them,
`data/weights/NAME_weights_config.json`, says which tensor lies where in which
(`torch/export/pt2_archive/_package.py`). Before, a `torch.save` of the dict stood in the archive.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from jaxstate.errors import FileError

from . import _torch_reader, _zip
from ._archive import Archive, opened
from ._dtypes import BY_EXPORT, BY_TORCH
from ._records import Global, Storage
from ._tensors import Tensors

BEFORE_2_8 = "serialized_state_dict.pt"
MAX_CONFIG = 256 << 20

_WEIGHTS, _CONSTANTS = ("data/weights/", "weights"), ("data/constants/", "constants")
_STRIDED = 7
_RESAVE = "save `torch.export.load(path).state_dict` with torch.save"


def read(archive: Archive) -> OrderedDict:
    """The state_dict of the program in the archive, in the order of `torch.export.load(path).state_dict`.

    Raises:
        FileError: damaged or hostile; no program or several; or a tensor that is not strided.
    """
    return _payloads(archive, *_WEIGHTS)


def constants(archive: Archive) -> OrderedDict:
    """The tensors beside the state_dict: plain attributes, and buffers that are not persistent."""
    return _payloads(archive, *_CONSTANTS)


def read_before_2_8(data: np.ndarray, entries: Mapping[str, _zip.Entry]) -> object:
    """The state_dict in an archive of torch 2.1 to 2.7."""
    return _torch_reader.read(opened(_zip.stored(data, entries[BEFORE_2_8])))


def _payloads(archive: Archive, folder: str, kind: str) -> OrderedDict:
    model = _model(archive)
    if f"{folder}{model}.pt" in archive.entries:
        return _state_dict(_nested(archive, f"{folder}{model}.pt"), f"{folder}{model}.pt")
    config = _config(archive, f"{folder}{model}_{kind}_config.json")
    tensors = Tensors(archive.record, archive.swapped, len(archive.data))
    storages = _storages(archive, folder, config)
    return OrderedDict(
        (key, _payload(archive, folder, key, meta, storages, tensors))
        for key, meta in config.items()
        if not _is_custom(meta)
    )


def _model(archive: Archive) -> str:
    """The name of the one program in the archive."""
    names = [m[1] for m in (re.fullmatch(r"models/([^/]+)\.json", name) for name in archive.entries) if m]
    if len(names) != 1:
        found = ", ".join(sorted(names)[:8]) or "none"
        raise FileError(
            f"an exported program is due, and the archive holds {found} (a package of AOTInductor has none, "
            f"but compiled code); {_RESAVE}"
        )
    return names[0]


def _state_dict(value: object, name: str) -> OrderedDict:
    if not isinstance(value, dict):
        raise FileError(f"entry {name!r} holds a {type(value).__name__} in the place of a dict")
    return OrderedDict(value)


def _nested(archive: Archive, name: str) -> object:
    """The object in an entry that is itself an archive of torch.save."""
    try:
        return _torch_reader.read(opened(archive.record(name)))
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def _config(archive: Archive, name: str) -> Mapping[str, dict]:
    if name not in archive.entries:
        raise FileError(f"the archive has no entry {name!r}; {_RESAVE}")
    config = _parsed(archive.content(name, min(MAX_CONFIG, max(len(archive.data), 1 << 20))), name)
    entries = config.get("config") if type(config) is dict else None
    if type(entries) is not dict or not all(type(meta) is dict for meta in entries.values()):
        raise FileError(f"entry {name!r} is not a map from names to tensors")
    return entries


def _parsed(text: bytes, name: str) -> object:
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileError(f"entry {name!r} is not proper JSON: {str(error)[:200]}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _is_custom(meta: dict) -> bool:
    # Objects of C++ classes stand among the constants, under names of their own.
    name = meta.get("path_name")
    return type(name) is str and name.startswith(("custom_obj_", "opaque_obj_"))


def _storages(archive: Archive, folder: str, config: Mapping[str, dict]) -> Mapping[str, Storage]:
    """One storage for each entry, so that what is tied stays tied."""
    names = [meta.get("path_name") for meta in config.values() if meta.get("use_pickle") is not True]
    return {name: _storage(archive, folder, name) for name in names if type(name) is str}


def _storage(archive: Archive, folder: str, name: str) -> Storage:
    if folder + name not in archive.entries:
        raise FileError(f"the archive has no entry {(folder + name)[:200]!r}, which its config names")
    data = archive.record(folder + name)
    return Storage(Global("torch.storage", "UntypedStorage"), name, len(data), data)


def _payload(archive: Archive, folder: str, key: str, meta: dict, storages: Mapping, tensors: Tensors):
    if meta.get("use_pickle") is True:
        return _nested(archive, f"{folder}{meta.get('path_name')}")
    try:
        storage, place = storages[meta["path_name"]], meta["tensor_meta"]
        dtype = BY_TORCH[BY_EXPORT[place["dtype"]]]
        geometry = _int(place["storage_offset"]), _ints(place["sizes"]), _ints(place["strides"])
        strided = place["layout"] == _STRIDED
    except (KeyError, TypeError) as error:
        raise FileError(f"tensor {key[:200]!r} lacks a proper dtype, shape or place; {_RESAVE}") from error
    if not strided:
        raise FileError(f"tensor {key[:200]!r} is not strided; {_RESAVE}")
    return tensors.tensor(dtype, (storage, *geometry))


def _ints(values: list) -> tuple[int, ...]:
    return tuple(_int(value) for value in values)


def _int(value: dict) -> int:
    if list(value) != ["as_int"]:
        raise TypeError("a symbolic size")
    return value["as_int"]
