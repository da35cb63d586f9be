"""What makes no sense to ask of a checkpoint is refused, with what does; so are arrays of another one."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstate as js
from jaxstate.errors import CheckpointError

W = js.Binding((js.Rule("w", "w", "a -> a"),))
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def saved(path, array):
    js.orbax.save(path, {"w": array}, binding=W)
    return path


def test_a_template_says_where_its_leaves_go(tmp_path):
    path = saved(tmp_path / "c", np.float32([3, 1, 2]))
    with pytest.raises(
        CheckpointError, match="sharding= is for leaves without templates; give the templates'"
    ):
        js.orbax.restore(path, {"w": jnp.zeros(3)}, sharding=HERE)
    assert js.orbax.restore(path, sharding=HERE).model["w"].sharding == HERE


@pytest.mark.parametrize("model", [None, {"w": np.zeros(3, "f")}], ids=["no template", "a template"])
def test_a_place_in_a_checkpoint_of_ours_is_not_passed_over(tmp_path, model):
    path = saved(tmp_path / "c", np.float32([3, 1, 2]))
    with pytest.raises(CheckpointError, match="written by jaxstate, and at= is for other programs' checkp"):
        js.orbax.restore(path, model, at="ema")


def test_arrays_of_another_checkpoint(tmp_path):
    """As when a copy was interrupted, and another one went over it."""
    path = saved(tmp_path / "c", np.float32([3, 1, 2]))
    other = saved(tmp_path / "d", np.float32([3, 1, 2, 5]))
    shutil.rmtree(path / "params")
    shutil.copytree(other / "params", path / "params")
    words = r"other arrays than its record says:\n\tparams: w is float32\[4\], and float32\[3\] was saved"
    with pytest.raises(CheckpointError, match=words):
        js.orbax.restore(path)
