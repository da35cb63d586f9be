"""Small models for the flatten tests, abstract ones: their leaves are shapes until a test fills them."""

import jax
from flax import linen as nn
from flax import nnx, traverse_util

from jaxstate.adapters._flatten import find_flattens


class Net(nnx.Module):
    """Layers, and a function of them and the inputs."""

    def __init__(self, call, **layers):
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs):
        return self.call(self, *inputs)


def rngs():
    return nnx.Rngs(0)


def conv(n_in, n_out, kernel=(3, 3), **options):
    return nnx.Conv(n_in, n_out, kernel, rngs=rngs(), **options)


def linear(n_in, n_out):
    return nnx.Linear(n_in, n_out, rngs=rngs())


def flat(x):
    return x.reshape(x.shape[0], -1)


def chw(x):
    """Channels first, then flat."""
    return flat(x.transpose(0, 3, 1, 2))


def leaves_of(make):
    """An NNX model as a function of its flat leaves, and these, abstract."""
    graph, state = nnx.split(nnx.eval_shape(make))
    variables = {path: variable for path, variable in nnx.to_flat_state(state)}
    paths = {".".join(map(str, path)): path for path in variables}

    def function(leaves, *inputs):
        flat_state = [(path, variables[path].replace(leaves[name])) for name, path in paths.items()]
        return nnx.merge(graph, nnx.from_flat_state(flat_state))(*inputs)

    return function, {name: variables[path].get_value() for name, path in paths.items()}


def leaves_of_linen(module, *inputs):
    """A Linen module as a function of its flat leaves, and these, abstract."""
    variables = jax.eval_shape(lambda *xs: module.init(jax.random.key(0), *xs), *inputs)

    def function(leaves, *inputs):
        return module.apply(traverse_util.unflatten_dict(leaves, sep="."), *inputs)

    return function, traverse_util.flatten_dict(variables, sep=".")


def shaped(*shapes):
    return [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]


def find(make, *shapes, **options):
    """The flattens of an NNX model, as {leaf: {dimension: "(h w c) -> (c h w)"}}."""
    function, leaves = leaves_of(make)
    found = find_flattens(function, leaves, *shaped(*shapes), **options)
    return {leaf: {i: f"{m.left} -> {m.right}" for i, m in dims.items()} for leaf, dims in found.items()}


class LinenNet(nn.Module):
    """conv, relu, pool, flatten, norm, two dense layers."""

    channels: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.channels, (3, 3), name="conv")(x))
        x = flat(nn.max_pool(x, (2, 2), (2, 2)))
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(3, name="head")(nn.gelu(nn.Dense(5, name="fc")(x), approximate=False))
