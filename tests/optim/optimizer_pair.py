"""The pair that these tests compare: one set of parameters in torch and in JAX, and one stream of gradients.

Each Binding meets another difficulty: transposed and convolutional layouts, an axis that a flatten merged in
another order, layers stacked into one leaf, one key made of several leaves, a tied key.
"""

import copy
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxstate.binding import Binding
from jaxstate.optim import load_state_dict, sgd, state_dict
from jaxstate.optim._paths import leaf_paths
from jaxstate.rules.declared import Tied, TorchOnly
from jaxstate.rules.rule import Rule

# Shapes that all differ: a layout that is wrong does not fit.
DIFFERENT = Binding(
    (
        Rule("conv.weight", "conv.kernel", "h w i o -> o i h w", shape=(2, 3, 4, 5)),
        Rule("conv.bias", "conv.bias", "o -> o", shape=(5,)),
        Rule("fc.weight", "fc.kernel", "(h w c) o -> o (c h w)", h=2, w=3, c=5, shape=(30, 7)),
        Rule("fc.bias", "fc.bias", "o -> o", shape=(7,)),
        Rule(
            "attn.in_proj",
            "attn.{qkv}.kernel",
            "d n k -> (qkv n k) d",
            qkv=("query", "key", "value"),
            n=2,
            shape=(6, 2, 4),
        ),
        Rule("h.{l}.weight", "blocks.kernel", "l i o -> o i", l=range(3), shape=(3, 4, 6)),
        Rule("h.{l}.bias", "blocks.bias", "l o -> o", l=range(3), shape=(3, 6)),
        Rule("wte.weight", "embed.embedding", "v d -> v d", shape=(11, 4)),
        Tied("head.weight", "wte.weight"),
        TorchOnly("bn.num_batches_tracked", np.int64(0), counter=True),
    )
)

FEW = DIFFERENT.only(["conv.weight", "fc.weight", "h.*.bias"])

# Shapes that are all equal, and paths that sort otherwise than keys: what is wrong fits, so values tell.
EQUAL = Binding(
    (
        Rule("z.weight", "a.kernel", "i o -> o i", shape=(3, 3)),
        Rule("b.weight", "z.kernel", "i o -> o i", shape=(3, 3)),
        Rule("h.{l}.weight", "blocks.kernel", "l i o -> o i", l=range(3), shape=(3, 3, 3)),
        Rule("a.{l}.weight", "layers_{l}.kernel", "i o -> o i", l=(0, 2, 10), shape=(3, 3)),
    )
)

BOUND = {"float32": 2e-6, "float64": 1e-14}


# All algorithms share one update, which asks the state what it is; so one compilation serves them all.
ANY = sgd()


@jax.jit
def jax_step(params, opt, grads):
    """One step of any optimizer whose state says which one it is."""
    updates, opt = ANY.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


def nested(leaves):
    """The flat leaves as a tree of dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def to_jax(binding, arrays):
    """The tree of JAX leaves of torch's arrays, by parameter name; None stays None."""
    tied = {key: to for rule in binding.rules if isinstance(rule, Tied) for key, to in rule.pairs}
    whole = {key: arrays[tied.get(key, key)] for key in binding.keys if tied.get(key, key) in arrays}
    counters = {k: np.int64(0) for k in binding.keys if k not in whole}
    return nested({path: jnp.array(leaf) for path, leaf in binding.leaves({**whole, **counters}).items()})


def to_torch(binding, tree):
    """torch's arrays by parameter name."""
    leaves = dict(zip(leaf_paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
    moved = binding.state_dict(leaves)
    return {name: moved[name] for name in binding.parameters}


def as_tensors(osd):
    """A state_dict as torch takes it."""
    entries = {i: {k: torch.from_numpy(v) for k, v in entry.items()} for i, entry in osd["state"].items()}
    return {"state": entries, "param_groups": copy.deepcopy(osd["param_groups"])}


def cases_of(name):
    """The options of an optimizer's cases in PyTorch's own table; its tensors are numpy arrays."""
    from torch.testing._internal.common_optimizers import optim_db

    (info,) = (info for info in optim_db if info.name == name)
    rows = [case.kwargs for case in info.optim_inputs_func(device="cpu")]
    return [{k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]


def displacement_error(found, expected, start):
    """The largest difference, relative to how far the parameters have moved."""
    moved = max(np.max(np.abs(expected[name] - start[name])) for name in start)
    return max(np.max(np.abs(found[name] - expected[name])) for name in start) / moved


@dataclass
class Pair:
    """A torch optimizer and ours, over the same parameters.

    Args:
        torch_class, tx: the two.
        binding: pairs their parameters.
        options: of torch's constructor.
        groups: None, or torch's groups with names for parameters.
        scale: of the parameters. Where they are large beside their steps, one rounding of theirs is a large
            part of a step.
        steps: how many gradients there are.
    """

    torch_class: Any
    tx: Any
    binding: Binding
    options: dict
    groups: Any = None
    dtype: str = "float32"
    scale: float = 1.0
    steps: int = 12

    def __post_init__(self):
        rng = np.random.default_rng(0)
        scale = np.dtype(self.dtype).type(self.scale)
        self.start = {name: scale * self._random(rng, name) for name in self.binding.parameters}
        self.grads = [{name: self._random(rng, name) for name in self.start} for _ in range(self.steps)]

    def _random(self, rng, name):
        values = rng.normal(size=self.binding.shapes[name])
        if np.issubdtype(self.dtype, np.complexfloating):
            values = values + 1j * rng.normal(size=values.shape)
        return values.astype(self.dtype)

    def torch(self, arrays, osd=None):
        """A torch optimizer, and its parameters by name."""
        params = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in arrays.items()}
        groups = self.groups or [{"params": list(params)}]
        rows = [{**group, "params": [params[name] for name in group["params"]]} for group in groups]
        opt = self.torch_class(rows, **self.options, foreach=False)
        if osd is not None:
            opt.load_state_dict(osd)
        return opt, params

    def torch_steps(self, opt, params, start, stop):
        """The parameters after some steps of torch."""
        for grads in self.grads[start:stop]:
            for name, p in params.items():
                p.grad = None if grads.get(name) is None else torch.from_numpy(grads[name].copy())
            opt.step()
        return {name: p.detach().numpy().copy() for name, p in params.items()}

    def jax_steps(self, arrays, opt, start, stop):
        """The parameters and the state after some steps of ours."""
        params = to_jax(self.binding, arrays)
        for grads in self.grads[start:stop]:
            params, opt = jax_step(params, opt, to_jax(self.binding, grads))
        return to_torch(self.binding, params), opt

    def init(self):
        """Our state before the first step."""
        return self.tx.init(to_jax(self.binding, self.start))

    def ends(self, k, n):
        """Pairs of parameters that should agree: k steps in torch and n here, k here and n in torch.

        What ours wrote is held against what torch wrote, since reading makes a difference to torch: it casts
        the scalars that it keeps in float32 to the dtype of the parameters.
        """
        reference = self.torch_steps(*self.torch(self.start), 0, k + n)
        opt, params = self.torch(self.start)
        arrays, osd = self.torch_steps(opt, params, 0, k), copy.deepcopy(opt.state_dict())
        resumed = self.torch_steps(*self.torch(arrays, osd), k, k + n)
        ours = load_state_dict(self.init(), opt.state_dict(), self.binding)
        there, _ = self.jax_steps(arrays, ours, k, k + n)
        arrays, ours = self.jax_steps(self.start, self.init(), 0, k)
        osd = as_tensors(state_dict(ours, self.binding))
        back = self.torch_steps(*self.torch(arrays, osd), k, k + n)
        return (there, reference), (back, resumed)

    def errors(self, k, n):
        """How far the pairs differ: torch first, ours first."""
        return tuple(displacement_error(*pair, self.start) for pair in self.ends(k, n))
