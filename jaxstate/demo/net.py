"""The network of PyTorch's recipe "What is a state_dict", in Flax NNX, under torch's names."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Net(nnx.Module):
    """Two convolutions with pooling, a flatten, three linear layers. Images are `(N, 32, 32, 3)`."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 6, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)
        self.fc1 = nnx.Linear(16 * 5 * 5, 120, rngs=rngs)
        self.fc2 = nnx.Linear(120, 84, rngs=rngs)
        self.fc3 = nnx.Linear(84, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        return self.fc3(nnx.relu(self.fc2(nnx.relu(self.fc1(x)))))


def pixels(images: jax.Array) -> jax.Array:
    """Bytes as torch has them, `(N, C, H, W)`, to floats from -1 to 1, channels last."""
    return jnp.transpose(jnp.asarray(images, "float32") / 127.5 - 1, (0, 2, 3, 1))


def loss(net: Net, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(net(pixels(images)), labels).mean()
