"""Whether what two ranks wrote at one place of a tensor is the same, told without reading it where it can be.

Each chunk is a torch file, an archive that has a checksum of every record. Where those of all records
are the same, so is the tensor. Where they differ, or were not written
(`torch.serialization.set_crc32_options(False)` makes them 0), the bytes are compared.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from . import _zip
from ._dcp_metadata import Piece, Span
from ._dcp_reader import chunk_of
from ._dtypes import Dtype
from ._same_values import same_values


def differ(pieces: Sequence[Piece], dtype: Dtype, files: Mapping[str, np.ndarray]) -> bool:
    """True if chunks of one place and shape are not all the same."""
    first, *others = [piece.span for piece in pieces if piece.span and 0 not in piece.shape] or [None]
    return first is not None and not all(_same(pieces[0], first, x, dtype, files) for x in others if x)


def _same(piece: Piece, one: Span, other: Span, dtype: Dtype, files: Mapping[str, np.ndarray]) -> bool:
    sums = _checksums(one, files)
    if 0 not in sums.values() and sums == _checksums(other, files):
        return True
    first, second = (chunk_of(piece, span, dtype, files) for span in (one, other))
    return same_values(first, second)


def _checksums(span: Span, files: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Of all records by their names in the archive, but for the one that tells archives apart."""
    found = _zip.entries(files[span.file][span.start : span.start + span.length])
    inner = {name.partition("/")[2]: entry.crc for name, entry in found.items()}
    return {name: crc for name, crc in inner.items() if not name.startswith(".data/")}
