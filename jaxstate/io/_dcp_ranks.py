"""Reads checkpoints of `torch.distributed.checkpoint` in which every rank has metadata of its own.

`__<rank>.metadata` tells of the chunks that its rank wrote. They may lie in one folder or in one of each
host's. Where the folder of a host is not there, a tensor has gaps: a part of it can be asked for as far as
its chunks are there.

What lies twice is compared, tensors by their checksums. Where ranks differ in a value or in a whole tensor,
each meant its own, as the state of a generator (torch has `use_collectives=False` for it), and which of them
is asked for cannot be known: it becomes a record of all, `PerRank`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from jaxstate.arrays.chunks import Chunk, assembled, met
from jaxstate.arrays.lazy import Box, LazyArray, from_parts
from jaxstate.errors import FileError

from ._dcp_metadata import Contents, Piece, Span, Tensor
from ._dcp_reader import chunk_of, contents_of, entry_of, explained, files_in, spans_of
from ._dcp_replicas import differ
from ._nesting import nested
from ._records import PerRank
from ._same_values import same_values

Index = tuple[int, ...]

OURS = (
    "jaxstate-"  # what the save_id of `jaxstate.sharded.save` begins with; torch's differ from rank to rank
)

_NAME = re.compile(r"__\d+\.metadata")


def metadata_in(names: Sequence[str]) -> list[str]:
    """Those of these file names that are the metadata of one rank."""
    return [name for name in names if _NAME.fullmatch(name)]


def read(folders: Sequence[str], mapped: bool) -> dict:
    """The object that was saved, from the folders of one host, of some, or of all.

    Raises:
        FileError: damaged or hostile; folders that are not of one save.
    """
    contents: dict[str, Contents] = {}
    files: dict[str, np.ndarray] = {}
    for folder, name in _found(folders):
        found, place = contents_of(folder, name), os.path.join(folder, name)
        there = files_in(folder, spans_of(found), mapped)
        files |= {os.path.join(folder, file): data for file, data in there.items()}
        contents[place] = found._replace(entries=dict(_placed(folder, found)))
    _check_one_save(contents)
    entries = {name: explained(f'entry "{name[:200]}"', make) for name, make in _merged(contents, files)}
    paths = [found.paths for found in contents.values()]
    flat = None if None in paths else {key: path for row in paths if row for key, path in row.items()}
    return nested(entries, flat)


def _found(folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    for folder in folders:
        if not os.path.isdir(folder):
            raise FileError(f"{folder} is no folder")
        names = metadata_in(sorted(os.listdir(folder)))
        if not names:
            raise FileError(f"{folder} has no metadata of a rank, __<rank>.metadata, in it")
        yield from ((folder, name) for name in names)


def _placed(folder: str, contents: Contents) -> Iterator[tuple[str, Tensor | Span]]:
    """The entries, with the paths of the files in the place of their names."""
    for name, entry in contents.entries.items():
        if isinstance(entry, Span):
            yield name, entry._replace(file=os.path.join(folder, entry.file))
            continue
        pieces = (
            p if p.span is None else p._replace(span=p.span._replace(file=os.path.join(folder, p.span.file)))
            for p in entry.pieces
        )
        yield name, entry._replace(pieces=tuple(pieces))


def _check_one_save(contents: Mapping[str, Contents]) -> None:
    ids = {place: found.save_id for place, found in contents.items()}
    if any(save_id and save_id.startswith(OURS) for save_id in ids.values()) and len(set(ids.values())) > 1:
        rows = "; ".join(f"{place}: {save_id}" for place, save_id in ids.items())
        raise FileError(f"these are parts of different saves, and would make a mixture: {rows}")


def _merged(contents: Mapping[str, Contents], files: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    """For each entry a function that makes it of what all the ranks have of it."""
    rows: dict[str, list[Tensor | Span]] = {}
    for found in contents.values():
        for name, entry in found.entries.items():
            rows.setdefault(name, []).append(entry)
    yield from ((name, partial(_entry, name, row, files)) for name, row in rows.items())


def _entry(name: str, row: Sequence[Tensor | Span], files: Mapping[str, np.ndarray]) -> object:
    tensors = [entry for entry in row if isinstance(entry, Tensor)]
    if len(tensors) < len(row):
        if tensors:
            raise FileError("it is a tensor in one rank and none in another")
        return _value(name, [entry for entry in row if isinstance(entry, Span)], files)
    if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1:
        raise FileError("its shape or dtype is not the same in all ranks")
    places: dict[Any, list[Piece]] = {}
    for piece in (piece for tensor in tensors for piece in tensor.pieces):
        places.setdefault((piece.offset, piece.shape), []).append(piece)
    for (offset, shape), pieces in places.items():
        if differ(pieces, tensors[0].dtype, files):
            return _contradicting(tensors[0], offset, shape, pieces, files)
    tensor = tensors[0]._replace(pieces=tuple(pieces[0] for pieces in places.values()))
    held = sum(prod(piece.shape) for piece in tensor.pieces)
    return entry_of(name, tensor, files) if held >= prod(tensor.shape) else _partial(tensor, files)


def _contradicting(
    tensor: Tensor, offset: Index, shape: Index, pieces: Sequence[Piece], files: Mapping[str, np.ndarray]
) -> PerRank:
    """What each rank has of a tensor that all of them wrote whole; a part of one is never a rank's own."""
    spans = [piece.span for piece in pieces if piece.span]
    if shape != tensor.shape:
        named = ", ".join(span.file for span in spans)
        raise FileError(f"the part of shape {shape} at {offset} is not the same in {named}")
    return PerRank({span.file: chunk_of(pieces[0], span, tensor.dtype, files) for span in spans})


def _value(name: str, spans: Sequence[Span], files: Mapping[str, np.ndarray]) -> object:
    """What every rank has, or a record of what each has.

    Equal bytes are equal values, but not the other way round: a set of texts is pickled in another order by
    every process. So where bytes differ, values are compared.
    """
    distinct = {files[s.file][s.start : s.start + s.length].tobytes(): s for s in reversed(spans)}
    first, *others = (entry_of(name, span, files) for span in reversed(distinct.values()))
    if all(same_values(first, other) for other in others):
        return first
    return PerRank({span.file: entry_of(name, span, files) for span in spans})


def _partial(tensor: Tensor, files: Mapping[str, np.ndarray]) -> LazyArray:
    """A tensor with gaps, of which what lies in none can be asked for."""
    if tensor.dtype.numpy is None:
        raise FileError(
            f"numpy has no {tensor.dtype.torch}, and parts of the tensor are not in these folders"
        )
    _check_apart(tensor)
    placed = [(p, p.span) for p in tensor.pieces if p.span and 0 not in p.shape]
    found: list[Any] = [chunk_of(piece, span, tensor.dtype, files) for piece, span in placed]
    chunks = [Chunk(piece.offset, values) for (piece, _), values in zip(placed, found, strict=True)]
    return from_parts(
        tensor.shape, tensor.dtype.numpy, partial(_part, tensor.shape, chunks, tensor.dtype.numpy)
    )


def _check_apart(tensor: Tensor) -> None:
    starts = np.array([piece.offset for piece in tensor.pieces], np.int64).reshape(len(tensor.pieces), -1)
    stops = starts + np.array([piece.shape for piece in tensor.pieces], np.int64).reshape(starts.shape)
    if (stops > np.array(tensor.shape)).any():
        raise FileError(f"a chunk reaches out of shape {tensor.shape}")
    for n in range(1, len(starts)):
        if ((starts[:n] < stops[n]) & (starts[n] < stops[:n])).all(axis=1).any():
            raise FileError(f"two chunks overlap, one of them at {tensor.pieces[n].offset}")


def _part(shape: tuple[int, ...], chunks: Sequence[Chunk], dtype: np.dtype, box: Box) -> np.ndarray:
    held = sum(prod(s.stop - s.start for s in there) for _, there, _ in met(chunks, box))
    if held < prod(span.stop - span.start for span in box):
        asked = ", ".join(f"{span.start}:{span.stop}" for span in box)
        raise FileError(
            f"the part [{asked}] of a tensor of shape {shape} is not in these folders: each host has written "
            "what its own devices held; load([folder, ...]) reads the folders of several"
        )
    return assembled(chunks, box, dtype)
