"""Whatever a file holds gives a Checkpoint that prints, or one error of ours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxstate as js
from jaxstate.containers._load import _of_object
from jaxstate.io import Global, Opaque

WORDS = """model state_dict net ema model_ema optimizer state param_groups params param_names last_epoch
epoch step n_averaged module.w module._orig_mod.w a.w scaler scale lr_scheduler args arch version cfg
optimizer_history extra_state last_optimizer_state num_updates train_iterator pytorch-lightning_version
optimizer_states lr_schedulers averaging_state current_model_state checkpoint_version
param_groups.a.lr state.a.step""".split()
KEYS = st.sampled_from(WORDS) | st.integers(0, 2) | st.none()
LEAVES = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=2)
    | st.sampled_from([np.ones((2, 3)), np.array(3), np.array(1j), np.array("x"), np.float32(0.5), b"x"])
    | st.builds(lambda: 7**9000)
    | st.just(Opaque(Global("argparse", "Namespace")))
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(
    st.dictionaries(KEYS, OBJECTS, max_size=6),
    st.dictionaries(st.sampled_from(["model", "epoch"]), KEYS, max_size=1),
)
def test_a_checkpoint_or_one_error(contents, asked):
    try:
        ckpt = _of_object(contents, {role: str(place) for role, place in asked.items()})
    except js.CheckpointError as error:
        assert str(error)
    else:
        assert "Checkpoint of" in str(ckpt) and "<table>" in ckpt._repr_html_()


def test_a_version_too_long_to_spell():
    obj = {"state_dict": {"w": np.ones(2)}, "pytorch-lightning_version": 7**9000}
    assert _of_object(obj, {}).tool.evidence == "pytorch-lightning_version a huge number"


@pytest.mark.parametrize("obj", [3, None, "x", [1], np.ones(3), Opaque(Global("models", "Net"))])
def test_what_is_no_dict_is_refused(obj):
    with pytest.raises(js.CheckpointError, match="no checkpoint, which is a dict, but"):
        _of_object(obj, {})
