"""Ways to attend, against torch's attention and the rotary positions and slopes of transformers."""

import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import numpy as jnp

import jaxstate as js
from jaxstate.testing._attention import Attention, Recorded, attended, divided, fits, merged

RNG = np.random.default_rng(3)


def recorded(width, own, batch=2, time=5, length=5, **others):
    shapes = (batch, time, width), (batch, length, own), (batch, length, own)
    arrays = tuple(RNG.normal(size=shape).astype("float32") for shape in shapes)
    return Recorded({"query, key, value": arrays}, **others)


def torchs(seen, heads, own, turn=lambda x: x, **options):
    """torch's own attention of the same arrays."""
    query, key, value = (torch.from_numpy(a) for a in seen.readings["query, key, value"])
    split = lambda x, n: x.unflatten(-1, (n, -1)).transpose(1, 2)  # noqa: E731
    parts = turn(split(query, heads)), turn(split(key, own)), split(value, own)
    found = torch.nn.functional.scaled_dot_product_attention(*parts, enable_gqa=heads != own, **options)
    return found.transpose(1, 2).flatten(-2).numpy()


@pytest.mark.parametrize("heads, own", [(1, 1), (4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize(
    "way, options",
    [
        ({}, {}),
        ({"mask": "causal"}, {"is_causal": True}),
        ({"scale": "1"}, {"scale": 1.0}),
        ({"scale": "0.37", "mask": "causal"}, {"scale": 0.37, "is_causal": True}),
    ],
    ids=["plain", "causal", "not scaled", "a scale of its own"],
)
def test_torch_attends_in_the_same_way(heads, own, way, options):
    seen = recorded(heads * 6, own * 6)
    found = attended(Attention(heads, **way), seen)
    np.testing.assert_allclose(found, torchs(seen, heads, own, **options), atol=2e-6)


def test_masks_are_torchs_masks():
    seen = torch.from_numpy(RNG.random((2, 1, 5, 7)) < 0.6)
    seen[..., 0] = True
    added = np.where(seen.numpy(), 0.0, -1e9).astype("float32")
    arrays = recorded(12, 12, length=7, masks={"a mask": added})
    for name, mask in (("a mask", seen), ("a mask the other way", ~seen)):
        expected = torchs(arrays, 3, 3, attn_mask=torch.where(mask, 0.0, -1e30))
        np.testing.assert_allclose(attended(Attention(3, mask=name), arrays), expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["halves", "neighbours"])
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_rotary_positions_are_those_of_transformers(kind, partial):
    """Llama turns halves, and GPT-J neighbours; either may turn the first features alone."""
    pytest.importorskip("transformers")
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as turned_neighbours
    from transformers.models.llama.modeling_llama import rotate_half

    count = int(8 * partial)
    frequencies = 50.0 ** -torch.linspace(0, 0.9, count // 2)
    angles = torch.outer(torch.arange(5.0), frequencies)

    def turn(x):
        some, rest = x[..., :count], x[..., count:]
        if kind == "halves":
            both = torch.cat([angles, angles], -1)
            some = some * both.cos() + rotate_half(some) * both.sin()
        else:
            some = turned_neighbours(some.transpose(1, 2), angles.sin()[None], angles.cos()[None]).transpose(
                1, 2
            )
        return torch.cat([some, rest], -1)

    seen = recorded(24, 24, frequencies={"its own": frequencies.numpy()})
    way = Attention(3, mask="causal", rotary=kind, frequencies="its own")
    np.testing.assert_allclose(attended(way, seen), torchs(seen, 3, 3, turn, is_causal=True), atol=2e-6)


def test_slopes_are_those_of_transformers():
    pytest.importorskip("transformers")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    seen = recorded(24, 24)
    slopes = build_alibi_tensor(torch.ones(2, 5), 4, torch.float32).reshape(2, 4, 1, 5)
    mask = slopes + torch.where(torch.ones(5, 5).tril() > 0, 0.0, -torch.inf)
    found = attended(Attention(4, mask="causal", bias="alibi"), seen)
    np.testing.assert_allclose(found, torchs(seen, 4, 4, attn_mask=mask), atol=2e-6)


NAMES = ["(heads, depth)", "(depth, heads)", "(heads, time, depth)"]


@given(st.sampled_from(NAMES), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_heads_that_are_divided_and_merged_are_what_they_were(name, batch, heads, time, depth):
    x = np.arange(batch * heads * time * depth).reshape(batch, time, heads * depth)
    back = {"(heads, depth)": "(time, heads, depth)", "(depth, heads)": "(time, depth, heads)"}.get(
        name, name
    )
    assert np.array_equal(merged(divided(x, heads, name), back), x)


def test_what_does_not_divide_does_not_fit():
    seen = recorded(12, 6, masks={"for four": np.zeros((1, 4, 5, 5))})
    assert [n for n in range(1, 13) if 12 % n == 0 and fits(Attention(n), seen)] == [2, 4, 6, 12]
    assert not fits(Attention(5), seen)
    assert fits(Attention(4, bias="for four"), seen) and not fits(Attention(6, bias="for four"), seen)
    turned = Attention(4, rotary="halves", frequencies="own")
    assert fits(turned, recorded(16, 16, frequencies={"own": np.ones(2)}))
    assert not fits(turned, recorded(16, 16, frequencies={"own": np.ones(3)}))


# The same through a whole comparison, of a model whose names tell nothing.


class TorchAttention(torch.nn.Module):
    def __init__(self, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        sizes = {"ins": 36} if fused else {"one": 12, "two": 12, "three": 12}
        for name, size in sizes.items():
            setattr(self, name, torch.nn.Linear(8, size))
        self.last = torch.nn.Linear(12, 8)

    def forward(self, x):
        parts = self.ins(x).split(12, -1) if self.fused else (self.one(x), self.two(x), self.three(x))
        parts = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        found = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        return self.last(found.transpose(1, 2).flatten(-2))


class OursAttention(nnx.Module):
    def __init__(self, fused, attend):
        rngs, self.attend, self.fused = nnx.Rngs(0), attend, fused
        for name in ("ins",) if fused else ("one", "two", "three"):
            setattr(self, name, nnx.Linear(8, 36 if fused else 12, rngs=rngs))
        self.last = nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x):
        parts = jnp.split(self.ins(x), 3, -1) if self.fused else (self.one(x), self.two(x), self.three(x))
        return self.last(self.attend(*parts))


def attending(heads, scale=None, causal=True, noise=0.0):
    def attend(*parts):
        query, key, value = (x.reshape(*x.shape[:-1], heads, -1) for x in parts)
        scaled = query.shape[-1] ** -0.5 if scale is None else scale
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * scaled
        mask = jnp.tril(jnp.ones(logits.shape[-2:], bool)) if causal else True
        weights = nnx.softmax(jnp.where(mask, logits, -jnp.inf) + noise * jnp.cos(logits))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(*parts[0].shape)

    return attend


def report_of(attend, fused, zero=()):
    torch.manual_seed(2)
    theirs = TorchAttention(3, fused)
    for name in zero:
        torch.nn.init.zeros_(getattr(theirs, name).weight)
        torch.nn.init.zeros_(getattr(theirs, name).bias)
    ours = js.load_state_dict(OursAttention(fused, attend), theirs.state_dict())
    x = RNG.normal(size=(2, 5, 8)).astype("float32")
    try:
        js.testing.assert_same_outputs(theirs, ours, x)
    except js.ParityError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "attend, cause",
    [
        (attending(3), ""),
        (attending(2), "divides the features into 2 heads, and torch divides the features into 3 heads"),
        (attending(3, 0.21), "not among"),  # no scale that is tried
        (attending(4, 1.0), "divides the features into 4 heads, does not scale the logits"),
        (attending(3, noise=0.01), "not among"),
    ],
    ids=["right", "heads", "a scale of its own", "two mistakes", "noise"],
)
def test_a_cause_is_what_reproduces_and_nothing_else(fused, attend, cause):
    report = report_of(attend, fused)
    assert cause in report and bool(report) == bool(cause), report


def test_nothing_is_said_of_what_cannot_be_known():
    """Where all queries are zero, torch may scale or not: every key counts the same."""
    report = report_of(attending(3, causal=False), False, zero=("one",))
    assert "attends to everything, and torch attends causally" in report
    assert "torch attends with 3 heads, causal (recomputed" in report or "with causal (recomputed" in report
    assert "scaled by" not in report
