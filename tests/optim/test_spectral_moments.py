"""The moments of a spectrally normalised weight move like the weight; its vectors are no optimizer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxstate as js

torch = pytest.importorskip("torch")


def test_a_spectrally_normalised_weight_has_moments():
    net = nnx.SpectralNorm(nnx.Linear(3, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    params, tx = nnx.state(net, nnx.Param), js.optim.adam(lr=0.1)
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    _, opt = tx.update(grads, tx.init(params), params)
    osd = js.optim.state_dict(opt, js.bind(net), param_names=True)
    twin = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 5))
    adam = torch.optim.Adam(twin.named_parameters(), lr=0.1)
    assert osd["param_groups"][0]["param_names"] == adam.param_groups[0]["param_names"]
    for p, grad in zip(twin.parameters(), ("bias", "kernel"), strict=True):
        p.grad = torch.tensor(np.asarray(grads["layer_instance"][grad][...]).T)
    adam.step()
    for i, entry in adam.state_dict()["state"].items():
        np.testing.assert_allclose(osd["state"][i]["exp_avg"], entry["exp_avg"].numpy(), rtol=1e-6)
