"""A part of a leaf is what the whole has there, and no more of torch's arrays is read than makes it."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import layouts, left_shape

import jaxstate as js
from jaxstate.arrays.lazy import LazyArray
from jaxstate.rules.parts import runs_of

QUICK = settings(max_examples=150, deadline=None, database=None)


class Source:
    """A lazy array that counts the elements that are read; the whole of it cannot be had."""

    def __init__(self, array):
        self.array, self.read = array, 0
        self.lazy = LazyArray(array.shape, array.dtype, self.refuse, self.part)

    def refuse(self):
        raise AssertionError("all of it is read")

    def part(self, box):
        self.read += self.array[box].size
        return self.array[box]


def boxes(shape, empty=False):
    """A box inside of a shape."""
    ends = [st.lists(st.integers(0, n), min_size=2, max_size=2).map(sorted) for n in shape]
    spans = [pair.filter(lambda p: empty or p[0] < p[1]).map(lambda p: slice(*p)) for pair in ends]
    return st.tuples(*spans)


@QUICK
@given(st.lists(st.integers(1, 4), max_size=4), st.data())
def test_a_run_is_few_boxes_in_order(lengths, data):
    (span,) = data.draw(boxes([prod(lengths)], empty=True))
    runs = list(runs_of(span.start, span.stop, lengths))
    flat = np.arange(prod(lengths)).reshape(lengths)
    found = [flat[run.spans].ravel() for run in runs]
    assert np.concatenate([[], *found]).tolist() == list(range(span.start, span.stop))
    assert all((part[0], part.size) == run[:2] for part, run in zip(found, runs, strict=True))
    assert len(runs) <= max(1, 2 * len(lengths) - 1)


@QUICK
@given(layouts(), st.data())
def test_any_layout_is_read_in_parts(case, data):
    layout, sizes = case
    torch = np.arange(prod(sizes.values())).reshape(layout.shape(left_shape(layout, sizes))) + 5
    rule = js.Rule("w", "w", layout.pattern, **sizes).of({"w": layout.inverse(torch)})
    box = data.draw(boxes(left_shape(layout, sizes)))
    source = Source(torch)
    expected = layout.inverse(torch)[box]
    for array in (torch, source.lazy):
        found = rule.lazy_leaves({"w": array})["w"][box]
        assert found.shape == expected.shape and found.dtype == torch.dtype
        assert np.array_equal(found, expected)
        assert np.array_equal(written(rule.lazy_leaves({"w": array})["w"], box, found.shape), expected)
    assert source.read == 2 * expected.size


def written(lazy, box, shape):
    """What `into` writes into memory of another dtype with a rim, which stays."""
    room = np.full([n + 2 for n in shape], -1.0, "float32")
    inside = tuple(slice(1, -1) for _ in shape)
    assert lazy.into(room[(*inside, ...)], box) is not None
    rim = np.ones(room.shape, bool)
    rim[(*inside, ...)] = False
    assert (room[rim] == -1).all()
    return room[(*inside, ...)]


@QUICK
@given(layouts(), st.data())
def test_any_layout_is_written_back_in_parts(case, data):
    layout, sizes = case
    leaf = np.arange(prod(sizes.values())).reshape(left_shape(layout, sizes)) + 5
    rule = js.Rule("w", "w", layout.pattern, **sizes).of({"w": leaf})
    expected = layout(leaf)
    box = data.draw(boxes(expected.shape))
    assert np.array_equal(
        written(rule.lazy_state_dict({"w": leaf})["w"], box, expected[box].shape), expected[box]
    )


def stack_of(keys, shape):
    return {
        key: Source(np.arange(prod(shape), dtype="f4").reshape(shape) + 100 * n) for n, key in enumerate(keys)
    }


RULES = {
    "stacked layers": (js.Rule("h.{l}.w", "h.w", "l i o -> o i", l=range(4)), (4, 6, 5), (5, 6)),
    "layers in the middle": (js.Rule("h.{l}.w", "h.w", "i l o -> o i", l=range(4)), (6, 4, 5), (5, 6)),
    "fused projections": (
        js.Rule("qkv", "attn.{p}", "d n k -> (p n k) d", p=("q", "k", "v"), n=4),
        (6, 4, 2),
        (24, 6),
    ),
    "both": (
        js.Rule("h.{l}.qkv", "h.{p}", "l d n k -> (p n k) d", p=("q", "k", "v"), l=range(2), n=4),
        (2, 6, 4, 2),
        (24, 6),
    ),
    "one name in both": (js.Rule("h.{l}.w", "h_{l}.w", "i o -> o ~i", l=range(3)), (6, 5), (5, 6)),
    "flattened and flipped": (js.Rule("w", "w", "(h w c) o -> o (c ~h w)", h=2, w=3), (24, 5), (5, 24)),
}


@pytest.mark.parametrize("name", RULES)
def test_shards_of_every_kind_of_rule_add_up_and_read_their_share(name):
    """Each axis of the leaf is cut into halves; both halves read all of torch's elements, each one once."""
    rule, shape, torch_shape = RULES[name]
    sources = stack_of(rule.keys, torch_shape)
    whole = rule.leaves({key: s.array for key, s in sources.items()})
    rule = rule.of(whole)
    assert next(iter(whole.values())).shape == shape
    lazy = rule.lazy_leaves({key: source.lazy for key, source in sources.items()})
    for axis, length in enumerate(shape):
        for cut in (slice(0, length // 2), slice(length // 2, length)):
            box = (slice(None),) * axis + (cut,)
            assert all(np.array_equal(lazy[path][box], leaf[box]) for path, leaf in whole.items())
            for path, leaf in whole.items():
                assert np.array_equal(written(lazy[path], box, leaf[box].shape), leaf[box])
    assert {s.read for s in sources.values()} == {s.array.size * 2 * len(shape) for s in sources.values()}


def test_numbers_without_axes_are_stacked_and_unstacked():
    rule = js.Rule("h.{l}.scale", "scale", "l -> ", l=range(3))
    arrays = {f"h.{n}.scale": np.float32(n + 0.5).reshape(()) for n in range(3)}
    template = {"scale": np.zeros(3, "float32")}
    made = js.load_state_dict(template, arrays, js.Binding((rule,)))
    assert made["scale"].tolist() == [0.5, 1.5, 2.5]
    assert js.state_dict(made, js.Binding((rule,))) == arrays


def test_many_runs_are_read_with_what_lies_between():
    torch = np.arange(3000 * 4.0).reshape(12000)
    source = Source(torch)
    rule = js.Rule("w", "w", "b a -> (a b)", b=4).of({"w": np.empty((4, 3000))})
    found = rule.lazy_leaves({"w": source.lazy})["w"][1:2]
    assert np.array_equal(found, torch.reshape(3000, 4).T[1:2]) and source.read == torch.size


def test_a_sum_of_parts_is_a_part_of_the_sum():
    rule = js.Sum((js.Rule("ih", "{g}", "k -> (g k)", g="io"), js.Rule("hh", "{g}", "k -> (g k)", g="io")))
    sources = stack_of(rule.keys, (8,))
    arrays = {key: s.array.astype("float16") for key, s in sources.items()}
    leaves = {path: np.empty(4, "float32") for path in rule.paths}
    rule = rule.of(leaves)
    whole, lazy = rule.leaves(arrays), rule.lazy_leaves(arrays)
    for path, leaf in whole.items():
        part = lazy[path][1:3]
        assert part.dtype == leaf.dtype == np.float32 and np.array_equal(part, leaf[1:3])
    assert rule.lazy_leaves({k: s.lazy for k, s in sources.items()})["o"][1:2].tolist() == [110.0]
    assert [s.read for s in sources.values()] == [1, 1]


def test_arrays_of_several_dtypes_in_one_stack():
    rule = js.Rule("{l}", "w", "l a -> a", l=range(2)).of({"w": np.empty((2, 3))})
    lazy = rule.lazy_leaves({"0": np.float32([1, 2, 3]), "1": np.float64([4, 5, 6])})["w"]
    assert lazy[0].dtype == lazy[1].dtype == np.float64 and np.asarray(lazy).tolist() == [
        [1, 2, 3],
        [4, 5, 6],
    ]


@QUICK
@given(layouts(), st.data())
def test_the_places_of_a_part_hold_its_values_and_no_others(case, data):
    layout, sizes = case
    leaf = np.arange(prod(sizes.values())).reshape(left_shape(layout, sizes))
    box = data.draw(boxes(leaf.shape))
    rule = js.Rule("w", "w", layout.pattern, **sizes).of({"w": leaf})
    torch = rule.state_dict({"w": leaf})["w"]
    found = [torch[there].ravel() for key, there in rule.places("w", box)]
    assert sorted(np.concatenate(found)) == sorted(leaf[box].ravel())


@pytest.mark.parametrize("name", RULES)
def test_places_across_names(name):
    rule, shape, torch_shape = RULES[name]
    arrays = {key: source.array for key, source in stack_of(rule.keys, torch_shape).items()}
    leaves = rule.leaves(arrays)
    rule, path = rule.of(leaves), rule.paths[-1]
    box = tuple(slice(n // 2, n) for n in shape)
    found = [arrays[key][there].ravel() for key, there in rule.places(path, box)]
    assert sorted(np.concatenate(found)) == sorted(leaves[path][box].ravel())


def resident(name):
    """The bytes of a mapped file that this process has touched."""
    rows = iter(Path("/proc/self/smaps").read_text().splitlines())
    sizes = [int(next(row for row in rows if row.startswith("Rss"))[4:-2]) for line in rows if name in line]
    return sum(sizes) * 1024


def in_small_writes(path):
    """Write a file anew: the system keeps what comes in one write in large pages, and maps these whole."""
    content = path.read_bytes()
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(content), 1 << 16):
            file.write(content[start : start + (1 << 16)])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("name", ["rows.pt", "rows.safetensors"])
def test_no_page_of_a_mapped_file_is_touched_without_need(tmp_path, name):
    """A quarter of the heads of a fused projection: a quarter of the file, in three runs."""
    torch = np.arange(3 * 8 * 16 * 4096, dtype="float32").reshape(3 * 8 * 16, 4096)
    js.save({"qkv": torch, "rest": torch}, tmp_path / name)
    in_small_writes(tmp_path / name)
    rule = js.Rule("qkv", "{p}", "d n k -> (p n k) d", p="qkv").of(
        dict.fromkeys("qkv", np.empty((4096, 8, 16)))
    )
    lazy = rule.lazy_leaves(js.load(tmp_path / name))
    before = resident(name)
    for n, path in enumerate("qkv"):
        found = np.array(lazy[path][:, 2:4])
        assert np.array_equal(found, torch.reshape(3, 8, 16, 4096)[n, 2:4].transpose(2, 0, 1))
    assert 0.9 * torch.nbytes / 4 < resident(name) - before < torch.nbytes / 4 + 6 * 2**17


def test_a_rule_without_its_shape_says_what_tells_it():
    with pytest.raises(js.BindingError, match=r"does not know its shape: Binding.of\(leaves\) tells it"):
        js.Rule("w", "w", "i o -> o i").lazy_leaves({"w": np.ones((2, 3))})
