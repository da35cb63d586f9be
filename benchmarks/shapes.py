"""Models of other shapes, and what each costs beside a bare copy of its bytes: none of them is a llama.

Each method takes a state_dict of torch's side, or the model, through `load_state_dict` and back.
"""

from benchmarks.exporting import written
from benchmarks.measure import checksum


def arrays(shapes, dtype="float32"):
    import numpy as np

    rng = np.random.default_rng(11)
    return {key: rng.standard_normal(shape, np.float32).astype(dtype) for key, shape in shapes.items()}


def small(options):
    """Many small layers: nearly all is the cost of a leaf."""
    count = options["leaves"] // 2
    shapes = {
        f"layers.{n}.{name}": s for n in range(count) for name, s in (("weight", (3, 2)), ("bias", (3,)))
    }
    rules = [(key, key, "i o -> o i" if len(shape) == 2 else "o -> o") for key, shape in shapes.items()]
    return shapes, rules


def convolutions(options):
    """The kernels of a ResNet-50."""
    shapes, width = {"conv1.weight": (64, 3, 7, 7)}, 64
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            place = f"layer{stage + 1}.{block}."
            shapes[place + "conv1.weight"] = (inner, width, 1, 1)
            shapes[place + "conv2.weight"] = (inner, inner, 3, 3)
            shapes[place + "conv3.weight"] = (4 * inner, inner, 1, 1)
            if block == 0:
                shapes[place + "downsample.0.weight"] = (4 * inner, width, 1, 1)
            width = 4 * inner
    return shapes, [(key, key, "h w i o -> o i h w") for key in shapes]


def scanned(options):
    """48 layers that JAX keeps in one leaf for each kind."""
    width = 1024 // options.get("shrink", 1)
    kinds = {"up": (3 * width, width), "down": (width, 3 * width)}
    shapes = {f"h.{n}.{name}.weight": shape for n in range(48) for name, shape in kinds.items()}
    return shapes, [(f"h.{{l}}.{name}.weight", f"h.{name}", "l i o -> o i") for name in kinds]


SHAPES = {"small": small, "convolutions": convolutions, "scanned": scanned, "sharded": scanned}


def _binding(rules):
    import jaxstate as js

    made = [js.Rule(*rule, **({"l": range(48)} if "{l}" in rule[0] else {})) for rule in rules]
    return js.Binding(tuple(made))


def _prepared(options):
    """The torch-side arrays, the Binding and the abstract leaves, sharded over all devices if asked for."""
    import jax

    shapes, rules = SHAPES[options["shape"]](options)
    made, binding = arrays(shapes), _binding(rules)
    rows = {rule.path: rule for rule in binding.rules}
    sizes = {path: _leaf_shape(rule, shapes) for path, rule in rows.items()}
    sharding = None
    if options["shape"] == "sharded":
        mesh = jax.make_mesh((len(jax.devices()),), ("x",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    template = {
        path: jax.ShapeDtypeStruct(shape, "float32", sharding=sharding) for path, shape in sizes.items()
    }
    return made, binding, template


def _leaf_shape(rule, shapes):
    inverse = rule.layout.inverse
    stacked = (48,) if "{l}" in rule.key else ()
    return inverse.shape((*stacked, *shapes[rule.keys[0]]))


def copy(options):
    shapes, _ = SHAPES[options["shape"]](options)
    made = arrays(shapes)
    return lambda: [array.copy() for array in made.values()], lambda found: None


def load(options):
    import jax

    import jaxstate as js

    made, binding, template = _prepared(options)
    return lambda: jax.block_until_ready(js.load_state_dict(template, made, binding)), checksum


def expected(options):
    """The same leaves by numpy alone."""
    import jax.numpy as jnp
    import numpy as np

    made, binding, template = _prepared(options)

    def leaf(path, rule):
        stack = np.stack([made[key] for key in rule.keys]) if "{l}" in rule.key else made[rule.keys[0]]
        axes = {"i o -> o i": (1, 0), "h w i o -> o i h w": (2, 3, 1, 0), "l i o -> o i": (0, 2, 1)}
        return jnp.asarray(stack.transpose(axes[rule.pattern]) if rule.pattern in axes else stack)

    return lambda: {rule.path: leaf(rule.path, rule) for rule in binding.rules}, checksum


def export(options):
    import jax

    import jaxstate as js

    made, binding, template = _prepared(options)
    leaves = jax.block_until_ready(js.load_state_dict(template, made, binding))
    return lambda: js.state_dict(leaves, binding), checksum


def save(options):
    """The same, but written into a file of safetensors in place of arrays."""
    import jax
    from safetensors.numpy import load_file

    import jaxstate as js

    made, binding, template = _prepared(options)
    leaves = jax.block_until_ready(js.load_state_dict(template, made, binding))
    return (
        lambda: js.save(js.state_dict(leaves, binding, lazy=True), options["out"]),
        lambda found: checksum(load_file(options["out"])),
    )


def write(options):
    """The floor of a file: the bytes as they lie, written in pieces."""
    return written(list(arrays(SHAPES[options["shape"]](options)[0]).values()), options["out"])


def torch_side(options):
    made, _, _ = _prepared(options)
    return lambda: made, checksum


def _nnx(options):
    """An NNX model of many small layers, made of copies: thousands of their own cost Flax minutes."""
    import jax.numpy as jnp
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(4)])
            self.norm = nnx.LayerNorm(8, rngs=rngs)

    graphdef, state = nnx.split(Block(nnx.Rngs(0)))
    blocks = range(max(1, options["leaves"] // 10))
    filled = ((path, leaf.get_raw_value()) for path, leaf in nnx.to_flat_state(state))
    values = [(path, jnp.full(value.shape, 0.5, value.dtype)) for path, value in filled]
    return nnx.List([nnx.merge(graphdef, nnx.from_flat_state(values)) for _ in blocks])


def nnx_bind(options):
    import jaxstate as js

    net = _nnx(options)
    return lambda: js.bind(net), lambda found: None


def nnx_load(options):
    import jax
    from flax import nnx

    import jaxstate as js

    net = _nnx(options)
    binding = js.bind(net)
    made = arrays(binding.shapes)

    def run():
        new = js.load_state_dict(net, made, binding)
        jax.block_until_ready(jax.tree.leaves(new))
        return new

    def digest(new):
        assert len(jax.tree.leaves(nnx.state(new))) == len(made)
        return checksum(js.state_dict(new, binding))

    return run, digest


def nnx_export(options):
    import jaxstate as js

    net = _nnx(options)
    binding = js.bind(net)
    loaded = js.load_state_dict(net, arrays(binding.shapes), binding)
    return lambda: js.state_dict(loaded, binding), checksum
