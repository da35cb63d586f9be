"""What an array is made of, found among others, and never where it is made of something else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxstate.testing._mixtures import Source
from jaxstate.testing._rows import order_of_rows
from jaxstate.testing._wiring import GATED, PLAIN, found_in

RNG = np.random.default_rng(5)
RTOL = 1e-5


def arrays(*shapes):
    return [RNG.normal(size=shape).astype("float32") for shape in shapes]


A, B, C, D, SHORT, IMAGE, TALL = arrays(*[(2, 4, 6)] * 4, (4, 6), (2, 5, 3, 6), (2, 4, 9))
KNOWN = [Source(name, array) for name, array in zip("abcd", (A, B, C, D), strict=True)]
KNOWN += [Source("short", SHORT), Source("image", IMAGE), Source("tall", TALL)]
T = torch.from_numpy


@pytest.mark.parametrize(
    "read, words",
    [
        (A, "a"),
        (np.broadcast_to(SHORT, A.shape), "short"),
        (A + C, "c + a"),
        (B + SHORT, "short + b"),
        (2.5 * A, "2.5 times a"),
        (A - 0.5 * B + C, "c + -0.5 times b + a"),
        (np.concatenate([TALL, A], -1), "tall joined with a"),
        (np.concatenate([A, B], 1), "a joined with b"),
        (A.mean(1), "the mean of a"),
        (C[:, -1], "the last of c"),
        (IMAGE.max((1, 2)), "the maximum of image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_read_is_told(read, words):
    found = found_in(KNOWN, read, RTOL, PLAIN)
    assert found is not None and found.words == words
    np.testing.assert_allclose(found.array, read, atol=1e-5)


def test_activations_are_torchs():
    for read, words in (
        (torch.nn.functional.silu(T(A)) * T(B), "silu of a * b"),
        (torch.relu(T(C) + T(D)), "relu of (d + c)"),
        (torch.nn.functional.gelu(T(D)), "gelu of d"),
    ):
        assert found_in(KNOWN, read.numpy(), RTOL, PLAIN) is None
        found = found_in(KNOWN, read.numpy(), RTOL, GATED)
        assert found is not None and found.words == words


def test_nothing_is_told_of_what_is_made_of_something_else():
    for read in (*arrays(A.shape, (2, 6), (2, 4, 15)), A * B + C, A + 1e-3 * np.cos(B), A + B + C + D):
        assert found_in(KNOWN, read, RTOL, PLAIN) is None
    few = [Source(s.words, s.array[:1, :1, :2]) for s in KNOWN[:4]]  # three factors fit two numbers
    assert found_in(few, arrays((1, 1, 2))[0], RTOL, PLAIN) is None


@given(st.permutations(range(6)))
def test_an_order_of_rows_is_found_if_it_is_one(order):
    rows = np.random.default_rng(1).normal(size=(6, 3))
    found = order_of_rows(rows, rows[order] + 1e-7)
    assert (found is None) == (order == sorted(order))
    assert found is None or found.tolist() == order
    assert order_of_rows(rows, rows[[0, 0, 1, 2, 3, 4]]) is None
