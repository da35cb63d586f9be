"""Tells what a file is by its first bytes, never by its name, and says what to do with the others."""

import re
import struct
from collections.abc import Iterable

import numpy as np

TORCH, LEGACY, SAFETENSORS = "torch", "legacy", "safetensors"

_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""The number 0x1950a86a20f9469cfc6c in a pickle: how torch.save began a file before 1.6."""

MAX_HEADER = 100_000_000
"""Bytes that safetensors allows for a header."""

_TAR = "a tar archive; unpack it, and load the checkpoint in it"
_OTHERS = (
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras writes; load it with Keras and save its weights by numpy",
    ),
    (0, b"GGUF", "a GGUF file, as llama.cpp reads it; fetch the model's safetensors instead"),
    (0, b"lmgg", "a GGML file, as llama.cpp once read it; fetch the model's safetensors instead"),
    (0, b"tjgg", "a GGML file, as llama.cpp once read it; fetch the model's safetensors instead"),
    (0, b"\x93NUMPY", "one numpy array; load it with numpy.load"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (0, b"BZh", "compressed by bzip2; unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed by xz; unpack it first"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"x\x01", "compressed by zlib, as joblib.dump may; load it with joblib, where you trust it"),
    (0, b"x\x9c", "compressed by zlib, as joblib.dump may; load it with joblib, where you trust it"),
    (0, b"x\xda", "compressed by zlib, as joblib.dump may; load it with joblib, where you trust it"),
    (0, b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run `git lfs pull`"),
    (0, b"PK\5\6", "an empty zip archive"),
    (0, b"PAR1", "a Parquet table; no checkpoint"),
    (0, b"ARROW1", "an Arrow table; no checkpoint"),
    (0, b"SQLite format 3", "an SQLite database; no checkpoint"),
    (4, b"TFL3", "a TensorFlow Lite model; export its weights by TensorFlow"),
    (4, b"PTMF", "a TorchScript module for mobile, as a flatbuffer; save the state_dict of its model"),
    (4, b"ET12", "an ExecuTorch program; save the state_dict of the model that it was made of"),
    (0, b"\x12\1\0\0\0\0\0\0", "parameters of MXNet; load them with mxnet.nd.load"),
    (0, b"{", "JSON text; of a sharded checkpoint, load the folder, or the files that its index names"),
    (0, b"[", "JSON text; no checkpoint"),
    (0, b"<", "HTML or XML text, perhaps an error page in the place of a download"),
    (0, b"model_checkpoint_path", "the list of a folder of TensorFlow checkpoints; load one by TensorFlow"),
)
_TABLE_FOOTER = bytes.fromhex("57fb808b247547db")
"""The end of a LevelDB table: how TensorFlow stores the index of a checkpoint."""

_ARCHIVES = (
    (r".*\.npy", "arrays of numpy.savez; load them with numpy.load"),
    (r"model\.weights\.h5", "a Keras model; load it with keras.saving.load_model"),
    (r"MAR-INF/.*", "an archive of TorchServe; unpack it, and load the checkpoint in it"),
    (r".*\.mlmodel", "a Core ML model; save the state_dict of the model that it was made of"),
    (r"\[Content_Types\]\.xml", "a document of an office program"),
)


def recognise(data: np.ndarray) -> tuple[str | None, str]:
    """The format of a file, TORCH, LEGACY, SAFETENSORS or None, and for None what the file is instead.

    >>> recognise(np.frombuffer(b"GGUF....", np.uint8))[1]
    "a GGUF file, as llama.cpp reads it; fetch the model's safetensors instead"
    """
    head = bytes(data[:512])
    if head.startswith(b"PK\3\4"):
        return TORCH, ""
    if _is_pickle(head) and _LEGACY_MAGIC in head[:24]:
        return LEGACY, ""
    if _is_safetensors(head):
        return SAFETENSORS, ""
    return None, _other(head, bytes(data[-8:]))


def other_archive(names: Iterable[str]) -> str | None:
    """What a zip archive is that tools other than torch write, by the name of one of its entries."""
    for name in names:
        for pattern, what in _ARCHIVES:
            if re.fullmatch(pattern, name):
                return what
    return None


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _is_safetensors(head: bytes) -> bool:
    # A header is a JSON object behind its length; no text has a length this small in its first 8 bytes.
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER


def _other(head: bytes, footer: bytes) -> str:
    if not head:
        return "an empty file; fetch or write it again"
    for offset, magic, what in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return what
    if footer == _TABLE_FOOTER:
        return "the index of a TensorFlow checkpoint; load it by TensorFlow"
    return _structured(head) or f"neither a torch file nor safetensors; it begins with {head[:16]!r}"


def _structured(head: bytes) -> str | None:
    """What formats without a magic number look like at their beginning."""
    if head[257:262] == b"ustar":
        return _TORCH_TAR if head.partition(b"\0")[0] in _TAR_MEMBERS else _TAR
    if _is_pickle(head):
        return _bare(head)
    if re.match(rb"[\x81-\x8f\xde\xdf].{0,4}?[\xa1-\xbf\xd9]\w", head, re.DOTALL):
        return _MSGPACK
    if re.match(rb"\x08[\x01-\x20]\x12", head):
        return _ONNX if re.match(rb"\x08[\x03-\x20]\x12[\x01-\x20][a-z]", head) else _SAVED_MODEL
    return None


_TAR_MEMBERS = (b"storages", b"tensors", b"pickle", b"./storages", b"./tensors", b"./pickle")
_TORCH_TAR = (
    "a tar archive, as torch before 0.1.10 (2017) wrote; where you trust it, load it with "
    "torch.load(path, weights_only=False), which runs what the file says, and save it with torch.save"
)
_MSGPACK = (
    "msgpack, as flax.serialization.to_bytes writes; flax.serialization.msgpack_restore of its bytes gives "
    "the tree, and jaxstate.state_dict of that what torch reads"
)
_ONNX = "an ONNX model; its weights are the initializers that onnx.load and onnx.numpy_helper give"
_SAVED_MODEL = (
    "a protobuf, such as a SavedModel of TensorFlow; load it by TensorFlow and save its weights by numpy"
)


def _bare(head: bytes) -> str:
    if b"joblib" in head:
        return "a pickle of joblib.dump; where you trust it, load it with joblib.load, then " + _SAVE
    return f"a bare pickle, not written by torch.save; where you trust it, unpickle it, then {_SAVE}"


_SAVE = "save it with torch.save or jaxstate.save"
