"""Models of the flatten tests: small, in NNX and in Linen, and how they are traced."""

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from jaxstate.adapters._flatten import find_flattens


def functional(model, call=lambda model, *inputs: model(*inputs)):
    """An NNX model as a function of its flat leaves, and these."""
    graph, state = nnx.split(model)
    variables = {path: variable for path, variable in nnx.to_flat_state(state)}
    paths = {".".join(map(str, path)): path for path in variables}

    def function(leaves, *inputs):
        flat = [(path, variables[path].replace(leaves[name])) for name, path in paths.items()]
        return call(nnx.merge(graph, nnx.from_flat_state(flat)), *inputs)

    return function, {name: variables[path].get_value() for name, path in paths.items()}


def find(model, *shapes, call=lambda model, *inputs: model(*inputs), **options):
    """The flattens of an NNX model for inputs of these shapes."""
    function, leaves = functional(model, call)
    return find_flattens(
        function, leaves, *(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes), **options
    )


def find_linen(module, *shapes):
    """The flattens of a Linen module, which is not even initialised: its variables are abstract."""
    inputs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    variables = jax.eval_shape(lambda *xs: module.init(jax.random.key(0), *xs), *inputs)
    leaves = traverse_util.flatten_dict(variables, sep=".")

    def function(leaves, *inputs):
        return module.apply(traverse_util.unflatten_dict(leaves, sep="."), *inputs)

    return find_flattens(function, leaves, *inputs)


class Classifier(nnx.Module):
    """A convolution, a flatten done by `flatten`, and layers on the vector."""

    def __init__(self, channels, spatial, flatten, norm=None, out=5):
        rngs, kernel = nnx.Rngs(0), (3,) * len(spatial)
        self.flatten, size = flatten, channels * int(jnp.prod(jnp.array(spatial)))
        self.conv = nnx.Conv(2, channels, kernel, rngs=rngs)
        self.norm = norm(size, rngs=rngs) if norm else None
        self.fc = nnx.Linear(size, out, rngs=rngs)
        self.head = nnx.Linear(out, 3, rngs=rngs)

    def __call__(self, x):
        x = self.flatten(nnx.relu(self.conv(x)))
        x = self.norm(x) if self.norm else x
        return self.head(nnx.gelu(self.fc(x), approximate=False))


class Generator(nnx.Module):
    """A linear layer that makes an image, with a norm on the vector, and a transposed convolution."""

    def __init__(self, channels, spatial, norm=None):
        rngs, size = nnx.Rngs(0), channels * int(jnp.prod(jnp.array(spatial)))
        self.shape = (-1, *spatial, channels)
        self.fc = nnx.Linear(7, size, rngs=rngs)
        self.norm = norm(size, rngs=rngs) if norm else None
        self.up = nnx.ConvTranspose(channels, 2, (3,) * len(spatial), rngs=rngs)

    def __call__(self, z):
        x = self.fc(z)
        x = self.norm(x) if self.norm else x
        return self.up(nnx.relu(x).reshape(self.shape))
