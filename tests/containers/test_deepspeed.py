"""ZeRO-1 and 2: the slices of two ranks, joined, are what torch trained whole; see `make_fixtures.py`."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_fixtures import FOLDER, NAMES, ZeroStageEnum, importable_stages

import jaxstate as js
from jaxstate.containers._slices import merged
from jaxstate.containers._zero import joined

ZERO = FOLDER / "deepspeed"
MODEL, RANK = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
WHOLE = torch.load(FOLDER / "whole.pt", weights_only=True)


@pytest.fixture
def folder(tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(ZERO / "global_step3", tmp_path / "global_step3")


def changed(path, change):
    with importable_stages():  # torch's unpickler looks it up
        obj = torch.load(path, weights_only=False)
        change(obj)
        torch.save(obj, path)


@pytest.mark.parametrize("path", [ZERO, ZERO / "global_step3"], ids=["by latest", "itself"])
def test_weights_and_moments_are_those_of_training_in_one_piece(path):
    ckpt = js.load_checkpoint(path)
    assert list(ckpt.model) == list(WHOLE["model"])
    for key, theirs in WHOLE["model"].items():
        half = key == "scale" or "running" in key  # frozen, and buffers: DeepSpeed keeps no float32 of them
        np.testing.assert_array_equal(ckpt.model[key], (theirs.half() if half else theirs).numpy())
    assert ckpt.model["embed.weight"].dtype == np.float32
    for row, group, theirs in zip(
        NAMES, ckpt.optimizer["param_groups"], WHOLE["optimizer"]["param_groups"], strict=True
    ):
        assert group == {**theirs, "params": list(row)}
        for name, number in zip(row, theirs["params"], strict=True):
            ours, entry = ckpt.optimizer["state"][name], WHOLE["optimizer"]["state"][number]
            assert set(ours) == set(entry)
            assert all(np.array_equal(ours[key], entry[key].numpy()) for key in entry)


def test_the_rest():
    ckpt = js.load_checkpoint(ZERO)
    assert ckpt.tool == ("DeepSpeed", f"{MODEL} and the optimizer states of 2 ranks")
    assert (ckpt.step, ckpt.epoch, ckpt.scheduler["last_epoch"]) == (3, 1, 3)
    assert set(ckpt.extra) == {MODEL, RANK.format(0), RANK.format(1)}
    assert ckpt.extra[MODEL]["module"]["fc.weight"].dtype == np.float16


def test_the_optimizer_goes_on_in_jax():
    """By its names, into an optimizer of the same groups: the next step is torch's."""
    ckpt = js.load_checkpoint(ZERO)
    keys = [name for row in NAMES for name in row]
    axes = {1: "a -> a", 2: "a b -> a b"}
    binding = js.Binding([js.Rule(key, key, axes[ckpt.model[key].ndim]) for key in keys])
    params = {key: jnp.asarray(ckpt.model[key]) for key in keys}
    groups = [
        {"params": list(row), "weight_decay": decay} for row, decay in zip(NAMES, (0.3, 0.0), strict=True)
    ]
    tx = js.optim.adamw(lr=0.1, betas=(0.8, 0.95), eps=1e-6, param_groups=groups, binding=binding)
    opt = js.optim.load_state_dict(tx.init(params), ckpt.optimizer, binding)
    grads = {
        key: jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        for key, value in params.items()
    }
    updates, _ = jax.jit(tx.update)(grads, opt, params)
    ours = optax.apply_updates(params, updates)
    theirs = [torch.nn.Parameter(WHOLE["model"][key].clone()) for key in keys]
    optimizer = torch.optim.AdamW([{"params": theirs[:2]}, {"params": theirs[2:]}])
    optimizer.load_state_dict(WHOLE["optimizer"])
    for parameter, key in zip(theirs, keys, strict=True):
        parameter.grad = torch.tensor(np.asarray(grads[key]))
    optimizer.step()
    for parameter, key in zip(theirs, keys, strict=True):
        np.testing.assert_allclose(ours[key], parameter.detach().numpy(), rtol=2e-6, atol=1e-7)


def test_an_optimizer_that_counts_in_its_group(folder):
    """DeepSpeed's FusedAdam does: each parameter gets the count, as an array of its own."""

    def fused(rank):
        base = rank["optimizer_state_dict"]["base_optimizer_state"]
        for entry, group in zip(base["state"].values(), base["param_groups"], strict=True):
            group["step"] = int(entry.pop("step"))

    for rank in range(2):
        changed(folder / RANK.format(rank), fused)
    osd, before = js.load_checkpoint(folder).optimizer, js.load_checkpoint(ZERO).optimizer
    steps = [entry["step"] for entry in osd["state"].values()]
    assert [float(step) for step in steps] == [3.0] * 6 and len({step.ctypes.data for step in steps}) == 6
    assert osd["param_groups"] == before["param_groups"]


def test_without_zero_the_models_file_has_all(tmp_path):
    torch.save(
        {"module": WHOLE["model"], "optimizer": WHOLE["optimizer"], "param_shapes": None}, tmp_path / MODEL
    )
    ckpt = js.load_checkpoint(tmp_path)
    np.testing.assert_array_equal(ckpt.model["fc.weight"], WHOLE["model"]["fc.weight"].numpy())
    assert ckpt.optimizer["param_groups"] == WHOLE["optimizer"]["param_groups"]


def test_stage_3_names_the_tool_to_run_first(tmp_path):
    torch.save({}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(js.CheckpointError, match=r"ZeRO stage 3 .*; run `python zero_to_fp32.py \. out`"):
        js.load_checkpoint(tmp_path)


def zero(change):
    return lambda rank: change(rank["optimizer_state_dict"])


def stage(value):
    return zero(lambda state: state.update(zero_stage=value))


CHANGES = {
    "stage 3": (RANK.format(0), stage(ZeroStageEnum.weights), "DeepSpeed's ZeRO stage 3; run"),
    "bf16": (RANK.format(0), zero(lambda s: s.pop("zero_stage")), "bfloat16 optimizer .*ds_to_universal"),
    "more ranks": (RANK.format(1), zero(lambda s: s.update(partition_count=[4, 4])), r"over \[2, 4\] ranks"),
    "another shape": (
        MODEL,
        lambda m: m["param_shapes"][0].update({"fc.weight": torch.Size((3, 7))}),
        "group 0 of the weights: the ranks hold 24 numbers, and its parameters have 36",
    ),
    "transposed": (
        MODEL,
        lambda m: m["param_shapes"][0].update({"embed.weight": torch.Size((3, 5))}),
        'do not fit its model: "embed.weight", "head.weight"',
    ),
    "not frozen": (MODEL, lambda m: m.update(frozen_param_shapes=None), 'in 16 bits only, .*: "scale"'),
    "not tied": (MODEL, lambda m: m["shared_params"].clear(), 'in 16 bits only, .*: "head.weight"'),
    "no groups": (
        RANK.format(1),
        zero(lambda s: s.update(single_partition_of_fp32_groups=[])),
        "have 2 groups",
    ),
    "no shapes": (MODEL, lambda m: m.update(param_shapes="none"), "no shapes of parameters"),
    "elastic": (
        RANK.format(0),
        zero(lambda s: s.update(base_optimizer_state=[[{"step": 3}]])),
        "of the elastic form, .* run `python zero_to_fp32.py",
    ),
    "another dtype": (
        RANK.format(1),
        zero(
            lambda s: s.update(
                single_partition_of_fp32_groups=[torch.zeros(12).half(), torch.zeros(6).half()]
            )
        ),
        "group 0 of the weights: the ranks hold float32, float16",
    ),
    "another rate": (
        RANK.format(1),
        zero(lambda s: s["base_optimizer_state"]["param_groups"][1].update(lr=0.5)),
        'group 1 of the optimizer: the ranks disagree in "lr"',
    ),
    "a rank that did not step": (
        RANK.format(0),
        zero(lambda s: s["base_optimizer_state"]["state"].pop(0)),
        'group 0 of the optimizer: the ranks disagree in "step", "exp_avg", "exp_avg_sq"',
    ),
    "a lost moment": (
        RANK.format(1),
        zero(lambda s: s["base_optimizer_state"]["state"][1].pop("exp_avg")),
        'group 1 of the optimizer: the ranks disagree in "exp_avg"',
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_refused(folder, name):
    file, change, message = CHANGES[name]
    changed(folder / file, change)
    with pytest.raises(js.CheckpointError, match=message):
        js.load_checkpoint(folder)


@pytest.mark.parametrize(
    "names, message",
    [
        ([MODEL, RANK.format(1)], r"with the ranks \[1\]"),
        ([RANK.format(0), RANK.format(1)], f"without {MODEL}"),
        ([MODEL, "mp_rank_01_model_states.pt"], r"by model, pipeline .*\(mp_rank_01.*ds_to_universal"),
        ([MODEL], r'without the files \*_optim_states.pt, .*take jaxstate.load\(.*\)\["module"\]'),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, names, message):
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
    for name in names:
        if not (folder / name).exists():
            shutil.copy(folder / MODEL, folder / name)
    with pytest.raises(js.CheckpointError, match=message):
        js.load_checkpoint(folder)


@pytest.mark.parametrize("tag", ["..", "../global_step3", "/etc", "a\\b", ""])
def test_latest_names_a_folder_beside_it(tmp_path, tag):
    (tmp_path / "run").mkdir()
    shutil.copytree(ZERO / "global_step3", tmp_path / "global_step3")
    (tmp_path / "run" / "latest").write_text(tag)
    with pytest.raises((js.CheckpointError, js.FileError), match="not the name of a folder|no known tool"):
        js.load_checkpoint(tmp_path / "run")


def test_arguments_have_nothing_to_choose():
    with pytest.raises(js.CheckpointError, match=re.escape('one place for each part; leave out "model"')):
        js.load_checkpoint(ZERO, model="module")


JUNK = (None, 3, "x", [], {}, [1], {"a": 1}, np.ones((2, 2)), (1, -2), 2.5)


def places(value, path=()):
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def replaced(value, path, junk):
    if not path:
        return junk
    if isinstance(value, dict):
        return {
            key: replaced(item, path[1:], junk) if key == path[0] else item for key, item in value.items()
        }
    return [replaced(item, path[1:], junk) if i == path[0] else item for i, item in enumerate(value)]


OBJECTS = [js.load(ZERO / "global_step3" / name) for name in (MODEL, RANK.format(0), RANK.format(1))]
PLACES = [place for place in places(OBJECTS) if len(place) > 2]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(JUNK))
def test_junk_anywhere_gives_parts_or_one_error(place, junk):
    model, *ranks = replaced(OBJECTS, place, junk)
    try:
        parts = list(joined(model, ranks))
    except js.CheckpointError as error:
        assert str(error)
    else:
        assert [part.role for part in parts] == ["model", "optimizer"]


SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 5))
def test_joined_slices_are_what_was_cut(shapes, ranks):
    arrays = [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    flat = np.concatenate([array.ravel() for array in arrays])
    flat = np.pad(flat, (0, -len(flat) % (2 * ranks)))
    slices = np.split(flat, ranks)
    names = {f"p{i}": shape for i, shape in enumerate(shapes)}
    for array, ours in zip(arrays, merged(slices, names, "it").values(), strict=True):
        np.testing.assert_array_equal(ours, array)
