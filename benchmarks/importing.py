"""Import: a file of torch becomes a JAX model. Every method ends with the same arrays on JAX's device."""

from benchmarks import llama
from benchmarks.measure import checksum

METHODS = ("jaxstate", "script", "safetensors_flax", "orbax", "peer_hugging_face")


def copy(options):
    """The floor: the bytes of the file copied into fresh memory, array by array."""
    import numpy as np

    data, places, at = np.memmap(options["path"], np.uint8, "r"), [], 0
    for shape in llama.shapes(options).values():
        size = int(np.prod(shape)) * {"bfloat16": 2, "float32": 4}[options["dtype"]]
        places.append(slice(at, at + size))
        at += size
    return lambda: [data[place].copy() for place in places], lambda made: None


def jaxstate(options):
    import jax

    import jaxstate as js

    template, binding = llama.template(options)

    def run():
        made = js.load_state_dict(template, js.load(options["path"]), binding)
        return jax.block_until_ready(llama.leaves(made))

    return run, checksum


def script(options):
    """torch.load, a transpose and jnp.asarray: the recipe that is found everywhere."""
    import jax
    import jax.numpy as jnp
    import ml_dtypes
    import torch
    from safetensors.torch import load_file

    def array(key, tensor):
        tensor = tensor.T if llama.is_transposed(key, options) else tensor
        if tensor.dtype == torch.bfloat16:
            return jnp.asarray(tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
        return jnp.asarray(tensor.numpy())

    def run():
        is_pt = options["path"].endswith(".pt")
        found = torch.load(options["path"], weights_only=True) if is_pt else load_file(options["path"])
        return jax.block_until_ready({key: array(key, tensor) for key, tensor in found.items()})

    return run, checksum


def safetensors_flax(options):
    import jax
    from safetensors.flax import load_file

    def run():
        return jax.block_until_ready(_moved(load_file(options["path"]), options))

    return run, checksum


def orbax(options):
    """Orbax's reader of safetensors, and a transpose on the device."""
    import jax
    from orbax.checkpoint import v1

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        key: jax.ShapeDtypeStruct(shape, options["dtype"], sharding=here)
        for key, shape in llama.shapes(options).items()
    }

    def run():
        with v1.Context(checkpoint_layout=v1.options.CheckpointLayout.SAFETENSORS):
            return jax.block_until_ready(_moved(v1.load(options["path"], target), options))

    return run, checksum


def _moved(found, options):
    """Transposed one by one, each original dropped as soon as it is not needed."""
    return {
        key: found.pop(key).T if llama.is_transposed(key, options) else found.pop(key) for key in list(found)
    }


def peer_hugging_face(options):
    """transformers' converter from PyTorch to Flax, which its version 5 no longer has."""
    from types import SimpleNamespace

    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict
    from transformers.modeling_flax_pytorch_utils import load_pytorch_checkpoint_in_flax_state_dict

    if not options["transposed"]:
        raise SystemExit("it always transposes")
    names = {key: _flax_name(key) for key in llama.shapes(options)}
    shapes = {
        names[key]: jax.ShapeDtypeStruct(
            shape[::-1] if llama.is_transposed(key, options) else shape, options["dtype"]
        )
        for key, shape in llama.shapes(options).items()
    }
    net = SimpleNamespace(params=unflatten_dict(shapes), base_model_prefix="none")

    def run():
        found = flatten_dict(load_pytorch_checkpoint_in_flax_state_dict(net, options["path"], False))
        return jax.block_until_ready({key: found[name] for key, name in names.items()})

    return run, checksum


def _flax_name(key):
    *place, _ = key.split(".")
    last = "embedding" if key.startswith("embed") else "scale" if "norm" in key else "kernel"
    return (*place, last)
