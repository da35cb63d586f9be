"""Training that moves in the middle arrives where it would have arrived without moving.

Each side computes its own gradients on whole networks, and what moves goes through files. The same with the
same gradients fed to both, to tighter figures, stands in the optim folder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

import jaxstate as js
from jaxstate.demo.make_checkpoint import Net as TorchRecipe
from jaxstate.demo.net import Net as Recipe

BEFORE, AFTER = 4, 5


class TorchNormed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)  # its gradient would be rounding alone
        self.bn = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4 * 8 * 8, 10)

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.conv(x))).flatten(1))


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(4, use_fast_variance=False, rngs=rngs)
        self.fc = nnx.Linear(4 * 8 * 8, 10, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.bn(self.conv(x))).reshape(x.shape[0], -1))


MODELS = {"recipe": (TorchRecipe, Recipe, 32), "batch norm": (TorchNormed, Normed, 8)}

SGD = (torch.optim.SGD, js.optim.sgd)
ADAM = (torch.optim.Adam, js.optim.adam)
ADAMW = (torch.optim.AdamW, js.optim.adamw)
OPTIMIZERS = {
    "sgd": (SGD, dict(lr=0.02)),
    "momentum": (SGD, dict(lr=0.02, momentum=0.9)),
    "dampening, decay, maximize": (
        SGD,
        dict(lr=0.01, momentum=0.8, dampening=0.3, weight_decay=0.1, maximize=True),
    ),
    "nesterov": (SGD, dict(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "adam": (ADAM, dict(lr=0.002, betas=(0.85, 0.97), eps=1e-6)),
    "adam, amsgrad, decay": (ADAM, dict(lr=0.002, amsgrad=True, weight_decay=0.1)),
    "adam, maximize": (ADAM, dict(lr=0.001, maximize=True)),
    "adamw": (ADAMW, dict(lr=0.002, weight_decay=0.3)),
    "adamw, amsgrad, maximize": (ADAMW, dict(lr=0.001, amsgrad=True, maximize=True)),
}


class Twins:
    """A network and its optimizer on both sides, with the batches that both are shown."""

    def __init__(self, model, optimizer, dtype):
        self.theirs, self.ours, size = MODELS[model]
        (self.torch_optimizer, self.our_optimizer), self.options = OPTIMIZERS[optimizer]
        self.dtype, rng = dtype, np.random.default_rng(0)
        self.images = rng.normal(size=(BEFORE + AFTER, 6, 3, size, size)).astype(dtype)
        self.labels = rng.integers(10, size=(BEFORE + AFTER, 6))
        image = jax.ShapeDtypeStruct((6, size, size, 3), dtype)
        self.template = nnx.eval_shape(lambda: self._cast(self.ours(nnx.Rngs(0))))
        self.binding = js.bind(self.template, image)

    def _cast(self, model):
        graphdef, state = nnx.split(model)
        wide = jax.tree.map(
            lambda x: x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )
        return nnx.merge(graphdef, wide)

    def start_torch(self):
        torch.manual_seed(0)
        net = self.theirs().to(getattr(torch, self.dtype))
        bias = [p for n, p in net.named_parameters() if n.endswith("bias")]
        rest = [p for n, p in net.named_parameters() if not n.endswith("bias")]
        groups = [{"params": bias, "weight_decay": 0.05}, {"params": rest}]
        return net, self.torch_optimizer(groups, **self.options, foreach=False)

    def transformation(self):
        names = self.binding.parameters
        groups = [{"params": [n for n in names if n.endswith("bias")], "weight_decay": 0.05}]
        groups += [{"params": [n for n in names if not n.endswith("bias")]}]
        return self.our_optimizer(**self.options, param_groups=groups, binding=self.binding)

    def train_torch(self, net, optimizer, first, last, order=slice(None)):
        for images, labels in zip(self.images[first:last], self.labels[first:last], strict=True):
            optimizer.zero_grad()
            images, labels = torch.from_numpy(images[order]), torch.from_numpy(labels[order])
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    def train_jax(self, model, tx, opt, first, last):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest, images, labels):
            model = nnx.merge(graphdef, params, rest, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
            return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

        @jax.jit
        def step(params, rest, opt, images, labels):
            grads, rest = jax.grad(loss, has_aux=True)(params, rest, images, labels)
            updates, opt = tx.update(grads, opt, params)
            return optax.apply_updates(params, updates), rest, opt

        for images, labels in zip(self.images[first:last], self.labels[first:last], strict=True):
            params, rest, opt = step(params, rest, opt, images.transpose(0, 2, 3, 1), labels)
        return nnx.merge(graphdef, params, rest), opt

    def torch_to_jax(self, net, optimizer, path):
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, path)
        file = js.load(path)
        binding = self.binding.like(file["model"])
        model = js.load_state_dict(self.template, file["model"], binding)
        tx = self.transformation()
        opt = js.optim.load_state_dict(tx.init(nnx.state(model, nnx.Param)), file["optimizer"], binding)
        return model, tx, opt

    def jax_to_torch(self, model, opt, path):
        weights, state = js.state_dict(model, self.binding), js.optim.state_dict(opt, self.binding)
        js.save({"model": weights, "optimizer": state}, path)
        file = torch.load(path, weights_only=True)
        net, optimizer = self.start_torch()
        net.load_state_dict(file["model"], strict=True)
        optimizer.load_state_dict(file["optimizer"])
        return net, optimizer

    def weights(self, net):
        """The parameters of either side, under torch's names."""
        if isinstance(net, torch.nn.Module):
            return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
        return js.state_dict(nnx.state(net, nnx.Param), self.binding)


def apart(one, other, start):
    """How far two ends are from each other, over how far they are from the start."""
    moved = max(np.abs(one[key] - start[key]).max() for key in one)
    return max(np.abs(one[key] - other[key]).max() for key in one) / moved


def ends(twins, direction, path):
    """The weights at the start, at the end where training stayed in torch, and where it moved."""
    net, optimizer = twins.start_torch()
    start = twins.weights(net)
    if direction == "torch to jax":
        twins.train_torch(net, optimizer, 0, BEFORE)
        moved = twins.torch_to_jax(net, optimizer, path)
        model, _ = twins.train_jax(*moved, BEFORE, BEFORE + AFTER)
        twins.train_torch(net, optimizer, BEFORE, BEFORE + AFTER)
        return start, twins.weights(net), twins.weights(model)
    model, tx, opt = twins.torch_to_jax(net, optimizer, path)
    model, opt = twins.train_jax(model, tx, opt, 0, BEFORE)
    moved = twins.jax_to_torch(model, opt, path)
    twins.train_torch(*moved, BEFORE, BEFORE + AFTER)
    twins.train_torch(net, optimizer, 0, BEFORE + AFTER)
    return start, twins.weights(net), twins.weights(moved[0])


@pytest.mark.parametrize("direction", ["torch to jax", "jax to torch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_in_float64(model, optimizer, direction, tmp_path):
    with jax.enable_x64(True):
        start, stayed, moved = ends(Twins(model, optimizer, "float64"), direction, tmp_path / "net.pt")
    assert apart(stayed, moved, start) < 1e-9


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("optimizer", ["momentum", "adam, amsgrad, decay", "adamw"])
def test_in_float32_no_further_than_torch_from_itself(optimizer, tmp_path):
    """JAX takes some steps in the middle; so does a torch that adds up the same terms in other orders."""
    twins, third = Twins("recipe", optimizer, "float32"), BEFORE + AFTER // 2

    def end(middle):
        net, optimizer = twins.start_torch()
        start = twins.weights(net)
        twins.train_torch(net, optimizer, 0, BEFORE)
        net, optimizer = middle(net, optimizer) or (net, optimizer)
        twins.train_torch(net, optimizer, third, BEFORE + AFTER)
        return start, twins.weights(net)

    def in_jax(net, optimizer):
        model, tx, opt = twins.torch_to_jax(net, optimizer, tmp_path / "there.pt")
        return twins.jax_to_torch(*twins.train_jax(model, tx, opt, BEFORE, third), tmp_path / "back.pt")

    def in_another_order(seed):
        def middle(net, optimizer):
            order = np.random.default_rng(seed).permutation(6)
            with torch.backends.mkldnn.flags(enabled=seed % 2 == 0):
                twins.train_torch(net, optimizer, BEFORE, third, order)

        return middle

    start, stayed = end(lambda net, optimizer: twins.train_torch(net, optimizer, BEFORE, third))
    itself = [apart(stayed, end(in_another_order(seed))[1], start) for seed in range(8)]
    assert 0 < apart(stayed, end(in_jax)[1], start) <= max(itself)
