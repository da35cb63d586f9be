"""A model of the shape of a llama: torch's names and shapes, the file, and the same model in NNX."""

WIDTH, HIDDEN, VOCABULARY = 2048, 5632, 32000
MATRICES = {"q": 0, "k": 0, "v": 0, "o": 0, "gate": 1, "up": 1, "down": 2}


def sizes(options):
    """Width, hidden width and vocabulary: 2048, 5632 and 32000 divided by `shrink`."""
    return tuple(n // options.get("shrink", 1) for n in (WIDTH, HIDDEN, VOCABULARY))


def shapes(options):
    """torch's shape of each key; 12 layers are 0.75 billion parameters, 50 are 2.7."""
    width, hidden, vocabulary = sizes(options)
    kinds = ((width, width), (hidden, width), (width, hidden))
    layers = {
        f"layers.{n}.{name}.weight": kinds[kind]
        for n in range(options["layers"])
        for name, kind in MATRICES.items()
    }
    norms = {f"layers.{n}.norm.weight": (width,) for n in range(options["layers"])}
    return {"embed.weight": (vocabulary, width), **layers, **norms, "head.weight": (vocabulary, width)}


def is_transposed(key, options):
    return options["transposed"] and not key.startswith("embed") and "norm" not in key


def arrays(options):
    """Random bits, so that a value in a wrong place is seen."""
    import ml_dtypes
    import numpy as np

    dtype = np.dtype(getattr(ml_dtypes, options["dtype"], options["dtype"]))
    rng = np.random.default_rng(7)
    bits = {2: (np.uint16, 0x3FFF), 4: (np.uint32, 0x3FFFFFFF)}[dtype.itemsize]
    return {
        key: rng.integers(0, bits[1], shape, dtype=bits[0]).view(dtype)
        for key, shape in shapes(options).items()
    }


def jax_side(options, found):
    """The arrays as JAX has them, from torch's."""
    return {key: array.T if is_transposed(key, options) else array for key, array in found.items()}


def model(options):
    """The NNX model, abstract."""
    import jax.numpy as jnp
    from flax import nnx

    width, hidden, vocabulary = sizes(options)
    dtype = jnp.dtype(options["dtype"])

    class Block(nnx.Module):
        def __init__(self, rngs):
            sides = {0: (width, width), 1: (width, hidden), 2: (hidden, width)}
            for name, kind in MATRICES.items():
                made = nnx.Linear(*sides[kind], use_bias=False, param_dtype=dtype, rngs=rngs)
                setattr(self, name, made)
            self.norm = nnx.RMSNorm(width, param_dtype=dtype, rngs=rngs)

    class Llama(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(vocabulary, width, param_dtype=dtype, rngs=rngs)
            self.layers = nnx.List([Block(rngs) for _ in range(options["layers"])])
            self.head = nnx.Linear(width, vocabulary, use_bias=False, param_dtype=dtype, rngs=rngs)

    return nnx.eval_shape(lambda: Llama(nnx.Rngs(0)))


def named(module):
    """The arrays of the NNX model by torch's keys."""
    import re

    from flax import nnx

    flat = nnx.to_flat_state(nnx.state(module))
    names = {
        path: re.sub(r"(kernel|embedding|scale)$", "weight", ".".join(map(str, path))) for path, _ in flat
    }
    return {names[path]: leaf.get_raw_value() for path, leaf in flat}


def template(options):
    """What takes the arrays, abstract, and its Binding: the NNX model; a dict where nothing is transposed."""
    import jax

    import jaxstate as js

    if options["transposed"]:
        made = model(options)
        return made, js.bind(made)
    made = {key: jax.ShapeDtypeStruct(shape, options["dtype"]) for key, shape in shapes(options).items()}
    rules = [
        js.Rule(key, key, "o i -> o i" if len(s) == 2 else "o -> o") for key, s in shapes(options).items()
    ]
    return made, js.Binding(tuple(rules))


def leaves(made):
    return made if isinstance(made, dict) else named(made)
