"""Tells what a file is by its first bytes, never by its name, and says what to do with the others."""

import struct

import numpy as np

TORCH, SAFETENSORS = "torch", "safetensors"

LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f920 6aa85019".replace(" ", ""))
"""The pickle of 0x1950a86a20f9469cfc6c: how torch.save began a file before 1.6."""

MAX_HEADER = 100_000_000
"""Bytes that safetensors allows for a header."""

_RESAVE = "load it with torch.load(path) and save it again with torch.save(obj, path)"
_OTHERS = (
    (0, LEGACY_MAGIC, f"a torch file from before 1.6; {_RESAVE}"),
    (
        257,
        b"ustar",
        "a tar archive; if torch before 0.1.10 wrote it, load it with such a torch; else unpack it",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes; no torch checkpoint"),
    (0, b"GGUF", "a GGUF file, as llama.cpp reads it; fetch the model's safetensors instead"),
    (0, b"\x93NUMPY", "one numpy array; load it with numpy.load"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (0, b"BZh", "compressed by bzip2; unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed by xz; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run `git lfs pull`"),
    (0, b"PK\5\6", "an empty zip archive"),
    (0, b"{", "JSON text; of a sharded checkpoint, load the files that its index names"),
    (0, b"[", "JSON text; no checkpoint"),
    (0, b"<", "HTML or XML text, perhaps an error page in the place of a download"),
)


def recognise(data: np.ndarray) -> tuple[str | None, str]:
    """The format of a file, TORCH, SAFETENSORS or None, and for None what the file is instead.

    >>> recognise(np.frombuffer(b"GGUF....", np.uint8))[1]
    "a GGUF file, as llama.cpp reads it; fetch the model's safetensors instead"
    """
    head = bytes(data[:512])
    if head.startswith(b"PK\3\4"):
        return TORCH, ""
    if _is_safetensors(head):
        return SAFETENSORS, ""
    return None, _other(head)


def _is_safetensors(head: bytes) -> bool:
    # A header is a JSON object behind its length; no text has a length this small in its first 8 bytes.
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER


def _other(head: bytes) -> str:
    if not head:
        return "an empty file; fetch or write it again"
    for offset, magic, what in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return what
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return f"a bare pickle, not written by torch.save; where you trust it, unpickle it, then {_SAVE}"
    return f"neither a torch file nor safetensors; it begins with {head[:16]!r}"


_SAVE = "save it with torch.save or jaxstate.save"
