"""The pair that the tests of L-BFGS compare: one loss, written once for torch and for JAX, and its training.

Each side computes its own gradients, since the line search asks for them where it likes.
"""

import copy
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxstate.binding import Binding
from jaxstate.optim import lbfgs, load_state_dict, state_dict
from jaxstate.optim._paths import leaf_paths
from jaxstate.rules.declared import Tied
from jaxstate.rules.rule import Rule

# Transposed and merged layouts, stacked layers, a tied key, and paths that sort otherwise than keys.
LAYERS = Binding(
    (
        Rule("b.weight", "z.kernel", "i o -> o i", shape=(4, 6)),
        Rule("b.bias", "a.bias", "o -> o", shape=(6,)),
        Rule("h.{l}.weight", "blocks.kernel", "l i o -> o i", l=range(2), shape=(2, 6, 6)),
        Rule("fc.weight", "fc.kernel", "(h w c) o -> o (c h w)", h=1, w=2, c=3, shape=(6, 2)),
        Tied("head.weight", "fc.weight"),
    )
)
POINTS = Binding((Rule("q", "x", "i -> i", shape=(3,)), Rule("p", "y", "i -> ~i", shape=(2,))))


def layers(arrays, inputs, targets):
    """A small perceptron's squared error, with enough weight decay to be well-conditioned."""
    hidden = inputs @ arrays["b.weight"].T + arrays["b.bias"]
    for layer in range(2):
        hidden = hidden / (1 + hidden**2) ** 0.5 @ arrays[f"h.{layer}.weight"].T
    decay = sum((array**2).sum() for array in arrays.values())
    return ((hidden @ arrays["fc.weight"].T - targets) ** 2).sum() / len(inputs) + 0.05 * decay


def rosenbrock(arrays, inputs, targets):
    """Rosenbrock's valley in five dimensions; its inputs are the steepness of its walls."""
    p, q = arrays["p"], arrays["q"]
    pairs = [(q[0], q[1]), (q[1], q[2]), (q[2], p[0]), (p[0], p[1])]
    return sum(inputs[0, 0] * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in pairs)


PROBLEMS = {"layers": (LAYERS, layers), "rosenbrock": (POINTS, rosenbrock)}


# The state says which options there are, so one function serves all of a problem's transformations.
ANY = lbfgs()


def data(dtype):
    """Inputs and targets."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(24, 4))
    inputs[0, 0] = 10.0
    targets = np.stack([np.sin(inputs[:, 0]), inputs[:, 1] * inputs[:, 2]], axis=1)
    return inputs.astype(dtype), targets.astype(dtype)


@cache
def jax_step(problem, dtype):
    """A compiled step of any of our L-BFGS on a problem."""
    binding, loss = PROBLEMS[problem]
    arrays = [jnp.asarray(array) for array in data(dtype)]

    def of_tree(tree):
        moved = binding.state_dict(dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)))
        return loss({name: moved[name] for name in binding.parameters}, *arrays)

    closure = jax.value_and_grad(of_tree)

    @jax.jit
    def step(params, opt):
        value, grads = closure(params)
        updates, opt = ANY.update(grads, opt, params, value=value, value_and_grad_fn=closure)
        return optax.apply_updates(params, updates), opt

    return step


@dataclass
class LBFGSPair:
    """torch's LBFGS and ours on one problem.

    Args:
        problem: of PROBLEMS.
        options: of both constructors.
        bound: True if ours is told the Binding.
        rows: torch's order of the data.
        names: torch's order of the parameters.
    """

    problem: str
    options: dict
    dtype: str = "float64"
    bound: bool = True
    rows: Any = ...
    names: Any = None

    @cached_property
    def binding(self):
        return PROBLEMS[self.problem][0]

    @cached_property
    def tx(self):
        return lbfgs(**self.options, **({"binding": self.binding} if self.bound else {}))

    @cached_property
    def start(self):
        rng = np.random.default_rng(1)
        shapes = self.binding.shapes
        arrays = {name: rng.normal(size=shapes[name]) * 0.5 for name in self.binding.parameters}
        return {name: array.astype(self.dtype) for name, array in arrays.items()}

    @cached_property
    def data(self):
        return tuple(array[self.rows] for array in data(self.dtype))

    def torch(self, arrays=None, osd=None):
        """A torch optimizer, its parameters by name, and its closure."""
        arrays = self.start if arrays is None else arrays
        params = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in arrays.items()}
        rows = params.values() if self.names is None else [(name, params[name]) for name in self.names]
        tensors = {k: torch.tensor(v) for k, v in self.options.items() if isinstance(v, np.ndarray)}
        opt = torch.optim.LBFGS(rows, **{**self.options, **tensors})
        arrays = [torch.from_numpy(array) for array in self.data]
        if osd is not None:
            opt.load_state_dict(osd)

        def closure():
            opt.zero_grad()
            loss = PROBLEMS[self.problem][1](params, *arrays)
            loss.backward()
            return loss

        return opt, params, closure

    def torch_steps(self, opt, params, closure, n):
        """torch's parameters after n steps."""
        for _ in range(n):
            opt.step(closure)
        return {name: p.detach().numpy().copy() for name, p in params.items()}

    def params(self, arrays=None):
        """The tree of our leaves."""
        arrays = self.start if arrays is None else arrays
        tied = {key: to for rule in self.binding.rules if isinstance(rule, Tied) for key, to in rule.pairs}
        whole = {key: arrays[tied.get(key, key)] for key in self.binding.keys}
        tree: dict[str, Any] = {}
        for path, leaf in self.binding.leaves(whole).items():
            *parents, last = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jnp.array(leaf)
        return tree

    def arrays(self, params):
        """torch's arrays of our tree, by name."""
        leaves = dict(zip(leaf_paths(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
        moved = self.binding.state_dict(leaves)
        return {name: moved[name] for name in self.binding.parameters}

    def init(self):
        return self.tx.init(self.params())

    def jax_steps(self, params, opt, n):
        """Our parameters and state after n steps."""
        step = jax_step(self.problem, self.dtype)
        for _ in range(n):
            params, opt = step(params, opt)
        return params, opt

    def both(self, n):
        """torch's optimizer and our state after n steps of each alone."""
        opt, params, closure = self.torch()
        there = self.torch_steps(opt, params, closure, n)
        here, state = self.jax_steps(self.params(), self.init(), n)
        return opt, there, state, self.arrays(here)

    def errors(self, k, n):
        """How far k steps in one and n in the other are from k+n in torch: torch first, ours first."""
        reference = self.torch_steps(*self.torch(), k + n)
        opt, params, closure = self.torch()
        arrays = self.torch_steps(opt, params, closure, k)
        state = load_state_dict(self.init(), opt.state_dict(), self.binding)
        there, _ = self.jax_steps(self.params(arrays), state, n)
        here, state = self.jax_steps(self.params(), self.init(), k)
        osd = as_tensors(state_dict(state, self.binding))
        back = self.torch_steps(*self.torch(self.arrays(here), osd), n)
        return tuple(self.error(found, reference) for found in (self.arrays(there), back))

    def error(self, found, expected):
        """The largest difference, relative to how far the parameters have moved."""
        moved = max(np.max(np.abs(expected[name] - self.start[name])) for name in self.start)
        return max(np.max(np.abs(found[name] - expected[name])) for name in self.start) / moved


def as_tensors(node):
    """A state_dict as torch takes it."""
    if isinstance(node, dict):
        return {key: as_tensors(value) for key, value in node.items()}
    if isinstance(node, list):
        return [as_tensors(value) for value in node]
    return torch.from_numpy(node.copy()) if isinstance(node, np.ndarray) else copy.deepcopy(node)
