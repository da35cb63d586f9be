"""Nested objects in flat names: torch's names, and back to what they were."""

import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from jaxstate.errors import FileError
from jaxstate.io import load, save
from jaxstate.io._nesting import EMPTY, flat, nested

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

KEYS = st.text(st.sampled_from("ab01."), max_size=3)
LEAVES = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.tuples(st.integers()),
    st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float32)),
)


def objects(smallest):
    """Nested objects whose inner dicts have so many entries."""
    inner = st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, min_size=smallest, max_size=3)
        ),
        max_leaves=8,
    )
    return st.dictionaries(KEYS, inner, max_size=4)


FAST = settings(
    max_examples=120,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FAST
@given(obj=objects(0))
def test_names_and_paths_are_torchs(obj):
    ours = [(path, value) for path, value in flat(obj) if path[-1] is not EMPTY]
    names = [".".join(map(str, path)) for path, _ in ours]
    try:
        values, paths = flatten_state_dict(obj)
    except ValueError:
        assert len(set(names)) < len(names)
        return
    assert names == list(values) and [path for path, _ in ours] == list(paths.values())
    assert all(value is values[name] for name, (_, value) in zip(names, ours, strict=True))


@FAST
@given(obj=objects(0))
def test_we_read_what_we_write(tmp_path, same, obj):
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    if saved(obj, tmp_path / "a"):
        same(load(tmp_path / "a"), obj)


@FAST
@given(obj=objects(1))  # torch does not load what it saves of an empty dict in a list
def test_torch_reads_what_we_write(tmp_path, obj):
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    if not saved(obj, tmp_path / "a"):
        return
    theirs = blank(obj)
    dcp.load(theirs, checkpoint_id=tmp_path / "a", no_dist=True)
    values, _ = flatten_state_dict(obj)
    found, _ = flatten_state_dict(theirs)
    assert list(found) == list(values)
    for name, value in values.items():
        equal = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert equal and type(found[name]) is type(value), name


def saved(obj, path):
    """Whether it could be written; the names that steps make may meet."""
    try:
        save(obj, path, format="dcp")
    except FileError as error:
        names = [".".join(map(str, path if path[-1] is not EMPTY else path[:-1])) for path, _ in flat(obj)]
        assert "when steps are joined by dots" in str(error) and len(set(names)) < len(names)
        return False
    return True


def blank(obj):
    """The same object with other values, to load into."""
    if isinstance(obj, dict):
        return {key: blank(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [blank(value) for value in obj]
    return torch.full_like(obj, -1) if isinstance(obj, torch.Tensor) else "?"


def test_lists_are_made_in_the_order_of_their_indices():
    paths = {"c.1": ("c", 1), "a": ("a",), "c.0": ("c", 0)}
    assert nested({"c.0": 1, "c.1": 2, "a": 3}, paths) == {"c": [1, 2], "a": 3}
    assert nested({"a.b": 1}, None) == {"a.b": 1}
    assert nested({"b": 1}, {"b": ("b",), "gone": ("x", "y"), "e": ("e", {})}) == {"b": 1, "e": {}}


@pytest.mark.parametrize("depth", [150, 199])
def test_depth(tmp_path, depth):
    obj = np.ones(1)
    for _ in range(depth):
        obj = {"a": obj}
    save(obj, tmp_path / "a", format="dcp")
    found = load(tmp_path / "a")
    for _ in range(depth):
        found = found["a"]
    assert found.tolist() == [1]
    looped = {}
    looped["a"] = [looped]
    for bad, message in ((looped, "contains itself"), ({"a": {"b": {"c": obj}}}, "nests deeper")):
        if depth == 199:
            with pytest.raises(FileError, match=message):
                save(bad, tmp_path / "b", format="dcp")
    assert os.listdir(tmp_path) == ["a"]
