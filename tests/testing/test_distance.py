"""The measures, against numpy and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.testing import distance, kl_divergence

FLOATS = st.floats(-1e6, 1e6, width=32)
PAIRS = st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=6)


@given(PAIRS)
def test_of_any_two_vectors(pairs):
    theirs, ours = (np.float32(side) for side in zip(*pairs, strict=True))
    found, wide = distance(theirs, ours), np.abs(theirs.astype(float) - ours)
    assert found.max_abs == wide.max() == wide[found.where]
    assert (found.theirs, found.ours) == (theirs[found.where], ours[found.where])
    scale = float(np.abs(theirs).max()) or 1.0
    assert found.relative * scale == pytest.approx(found.max_abs)
    steps = [_steps(*pair) for pair in zip(theirs, ours, strict=True)]
    assert found.ulps == max(steps)


def _steps(one, other):
    """Floats between two, counted from zero outwards on both sides."""
    ranks = [int(np.float32(abs(x)).view(np.int32)) * (-1 if x < 0 else 1) for x in (one, other)]
    return abs(ranks[0] - ranks[1]) if one != other else 0


@given(st.floats(-(2.0**90), 2.0**90, width=32), st.integers(0, 6))
def test_an_ulp_is_a_step_to_the_next_float(x, count):
    y = np.float32(x)
    for _ in range(count):
        y = np.nextafter(y, np.float32(np.inf))
    assert distance(np.float32([x]), np.float32([y])).ulps == count


def test_cosine_and_kl_are_torchs():
    rng = np.random.default_rng(0)
    theirs, ours = rng.normal(size=(2, 4, 7))
    a, b = torch.from_numpy(theirs), torch.from_numpy(ours)
    cosine = torch.nn.functional.cosine_similarity(a.ravel(), b.ravel(), dim=0)
    assert distance(theirs, ours).cosine == pytest.approx(float(cosine), abs=1e-12)
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none")
    assert kl_divergence(theirs, ours) == pytest.approx(float(kl.sum(-1).mean()), rel=1e-12)


def test_what_is_no_number():
    inf, nan = np.inf, np.nan
    assert distance([inf, nan, 1.0], [inf, nan, 1.0]).relative == 0
    for other in ([inf, nan, nan], [-inf, nan, 1.0], [nan, nan, 1.0]):
        assert distance([inf, nan, 1.0], other).relative == inf
    assert distance(np.zeros(2), np.zeros(2)).cosine == 1 and distance(np.zeros(2), np.ones(2)).cosine == 0
    assert distance(np.zeros(2), np.ones(2)).relative == 1
    assert distance(np.zeros((0, 3)), np.zeros((0, 3))).relative == 0
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        distance(np.zeros(2), np.zeros(3))
    assert distance([1 + 1j], [1 + 2j]).max_abs == 1
