"""Convolutions of Equinox and Haiku are warned of exactly if they compute otherwise than torch's."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxstate as js

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(2, 4, 8, 6)).astype("float32")
TORCH, TURNED = torch.nn.Conv2d, torch.nn.ConvTranspose2d

# torch's class and arguments, those of the other library, the size of the kernel, and if both are the same.
EQUINOX = [
    (TORCH, dict(padding=1), dict(padding="SAME"), 3, True),
    (TORCH, dict(padding="same"), dict(padding="SAME"), 4, True),
    (TORCH, dict(padding="same"), dict(padding="SAME_LOWER"), 4, False),
    (TORCH, dict(padding=1, stride=2), dict(padding="SAME", stride=2), 3, False),
    (TORCH, dict(dilation=2, groups=2), dict(dilation=2, groups=2), 3, True),
    (TORCH, dict(padding=2, dilation=2), dict(padding=2), 3, False),
    (TORCH, dict(padding=1, padding_mode="reflect"), dict(padding=1, padding_mode="REFLECT"), 3, True),
    (TORCH, dict(padding=1, padding_mode="replicate"), dict(padding=1), 3, False),
    (TORCH, dict(padding=(1, 0)), dict(padding=((1, 1), (0, 0))), 3, True),
    (
        TURNED,
        dict(stride=2, padding=1, output_padding=1),
        dict(stride=2, padding=1, output_padding=1),
        3,
        True,
    ),
    (TURNED, dict(stride=2, padding=1), dict(stride=2), 3, False),
    (TURNED, dict(dilation=2, groups=2), dict(dilation=2, groups=2), 2, True),
]
HAIKU = [
    (TORCH, dict(padding=1), dict(), 3, True),
    (TORCH, dict(), dict(padding="VALID", rate=1), 3, True),
    (TORCH, dict(padding=1, stride=2), dict(stride=2), 3, False),
    (TORCH, dict(padding=2, dilation=2), dict(rate=2), 3, True),
    (TORCH, dict(padding=(2, 1)), dict(padding=((2, 2), (1, 1))), 3, True),
    (TORCH, dict(padding=1, padding_mode="circular"), dict(), 3, False),
    (TURNED, dict(stride=2, padding=1), dict(stride=2), 4, True),
    (TURNED, dict(stride=2), dict(stride=2, padding="VALID"), 3, True),
    (TURNED, dict(stride=2, padding=1, output_padding=1), dict(stride=2), 3, False),
]


def of_equinox(theirs, options, size):
    kind = eqx.nn.ConvTranspose2d if isinstance(theirs, TURNED) else eqx.nn.Conv2d
    model = eqx.filter_eval_shape(lambda: kind(4, 6, size, key=KEY, **options))
    loaded = js.load_state_dict(model, theirs.state_dict())
    return js.bind(model, original=theirs).warnings, jax.vmap(loaded)(jnp.asarray(X))


def of_haiku(theirs, options, size):
    kind = hk.Conv2DTranspose if isinstance(theirs, TURNED) else hk.Conv2D
    made = hk.without_apply_rng(hk.transform(lambda x: kind(6, size, **options)(x)))
    x = jnp.moveaxis(jnp.asarray(X), 1, -1)
    binding = js.bind(made, x, original=theirs)
    params = js.load_state_dict(jax.eval_shape(made.init, KEY, x), theirs.state_dict(), binding)
    return binding.warnings, jnp.moveaxis(made.apply(params, x), -1, 1)


CASES = [(of_equinox, *case) for case in EQUINOX] + [(of_haiku, *case) for case in HAIKU]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("found", "kind", "theirs", "ours", "size", "same"), CASES)
def test_warned_of_exactly_if_it_computes_otherwise(found, kind, theirs, ours, size, same):
    conv = kind(4, 6, size, **theirs)
    warnings, output = found(conv, ours, size)
    with torch.no_grad():
        expected = conv(torch.from_numpy(X)).numpy()
    assert (warnings == ()) == same
    assert (output.shape == expected.shape and np.allclose(output, expected, atol=1e-5)) == same
