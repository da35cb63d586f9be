"""An LSTM written out, against torch's."""

import numpy as np
import pytest
import torch

from jaxstate.testing._recurrences import Lstm, returned

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True, "num_layers": 2, "batch_first": True},
        {"bias": False, "num_layers": 2},
        {"bidirectional": True, "bias": False, "batch_first": True},
    ],
    ids=str,
)
def test_it_is_torchs(options):
    torch.manual_seed(1)
    module = torch.nn.LSTM(4, 3, **options)
    right = {"forward": Lstm(), "backward": Lstm()}
    with torch.no_grad():
        np.testing.assert_allclose(returned(module, X, right), module(X)[0].numpy(), atol=1e-6)


def test_decisions_are_what_torch_does_with_other_weights():
    """Blocks in another order are its weights reordered, and a forget bias is one of its biases."""
    torch.manual_seed(1)
    module, other = torch.nn.LSTM(4, 3), torch.nn.LSTM(4, 3)
    state = module.state_dict()
    other.load_state_dict({key: torch.cat([a.chunk(4)[n] for n in (1, 0, 3, 2)]) for key, a in state.items()})
    with torch.no_grad():
        found = returned(module, X, {"forward": Lstm(order="fiog")})
        np.testing.assert_allclose(found, other(X)[0].numpy(), atol=1e-6)
        state["bias_ih_l0"][3:6] += 1.0
        found = returned(module, X, {"forward": Lstm()})
        module.bias_ih_l0[3:6] -= 1.0
        np.testing.assert_allclose(found, returned(module, X, {"forward": Lstm(forget=1.0)}), atol=1e-6)
