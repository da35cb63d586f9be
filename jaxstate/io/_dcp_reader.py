"""Reads a folder of `torch.distributed.checkpoint`: tensors in chunks, in one file for each rank.

Each chunk, and each value that is no tensor, is a whole torch file inside of a `.distcp` file; `.metadata`
says where (`torch/distributed/checkpoint/filesystem.py`). A tensor in one chunk is a view of its file. One in
several is put together when it is asked for, and only from the chunks that the asked-for part meets.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxstate.arrays.chunks import Chunk, assembled, joined
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import FileError

from . import _torch_reader, _zip
from ._archive import opened
from ._dcp_metadata import Contents, Piece, Span, Tensor, parse
from ._dtypes import Dtype
from ._mapping import file_bytes
from ._members import member
from ._nesting import nested
from ._records import Raw
from ._tiling import check_tiling

METADATA = ".metadata"


def read(folder: str, mapped: bool) -> dict:
    """The object that was saved, nested as it was, with arrays in the place of tensors.

    Args:
        mapped: whether to view the files as they lie on disk; otherwise they are read at once.

    Raises:
        FileError: damaged or hostile; or files that are not those that `.metadata` describes.
    """
    contents = contents_of(folder)
    files = files_in(folder, spans_of(contents), mapped)
    entries = {name: entry_of(name, found, files) for name, found in contents.entries.items()}
    return explained(METADATA, partial(nested, entries, contents.paths))


def contents_of(folder: str, name: str = METADATA) -> Contents:
    """What `.metadata` in this folder states; raises FileError as `read` does."""
    data = file_bytes(member(folder, name), mapped=True)
    return explained(name, partial(parse, data))


def files_of(contents: Contents) -> list[str]:
    """The names of the files that the contents lie in."""
    return list(dict.fromkeys(span.file for span in spans_of(contents)))


def explained(what: str, make):
    """What `make` gives; a FileError that it raises names what was read."""
    try:
        return make()
    except FileError as error:
        raise FileError(f"{what}: {error}") from error


def spans_of(contents: Contents) -> list[Span]:
    """Where the contents lie, each place once."""
    found = (_places(entry) for entry in contents.entries.values())
    return [span for places in found for span in places]


def _places(entry: Tensor | Span) -> list[Span]:
    if isinstance(entry, Span):
        return [entry]
    # Empty chunks at one offset have one place.
    return list(dict.fromkeys(piece.span for piece in entry.pieces if piece.span))


def files_in(folder: str, spans: Sequence[Span], mapped: bool) -> Mapping[str, np.ndarray]:
    """The bytes of the files that these spans lie in, which must hold all of them."""
    paths = {span.file: member(folder, span.file) for span in spans}
    if missing := [name for name, path in paths.items() if not os.path.exists(path)]:
        raise FileError(f"{METADATA} names files that are not there: {', '.join(missing[:8])}; fetch them")
    files = {name: explained(name, partial(file_bytes, path, mapped)) for name, path in paths.items()}
    _check_spans(spans, files)
    return files


def _check_spans(spans: Sequence[Span], files: Mapping[str, np.ndarray]) -> None:
    reach = dict.fromkeys(files, 0)
    for file, start, length in sorted(spans):
        if start < reach[file]:
            raise FileError(f"{METADATA}: two chunks overlap at byte {start} of {file}")
        if start + length > len(files[file]):
            raise FileError(
                f"{METADATA}: a chunk of {length} bytes at {start} of {file}, which has {len(files[file])}; "
                "fetch it again"
            )
        reach[file] = start + length


def entry_of(name: str, entry: Tensor | Span, files: Mapping[str, np.ndarray]) -> object:
    """The array or the value of one entry."""
    try:
        return _value(entry, files) if isinstance(entry, Span) else _tensor(entry, files)
    except FileError as error:
        raise FileError(f'entry "{name[:200]}": {error}') from error


def _value(span: Span, files: Mapping[str, np.ndarray]) -> object:
    data = files[span.file][span.start : span.start + span.length]
    if bytes(data[:4]) != b"PK\3\4":
        raise FileError(f"the bytes at {span.start} of {span.file} are no torch file")
    return _torch_reader.read(opened(data, _zip.entries(data)))


def _tensor(tensor: Tensor, files: Mapping[str, np.ndarray]) -> np.ndarray | Raw | LazyArray:
    check_tiling(tensor.shape, [(piece.offset, piece.shape) for piece in tensor.pieces])
    full = [piece for piece in tensor.pieces if 0 not in piece.shape]
    found: list[Any] = [chunk_of(p, p.span, tensor.dtype, files) for p in full or tensor.pieces[:1] if p.span]
    if len(found) == 1:
        return found[0]
    if tensor.dtype.numpy is None:
        return _raw(tensor, full, found)
    chunks = [Chunk(piece.offset, array) for piece, array in zip(full, found, strict=True)]
    return joined(tensor.shape, tensor.dtype.numpy, chunks)


def chunk_of(piece: Piece, span: Span, dtype: Dtype, files: Mapping[str, np.ndarray]):
    """The values of one chunk, which lie there and must be what its tensor is."""
    array = _value(span, files)
    name = array.dtype if isinstance(array, Raw) else getattr(array, "dtype", None)
    expected = dtype.torch if dtype.numpy is None else dtype.numpy
    if not isinstance(array, (np.ndarray, Raw)) or (array.shape, name) != (piece.shape, expected):
        raise FileError(
            f"{METADATA} has {dtype.torch} of shape {piece.shape} at {piece.offset}, and {span.file} a "
            f"{type(array).__name__} of {name} and shape {getattr(array, 'shape', None)}"
        )
    # torch writes a chunk in full, so that what is put together is no larger than the files.
    if (array.data if isinstance(array, Raw) else array).nbytes > span.length:
        raise FileError(f"the chunk at {piece.offset} unfolds {span.length} bytes to more")
    return array


def _raw(tensor: Tensor, pieces: Sequence[Piece], found: Sequence[Raw]) -> Raw:
    """The bytes of a tensor whose dtype numpy does not have: one more axis of its chunks."""
    chunks = [Chunk((*p.offset, 0), raw.data) for p, raw in zip(pieces, found, strict=True)]
    box = tuple(slice(0, n, 1) for n in (*tensor.shape, tensor.dtype.itemsize))
    return Raw(tensor.dtype.torch, tensor.shape, assembled(chunks, box, np.dtype(np.uint8)))
