"""warnings: the settings that differ, before anything runs; against torch's own constructors."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx
from twins import NCHW, TWINS, make, noise

import jaxstate as js
from jaxstate.testing import warnings

RNGS = dict(rngs=nnx.Rngs(0))


def found(theirs, ours, *inputs, **options):
    return {(w.name, w.setting): (w.theirs, w.ours) for w in warnings(theirs, ours, *inputs, **options)}


@pytest.mark.parametrize("name", TWINS)
def test_right_ports_have_none(name):
    made = make(name)
    rows = warnings(made.torch, made.loaded(), *made.twin.inputs, input_layout=made.twin.layout)
    assert not rows and len(rows) == 0 and str(rows) == "no setting differs"


def test_the_defaults_of_flax_differ():
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.bn = torch.nn.BatchNorm2d(4)
            self.norm = torch.nn.LayerNorm(4)
            self.group = torch.nn.GroupNorm(2, 4)
            self.rms = torch.nn.RMSNorm(4)
            self.act = torch.nn.GELU()

    class Ours(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.bn = nnx.BatchNorm(4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.group = nnx.GroupNorm(4, 2, rngs=rngs)
            self.rms = nnx.RMSNorm(4, rngs=rngs)

        def __call__(self, x):
            return nnx.gelu(self.rms(self.group(self.norm(self.bn(self.conv(x))))))

    rows = warnings(Theirs().eval(), Ours(nnx.Rngs(0)), noise(2, 3, 6, 6), input_layout=NCHW)
    assert {(w.name, w.setting): w.mend for w in rows} == {
        ("conv", "padding"): "Conv(..., padding=((0, 0), (0, 0)))",
        ("bn", "momentum"): "BatchNorm(..., momentum=0.9)",
        ("bn", "batch statistics"): "BatchNorm(..., use_running_average=True)",
        ("norm", "eps"): "LayerNorm(..., epsilon=1e-05)",
        ("group", "eps"): "GroupNorm(..., epsilon=1e-05)",
        ("rms", "eps"): "RMSNorm(..., epsilon=1.19e-07)",
        ("act", "gelu"): "nnx.gelu(x, approximate=False), not nnx.gelu(x, approximate=True)",
    }
    assert "use_running_average=True" in str(rows) and "<code>norm</code>" in rows._repr_html_()


CONVS = [
    (dict(padding="same"), dict(padding="SAME"), set()),
    (dict(padding=1), dict(padding="SAME"), set()),
    (dict(padding=0), dict(padding="VALID"), set()),
    (dict(padding=(1, 2)), dict(padding=((1, 1), (2, 2))), set()),
    (dict(padding=1, stride=2), dict(padding="SAME", strides=2), {"padding"}),
    (dict(padding=1, stride=(2, 1)), dict(padding=1, strides=(1, 2)), {"stride"}),
    (dict(padding=2, dilation=2), dict(padding="SAME", kernel_dilation=2), set()),
    (dict(dilation=2), dict(padding=0), {"dilation"}),
    (dict(groups=2), dict(padding=0, feature_group_count=2), set()),
    (dict(padding=1, padding_mode="circular"), dict(padding="CIRCULAR"), set()),
    (dict(padding=1, padding_mode="reflect"), dict(padding="CIRCULAR"), {"padding mode"}),
]


@pytest.mark.parametrize("theirs, ours, settings", CONVS)
def test_convolutions_differ_in_settings_exactly_if_in_outputs(theirs, ours, settings):
    conv = torch.nn.Conv2d(4, 6, 3, **theirs)
    model = js.load_state_dict(nnx.Conv(4, 6, (3, 3), **ours, **RNGS), conv.state_dict())
    assert {setting for _, setting in found(conv, model)} == settings
    arguments = dict(input_layout=NCHW, output_layout=NCHW)
    if not settings:
        js.testing.assert_same_outputs(conv, model, noise(2, 4, 8, 6), **arguments)
    else:
        with pytest.raises(js.ParityError, match="cause: JAX has"):
            js.testing.assert_same_outputs(conv, model, noise(2, 4, 8, 6), **arguments)


TRANSPOSED = [
    (dict(stride=2, padding=1), 4, dict(padding="SAME"), True),
    (dict(stride=2), 2, dict(padding="SAME"), True),
    (dict(stride=2), 3, dict(padding="VALID"), True),
    (dict(stride=3, output_padding=1), 2, dict(padding="VALID"), True),
    (dict(stride=2, padding=1, output_padding=1), 3, dict(padding=((1, 2), (1, 2))), True),
    (dict(stride=2, padding=1, output_padding=1), 3, dict(padding="SAME"), False),
]


@pytest.mark.parametrize("theirs, size, ours, same", TRANSPOSED)
def test_transposed_convolutions_likewise(theirs, size, ours, same):
    conv = torch.nn.ConvTranspose2d(3, 5, size, **theirs)
    strides = (conv.stride[0],) * 2
    model = nnx.ConvTranspose(3, 5, (size, size), strides=strides, **ours, **RNGS)
    model = js.load_state_dict(model, conv.state_dict())
    assert (found(conv, model) == {}) == same
    x = noise(2, 3, 4, 5)
    with torch.no_grad():
        expected = conv(torch.from_numpy(x)).numpy()
    got = np.moveaxis(np.asarray(model(jnp.array(np.moveaxis(x, 1, -1)))), -1, 1)
    assert (got.shape == expected.shape and np.allclose(got, expected, atol=1e-5)) == same


def test_a_narrow_dtype_is_said_and_found():
    theirs = torch.nn.Linear(64, 5)
    model = js.load_state_dict(nnx.Linear(64, 5, dtype=jnp.bfloat16, **RNGS), theirs.state_dict())
    assert found(theirs, model) == {("", "computes in"): ("", "bfloat16")}
    with pytest.raises(js.ParityError, match="cause: JAX computes in bfloat16"):
        js.testing.assert_same_outputs(theirs, model, noise(3, 64), rtol=1e-2 / 50)


def test_the_other_gelu():
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(approximate="tanh"))
    ours = nnx.Sequential(nnx.Linear(3, 4, **RNGS), lambda x: nnx.gelu(x, approximate=False))
    assert found(theirs, ours, noise(2, 3)) == {("1", "gelu"): ("approximated by tanh", "exact")}
    assert found(theirs, ours) == {}


def test_a_linen_module_is_read_as_it_runs():
    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm(name="0")(x)

    theirs, x = torch.nn.Sequential(torch.nn.LayerNorm(5)), noise(2, 5)
    bound = Ours().bind(Ours().init({"params": RNGS["rngs"]()}, x))
    assert found(theirs, bound, x) == {("0", "eps"): ("1e-05", "1e-06")}
    with pytest.raises(js.ParityError, match="pass the inputs, which a Linen module is read with"):
        warnings(theirs, bound)


def test_modules_that_were_not_compared_are_named():
    class Ours(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(3, 3, **RNGS)
            self.other = nnx.Linear(3, 3, **RNGS)

    theirs = torch.nn.Sequential()
    theirs.add_module("first", torch.nn.Linear(3, 3))
    theirs.add_module("second", torch.nn.Linear(3, 3))
    rows = warnings(theirs, Ours())
    assert rows.unpaired == ("second",) and str(rows) == "no setting differs\nnot compared: second"
    assert "not compared: second" in rows._repr_html_()
