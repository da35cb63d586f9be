"""assert_same_gradients, with torch's autograd as the judge, and on models whose gradients are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from twins import TWINS, make

import jaxstate as js
from jaxstate.testing import assert_same_gradients
from jaxstate.testing._port import Port
from jaxstate.testing._same_gradients import jax_gradients


@pytest.mark.parametrize("name", ["cnn", "lstm", "linen block"])
def test_right_ports_have_the_same_gradients(name):
    made = make(name)
    options = dict(binding=made.binding, input_layout=made.twin.layout, rtol=1e-5)
    assert_same_gradients(made.torch, made.loaded(), *made.twin.inputs, **options)
    assert all(p.grad is None for p in made.torch.parameters())


def test_they_are_those_of_torchs_backward():
    made = make("mlp")
    x = made.twin.inputs[0]
    made.torch(torch.from_numpy(x)).square().mean().backward()
    port = Port(made.torch, made.loaded(), (x,))
    ours = jax_gradients(port, lambda output: (output**2).mean())
    assert list(ours) == [name for name, _ in made.torch.named_parameters()]
    for name, parameter in made.torch.named_parameters():
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), atol=1e-6 * np.abs(ours[name]).max())


@jax.custom_jvp
def straight(x):
    return nnx.silu(x)


straight.defjvp(lambda primals, tangents: (straight(*primals), tangents[0]))


def test_outputs_agree_and_gradients_do_not():
    """An activation with a derivative of its own: the forward pass cannot tell."""
    made = make("mlp")
    ours = made.loaded(silu=straight)
    js.testing.assert_same_outputs(made.torch, ours, *made.twin.inputs)
    with pytest.raises(js.ParityError) as caught:
        assert_same_gradients(made.torch, ours, *made.twin.inputs)
    message = str(caught.value)
    assert "4 of 8 gradients differ" in message and 'the backward pass meets "fc2.bias" first' in message
    assert '"fc3.' not in message and '"head.' not in message and '"fc1.weight": ' in message


def test_what_torch_does_not_train_is_not_compared():
    made = make("mlp")
    made.torch.fc1.requires_grad_(False)
    wrong = made.loaded(state_dict={**made.torch.state_dict(), "fc1.bias": torch.ones(6)})
    call = lambda model, x: model.head(nnx.tanh(model.fc3(x)))  # noqa: E731
    torch_call = lambda module, x: module.head(torch.tanh(module.fc3(x)))  # noqa: E731
    losses = dict(loss=jnp.mean, torch_loss=torch.mean)
    assert_same_gradients(made.torch, wrong, *made.twin.inputs, call=call, torch_call=torch_call, **losses)
    with pytest.raises(js.ParityError, match="gradients differ"):
        assert_same_gradients(made.torch, wrong, *made.twin.inputs, loss=jnp.sum, torch_loss=torch.mean)
    with pytest.raises(ValueError, match="both or not at all"):
        assert_same_gradients(made.torch, wrong, *made.twin.inputs, loss=jnp.sum)


def test_a_model_that_does_not_read_as_torchs_needs_a_binding():
    made, other = make("mlp"), TWINS["lstm"].theirs()
    with pytest.raises(js.ParityError, match="does not read as torch's module"):
        assert_same_gradients(other, made.loaded(), *TWINS["lstm"].inputs)
