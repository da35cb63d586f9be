"""Export: a JAX model becomes a file of torch. Every method ends with a file that reads alike."""

import os
import zlib

from benchmarks import llama
from benchmarks.measure import checksum

PT = ("jaxstate", "torch_save")
SAFETENSORS = ("jaxstate", "safetensors_numpy")
PIECE = 1 << 20


def _model(options):
    import jax

    import jaxstate as js

    template, binding = llama.template(options)
    made = js.load_state_dict(template, llama.arrays(options), binding)
    return jax.block_until_ready(made), binding


def _file(options):
    def digest(made):
        if os.path.isdir(options["out"]):
            from safetensors.numpy import load_file

            names = [name for name in sorted(os.listdir(options["out"])) if name.endswith(".safetensors")]
            found = {}
            for name in names:
                found |= load_file(os.path.join(options["out"], name))
            return checksum(found)
        if options["out"].endswith(".safetensors"):
            from safetensors.numpy import load_file

            return checksum(load_file(options["out"]))
        import ml_dtypes
        import torch

        tensors = torch.load(options["out"], weights_only=True, mmap=True)
        bits = {torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16), torch.float32: (torch.uint32, "float32")}
        views = {key: (tensor, *bits[tensor.dtype]) for key, tensor in tensors.items()}
        return checksum({key: t.view(b).numpy().view(dtype) for key, (t, b, dtype) in views.items()})

    return digest


def write(options, crc=False):
    """The floor: the bytes as they lie, written in pieces."""
    return written(list(llama.arrays(options).values()), options["out"], crc)


def written(arrays, path, crc=False):
    """A method that writes the bytes of these arrays, with or without a checksum of them."""
    import numpy as np

    def run():
        with open(path, "wb", buffering=0) as file:
            for array in arrays:
                data = array.reshape(-1).view(np.uint8).data
                for at in range(0, len(data), PIECE):
                    zlib.crc32(data[at : at + PIECE]) if crc else None
                    file.write(data[at : at + PIECE])

    return run, lambda made: None


def write_crc(options):
    """The floor of a zip archive: the same, and a checksum of it."""
    return write(options, crc=True)


def write_to_one_file(options):
    """The floor of several files: the same bytes in one."""
    return write({**options, "out": options["out"] + ".bytes"})


def jaxstate(options):
    import jaxstate as js

    model, binding = _model(options)
    how = {"max_shard_size": options["shard"]} if options.get("shard") else {}
    return lambda: js.save(js.state_dict(model, binding, lazy=True), options["out"], **how), _file(options)


def torch_save(options):
    """The leaves as tensors, transposed, contiguous, and torch.save."""
    import numpy as np
    import torch

    model, _ = _model(options)
    leaves = llama.leaves(model)

    def tensor(key, leaf):
        array = np.asarray(leaf)
        array = array.view(np.uint16) if options["dtype"] == "bfloat16" else array
        found = torch.from_numpy(array)
        found = found.view(torch.bfloat16) if options["dtype"] == "bfloat16" else found
        return (found.T if llama.is_transposed(key, options) else found).contiguous()

    def run():
        torch.save({key: tensor(key, leaf) for key, leaf in leaves.items()}, options["out"])

    return run, _file(options)


def safetensors_numpy(options):
    """The leaves transposed by numpy, contiguous, and safetensors' own writer."""
    import numpy as np
    from safetensors.numpy import save_file

    model, _ = _model(options)
    leaves = llama.leaves(model)

    def run():
        arrays = llama.jax_side(options, {key: np.asarray(leaf) for key, leaf in leaves.items()})
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, options["out"])

    return run, _file(options)
