"""Flax's two holders of an optimizer state, `nnx.Optimizer` and `TrainState`, opened and closed again.

Both keep a step of their own beside the tree of optax. NNX keeps every array in a Variable besides.
"""

import copy
import dataclasses
import sys
from typing import Any, NamedTuple

import jax


class Stepped(NamedTuple):
    """What a holder holds: how often it was called, and optax's tree."""

    step: Any
    opt_state: Any


def opened(opt: Any) -> Any:
    """The tree of arrays in a holder; anything else is such a tree already."""
    if _is_nnx(opt):
        return Stepped(_pure(opt.step), _pure(opt.opt_state))
    return Stepped(opt.step, opt.opt_state) if _is_train_state(opt) else opt


def closed(opt: Any, tree: Any) -> Any:
    """A holder like this one with another tree; its model, parameters and transformation are shared."""
    if _is_nnx(opt):
        new = copy.copy(opt)
        new.step = _boxed(opt.step, tree.step)
        new.opt_state = sys.modules["flax.nnx"].data(_boxed(opt.opt_state, tree.opt_state))
        return new
    if _is_train_state(opt):
        return dataclasses.replace(opt, step=tree.step, opt_state=tree.opt_state)
    return tree


def _is_nnx(opt: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(opt, nnx.Optimizer)


def _is_train_state(opt: Any) -> bool:
    known = {field.name for field in dataclasses.fields(opt)} if dataclasses.is_dataclass(opt) else set()
    return {"step", "params", "tx", "opt_state"} <= known


def _pure(tree: Any) -> Any:
    return sys.modules["flax.nnx"].as_pure(tree)


def _boxed(boxes: Any, tree: Any) -> Any:
    """The tree with its arrays in copies of these Variables; what was no array gets a Variable of its own."""
    variable, own = sys.modules["flax.nnx"].Variable, sys.modules["flax.nnx.training.optimizer"].OptArray
    old = dict(jax.tree_util.tree_leaves_with_path(boxes, is_leaf=lambda x: isinstance(x, variable)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: old[path].replace(leaf) if path in old else own(leaf), tree
    )
