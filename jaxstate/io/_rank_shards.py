"""Reads safetensors files in which ranks of `torch.distributed.checkpoint` left their parts of tensors.

`HuggingFaceStorageWriter` with `save_distributed=True` writes `shard-00002-model-00001-of-00001.safetensors`.
Each header says in its metadata where in the whole tensors the parts begin; how large those are, the parts
tell together (`torch/distributed/checkpoint/hf_storage.py`).
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from jaxstate.arrays.chunks import Chunk, joined
from jaxstate.errors import FileError

from . import _safetensors_reader
from ._mapping import file_bytes
from ._members import member
from ._records import Raw
from ._safetensors_reader import offsets
from ._tiling import check_tiling

_NAME = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def files(names: Sequence[str]) -> list[str]:
    """The names of such files among others.

    >>> files(["config.json", "shard-00002-model-00001-of-00001.safetensors"])
    ['shard-00002-model-00001-of-00001.safetensors']
    """
    return [name for name in names if _NAME.fullmatch(name)]


def read(folder: str, names: Sequence[str], mapped: bool) -> OrderedDict:
    """The whole tensors by name: views where one file has all of a tensor, and lazy arrays elsewhere.

    No file says how large the whole is. One that is missing leaves a gap, which is refused, or a key or the
    end of a tensor less, which strict loading into a model refuses; torch's own reader cannot tell, either.

    Raises:
        FileError: a damaged file, a file that does not tell its parts' places, or parts that do not fit.
    """
    chunks: dict[str, list[Chunk]] = {}
    for name in names:
        try:
            found = _safetensors_reader.tensors(file_bytes(member(folder, name), mapped))
            for key, chunk in _chunks(found).items():
                chunks.setdefault(key, []).append(chunk)
        except FileError as error:
            raise FileError(f"{name}: {error}") from error
    result = OrderedDict((key, _whole(key, parts)) for key, parts in chunks.items())
    result.__metadata__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    return result


def _chunks(found: OrderedDict) -> Mapping[str, Chunk]:
    places = offsets(found.__metadata__)  # pyright: ignore[reportAttributeAccessIssue]
    for key, array in found.items():
        if isinstance(array, Raw):
            raise FileError(f'"{key[:200]}" is of {array.dtype}, whose parts are not put together')
        if len(places.get(key, ())) != array.ndim or key not in places:
            raise FileError(f'no place in the whole tensor is given for "{key[:200]}"')
    return {key: Chunk(places[key], array) for key, array in found.items()}


def _whole(key: str, chunks: list[Chunk]):
    dtypes = {chunk.values.dtype for chunk in chunks}
    ends = np.array([(*chunk.offset, *chunk.shape) for chunk in chunks], dtype=object)
    ndim = chunks[0].values.ndim
    if len(dtypes) > 1 or any(chunk.values.ndim != ndim for chunk in chunks):
        raise FileError(f'the parts of "{key[:200]}" are of several dtypes or numbers of axes')
    shape = tuple(int(n) for n in (ends[:, :ndim] + ends[:, ndim:]).max(axis=0))
    try:
        check_tiling(shape, [(chunk.offset, chunk.shape) for chunk in chunks])
    except FileError as error:
        raise FileError(f'"{key[:200]}": {error}; a file is missing or of another checkpoint') from error
    full = [chunk for chunk in chunks if chunk.values.size]
    return full[0].values if len(full) == 1 else joined(shape, dtypes.pop(), full)
