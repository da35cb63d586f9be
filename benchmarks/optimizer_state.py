"""The state of Adam over a llama's parameters, from torch's file to an optax state and back."""

from benchmarks import llama
from benchmarks.measure import checksum


def _made(options):
    """torch's optimizer state_dict, and what it is to be loaded into."""
    import jax
    import numpy as np
    import torch

    import jaxstate as js

    moments = llama.arrays(options)
    state = {
        n: {"step": np.float32(7), "exp_avg": array, "exp_avg_sq": array + 0}
        for n, array in enumerate(moments.values())
    }
    tx = js.optim.adam(lr=1e-3)
    sides = {key: tuple(array.shape) for key, array in llama.jax_side(options, moments).items()}
    rules = [js.Rule(key, key, _pattern(key, shape, options)) for key, shape in sides.items()]
    params = {key: jax.ShapeDtypeStruct(shape, options["dtype"]) for key, shape in sides.items()}
    binding = js.Binding(tuple(rules)).of(params)
    ones = [torch.nn.Parameter(torch.ones(1)) for _ in moments]
    groups = torch.optim.Adam(ones, lr=1e-3).state_dict()["param_groups"]
    return {"param_groups": groups, "state": state}, jax.eval_shape(tx.init, params), binding


def _pattern(key, shape, options):
    if len(shape) == 1:
        return "d -> d"
    return "i o -> o i" if llama.is_transposed(key, options) else "v d -> v d"


def copy(options):
    made = llama.arrays(options)
    return lambda: [array.copy() for array in made.values() for _ in range(2)], lambda found: None


def load(options):
    import jax

    import jaxstate as js

    made, state, binding = _made(options)
    return lambda: jax.block_until_ready(js.optim.load_state_dict(state, made, binding)), lambda found: None


def export(options):
    import jax

    import jaxstate as js

    made, state, binding = _made(options)
    state = jax.block_until_ready(js.optim.load_state_dict(state, made, binding))
    made = None  # 6 GB of 0.75 billion parameters

    def digest(found):
        return checksum({f"{n} {name}": a for n, row in found["state"].items() for name, a in row.items()})

    return lambda: js.optim.state_dict(state, binding), digest


def torch_side(options):
    made, _, _ = _made(options)
    return lambda: {f"{n} {name}": a for n, row in made["state"].items() for name, a in row.items()}, checksum
