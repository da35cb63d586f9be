"""Recurrences: an LSTM step by step, with a decision in it that is another one than torch's.

torch computes its LSTM in one call that cannot be changed from outside; written out, its gates can have other
functions, another order, or a bias more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np

from jaxstate.testing._experiments import Suspicion
from jaxstate.testing._layers import Layer

FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "nothing": lambda x: x,
}
GATES = "ifgo"
DIRECTIONS = {"": "in both directions", "forward": "forwards in time", "backward": "backwards in time"}


@dataclass(frozen=True)
class Lstm:
    """One way to compute an LSTM.

    Attributes:
        gate, activation: functions of the three gates, and of what is let through and out.
        order: of the blocks of its weights, in torch's letters.
        forget: what is added to the forget gate.
    """

    gate: str = "sigmoid"
    activation: str = "tanh"
    order: str = GATES
    forget: float = 0.0


def recurrence_suspicions(layer: Layer, module: Any) -> Iterator[Suspicion]:
    """Other ways to compute torch's LSTM; none where it starts from a state, or projects it."""
    if type(module).__name__ != "LSTM" or len(layer.theirs.args) != 1 or module.proj_size:
        return
    for (says, mend, way), (suffix, where) in product(list(_others()), DIRECTIONS.items()):
        if module.bidirectional or not suffix:
            ways = {name: way if suffix in ("", name) else Lstm() for name in ("forward", "backward")}
            words = f"{says}, {where}" if module.bidirectional else says
            yield Suspicion(words, mend, lambda ways=ways: returned(module, layer.theirs.args[0], ways))


def _others() -> Iterator[tuple[str, str, Lstm]]:
    for gate, activation in product(FUNCTIONS, FUNCTIONS):
        if (gate, activation) != ("sigmoid", "tanh"):
            says = (
                f"computes gates by {gate} and activations by {activation}, and torch by sigmoid and by tanh"
            )
            yield says, "gate_fn=nnx.sigmoid, activation_fn=nnx.tanh", Lstm(gate, activation)
    yield "adds 1 to its forget gate", "no bias of 1 for the forget gate", Lstm(forget=1.0)
    for order in map("".join, permutations(GATES)):
        if order != GATES:
            says = f"takes the blocks of its weights for {', '.join(order)}, and torch for {', '.join(GATES)}"
            yield says, f"gates in the order {', '.join(GATES)}", Lstm(order=order)


def returned(module: Any, x: Any, ways: Mapping[str, Lstm]) -> np.ndarray:
    """What the module returns if each direction is computed in its way.

    Args:
        x: a tensor, as the module reads it.
    """
    array, state = x.numpy().astype(np.float64), {k: v.numpy() for k, v in module.state_dict().items()}
    array = array if module.batch_first else array.swapaxes(0, 1)
    for number in range(module.num_layers):
        passes = [_pass(array, state, f"_l{number}", ways["forward"])]
        if module.bidirectional:
            turned = _pass(array[:, ::-1], state, f"_l{number}_reverse", ways["backward"])
            passes.append(turned[:, ::-1])
        array = np.concatenate(passes, -1)
    return array if module.batch_first else array.swapaxes(0, 1)


def _pass(x: np.ndarray, state: Mapping[str, np.ndarray], suffix: str, way: Lstm) -> np.ndarray:
    """One direction of one layer, of (batch, time, features)."""
    inward, hidden = state[f"weight_ih{suffix}"].T, state[f"weight_hh{suffix}"].T
    bias = state.get(f"bias_ih{suffix}", 0.0) + state.get(f"bias_hh{suffix}", 0.0)
    h = c = np.zeros((len(x), len(hidden)))
    outputs = []
    for step in np.moveaxis(x @ inward + bias, 1, 0):
        h, c = _step(dict(zip(way.order, np.split(step + h @ hidden, 4, -1), strict=True)), c, way)
        outputs.append(h)
    return np.stack(outputs, 1)


def _step(blocks: Mapping[str, np.ndarray], c: np.ndarray, way: Lstm) -> tuple[np.ndarray, np.ndarray]:
    gate, activation = FUNCTIONS[way.gate], FUNCTIONS[way.activation]
    c = gate(blocks["f"] + way.forget) * c + gate(blocks["i"]) * activation(blocks["g"])
    return gate(blocks["o"]) * activation(c), c
