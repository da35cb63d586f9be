"""Moments of padded and of fused arrays, as whole arrays and in parts: the same bits, and torch's own.

torch trains its arrays, of which some have rows that ours lack, or lack rows that ours have. Such a row meets
no gradient in torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray
from jaxstate.errors import OptimizerError
from jaxstate.optim._torch_dict.load_state_dict import moved_in

BINDING = js.Binding(
    (
        js.Padded(js.Rule("wte.weight", "wte", "v d -> v d"), "v", 5),
        js.Padded(js.Rule("head.weight", "head", "d v -> v d"), "v", 9),
        js.Padded(js.Rule("h.{l}.w", "h.w", "l v d -> d v", l=range(2)), "v", 6),
        js.Padded(js.Rule("g.{l}.w", "g{l}.w", "(n k) d -> d (n k)", l=range(2), k=2), "n", 2),
        js.Fused([js.Rule("mlp.weight", path, "i o -> o i") for path in ("up", "gate")], "o"),
        js.Fused([js.Rule(f"{k}.weight", "kv", "i o -> o i", o=n) for k, n in (("k", 4), ("v", 2))], "o"),
    )
)
SHAPES = {"wte": (8, 3), "head": (3, 7), "h.w": (2, 4, 3), "up": (3, 5), "gate": (3, 2), "kv": (4, 6)}
SHAPES |= {"g0.w": (6, 4), "g1.w": (6, 4)}
PARAMS = {path: jnp.zeros(shape) for path, shape in SHAPES.items()}
THERE = {"head.weight": np.s_[7:], "h.0.w": np.s_[:, 4:], "h.1.w": np.s_[:, 4:]}
HERE = {"wte": np.s_[5:], "g0.w": np.s_[4:], "g1.w": np.s_[4:]}

MAKE = {
    "adam": (lambda p: torch.optim.Adam(p, lr=0.5, amsgrad=True), js.optim.adam(lr=0.5, amsgrad=True)),
    "rprop": (lambda p: torch.optim.Rprop(p, lr=0.25), js.optim.rprop(lr=0.25)),
    "adagrad": (
        lambda p: torch.optim.Adagrad(p, lr=0.5, initial_accumulator_value=0.75),
        js.optim.adagrad(lr=0.5, initial_accumulator_value=0.75),
    ),
}
STARTS = {"step_size": 0.25, "sum": 0.75}


def trained(make):
    """torch's state_dict after three steps."""
    rng, shapes = np.random.default_rng(3), BINDING.of(PARAMS).shapes
    ps = {key: torch.nn.Parameter(torch.ones(shape)) for key, shape in shapes.items()}
    optimizer = make(list(ps.values()))
    for _ in range(3):
        for key, p in ps.items():
            p.grad = torch.from_numpy(rng.normal(size=p.shape).astype("float32"))
            if key in THERE:
                p.grad[THERE[key]] = 0
        optimizer.step()
    return optimizer.state_dict()


def in_parts(osd):
    """The same dict with LazyArrays of which none can be made but in parts."""
    return {**osd, "state": {i: {k: lazy(x) for k, x in row.items()} for i, row in osd["state"].items()}}


def lazy(x):
    x = np.asarray(x)
    return LazyArray(x.shape, x.dtype, lambda: 1 / 0, lambda box: x[box]) if x.ndim else x


def by_halves(x):
    return np.concatenate([x[..., :2], x[..., 2:]], axis=-1) if np.ndim(x) else np.asarray(x)


def placed(leaf, like):
    assert isinstance(leaf, LazyArray) and leaf.shape == like.shape
    return jnp.asarray(by_halves(leaf))


def same_bits(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", MAKE)
def test_in_parts_is_as_a_whole_and_as_torch(name):
    make, tx = MAKE[name]
    osd, template = trained(make), tx.init(PARAMS)
    whole = js.optim.load_state_dict(template, osd, BINDING)
    parted = moved_in(template, in_parts(osd), BINDING, placed, lambda like: True)
    for one, other in zip(jax.tree.leaves(parted), jax.tree.leaves(whole), strict=True):
        same_bits(one, other)
    for buffer in whole.buffers:
        for path, box in HERE.items():
            padding = np.asarray(whole.buffer(buffer)[path])[box]
            same_bits(padding, np.full(padding.shape, STARTS.get(buffer, 0), "float32"))
    eager, lazily = (js.optim.state_dict(whole, BINDING, lazy=lazy)["state"] for lazy in (False, True))
    for i, row in osd["state"].items():
        assert list(eager[i]) == list(lazily[i]) == list(row)
        for buffer, x in row.items():
            assert isinstance(lazily[i][buffer], LazyArray) == (buffer != "step")
            same_bits(eager[i][buffer], x)
            same_bits(by_halves(lazily[i][buffer]), x)


def test_what_torch_trained_of_a_padding_is_found_in_parts():
    make, tx = MAKE["rprop"]
    osd = trained(make)
    osd["state"][1]["step_size"][8, 1] = 0.5
    with pytest.raises(OptimizerError, match='step_size of "head.weight" is not 0.25 everywhere in its padd'):
        moved_in(tx.init(PARAMS), in_parts(osd), BINDING, placed, lambda like: True)
