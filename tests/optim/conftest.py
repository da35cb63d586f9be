"""The pair of this folder's tests: one model in torch's layout and in JAX's, and one stream of gradients for both."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)
    np.random.seed(0)


HERE = Path(__file__).parent
