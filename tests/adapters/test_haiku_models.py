"""Whole Haiku models: names and order, state, stacks, flattened images, training that moves."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from _nnx_oracle import as_jax, assert_close, assert_same_bits, noise, randomized
from haiku_twins import Case, assert_there_and_back, template_of
from torch import nn

import jaxstate as js

X = jax.ShapeDtypeStruct((2, 3), "float32")


class TorchNet(nn.Module):
    """In torch's order: own parameters, what the constructor makes, what the call makes."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.amount = nn.Parameter(torch.ones(4))
        self.mlp = nn.ModuleDict({"linear_0": nn.Linear(3, 5), "linear_1": nn.Linear(5, 4)})
        self.bn = nn.BatchNorm1d(4)
        self.linear_1 = nn.Linear(4, 6)
        self.linear = nn.Linear(6, 4)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}) for _ in range(3)]
        )
        self.fc = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        x = self.mlp["linear_1"](torch.relu(self.mlp["linear_0"](x)))
        x = self.bn(x) * self.gain + self.amount
        x = self.linear(self.linear_1(x))
        for block in self.blocks:
            x = x + block["norm"](block["fc"](x))
        return self.fc(x)


class Net(hk.Module):
    def __init__(self):
        super().__init__()
        self.mlp = hk.nets.MLP([5, 4])
        self.bn = hk.BatchNorm(True, True, 0.9, name="bn")

    def __call__(self, x, training):
        x = self.bn(self.mlp(x), training)
        gain, amount = (hk.get_parameter(name, (4,), init=jnp.ones) for name in ("gain", "amount"))
        x = x * gain + amount
        x = hk.Linear(4)(hk.Linear(6)(x))

        def block(x):
            return x + hk.LayerNorm(-1, True, True, name="norm")(hk.Linear(4, name="fc")(x))

        return self.decoded(hk.experimental.layer_stack(3, name="blocks")(block)(x))

    def decoded(self, x):
        return hk.Linear(2, with_bias=False, name="fc")(x)


def test_a_model_keeps_its_names_and_torchs_order():
    case = Case("Net", TorchNet, lambda x, training: Net()(x, training), (6, 3), state=True)
    assert_there_and_back(case)


def test_parameters_alone_go_by_the_binding_of_the_pair():
    transformed = hk.transform_with_state(lambda x, training: Net()(x, training))
    template = template_of(transformed, X, training=True)
    params, state = jax.tree.map(lambda leaf: np.full(leaf.shape, 0, leaf.dtype), template)
    binding = js.bind(transformed, X, kwargs={"training": True})
    assert list(js.state_dict(params, binding)) == list(binding.parameters)
    with pytest.raises(js.BindingError, match=r"mean_ema.counter says that there was no batch yet"):
        js.state_dict((params, state), binding)
    for row in state.values():
        row["counter"] += 1
        row["average"] += np.arange(4, dtype="float32")
    assert_close(js.state_dict((params, state), binding)["bn.running_mean"], np.arange(4, dtype="float32"), 0)


def test_running_statistics_move_on_as_in_torch():
    """The variance is left out: torch's running one is unbiased, Haiku's is not."""
    theirs, x = randomized(nn.BatchNorm1d(3, momentum=0.1)), noise(8, 3)
    transformed = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, True))
    binding = js.bind(transformed, X)
    params, state = js.load_state_dict(template_of(transformed, X), theirs.state_dict(), binding)
    for n in range(3):
        _, state = transformed.apply(params, state, None, as_jax(x * (n + 1)))
        theirs.train()(x * (n + 1))
    assert_close(js.state_dict((params, state), binding)["running_mean"], theirs.running_mean, 1e-6)


def test_a_function_of_several_modules_keeps_all_names():
    function = lambda x: hk.Linear(2)(hk.Linear(5)(x)) + hk.get_parameter("b", (2,), init=jnp.ones)  # noqa: E731
    binding = js.bind(hk.transform(function), X)
    assert binding.keys == ("b", "linear_1.weight", "linear_1.bias", "linear.weight", "linear.bias")
    assert binding.paths[0] == "~.b"


def test_names_that_differ_by_a_method_only_are_refused():
    class Coder(hk.Module):
        def __call__(self, x):
            return self.decode(self.encode(x))

        def encode(self, x):
            return hk.Linear(3)(x)

        def decode(self, x):
            return hk.Linear(3)(x)

    with pytest.raises(js.BindingError, match='key "linear.weight" is claimed by .*~encode/linear.*~decode'):
        js.bind(hk.transform(lambda x: Coder()(x)), X)


def test_a_name_inside_a_stack_is_not_that_outside():
    def function(x):
        x = hk.experimental.layer_stack(2, name="stack")(lambda x: hk.Linear(3, name="fc")(x))(x)
        return hk.Conv1D(2, 1, name="fc")(x[:, None])

    binding = js.bind(hk.transform(function), X)
    patterns = {row[0]: row[2] for row in binding.rows}
    assert patterns["stack.{l}.fc.weight"] == "l i o -> o i" and patterns["fc.weight"] == "w i o -> o i w"


class TorchImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.norm = nn.GroupNorm(1, 2)
        self.fc = nn.Linear(2 * 5 * 4, 3)

    def forward(self, x):
        return self.fc(self.norm(self.up(torch.tanh(self.conv(x)))).flatten(1))


def images(x):
    x = jnp.tanh(hk.Conv2D(3, 3, padding="VALID", name="conv")(x))
    x = hk.GroupNorm(1, name="norm")(hk.Conv2DTranspose(2, 2, padding=[(1, 1), (1, 1)], name="up")(x))
    return hk.Linear(3, name="fc")(hk.Flatten()(x))


def test_flattened_images_are_found():
    transformed = hk.transform(images)
    binding = js.bind(transformed, jax.ShapeDtypeStruct((6, 6, 5, 2), "float32"))
    assert [row[2] for row in binding.rows if row[0] == "fc.weight"] == ["(h w c) o -> o (c h w)"]
    without_rng = hk.without_apply_rng(transformed)
    assert js.bind(without_rng, jax.ShapeDtypeStruct((6, 6, 5, 2), "float32")) == binding


class TorchFlat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(2, 3, 3), nn.BatchNorm1d(36), nn.Linear(36, 2)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x).flatten(1)))


def test_statistics_of_a_flattened_image_are_permuted_though_a_call_only_writes_them():
    def function(x, training):
        x = hk.Flatten()(hk.Conv2D(3, 3, padding="VALID", name="conv")(x))
        return hk.Linear(2, name="fc")(hk.BatchNorm(True, True, 0.9, name="bn")(x, training))

    theirs, x = randomized(TorchFlat()), noise(5, 2, 6, 5)
    transformed, inputs = hk.transform_with_state(function), as_jax(x, True)
    template = template_of(transformed, inputs, training=True)
    for options in ({}, {"flatten": {"bn": (3, 4, 3), "fc": (3, 4, 3)}}):
        binding = js.bind(transformed, inputs, kwargs={"training": True}, **options)
        variables = js.load_state_dict(template, theirs.state_dict(), binding)
        assert_same_bits(js.state_dict(variables, binding.like(theirs.state_dict())), theirs.state_dict())
        with torch.no_grad():
            assert_close(transformed.apply(*variables, None, inputs, training=False)[0], theirs(x))


def test_training_goes_on_as_if_it_had_never_moved():
    """Four steps of AdamW in torch, three in JAX, two in torch again; nine in torch."""
    torch.manual_seed(0)
    options = dict(lr=0.01, betas=(0.8, 0.95), weight_decay=0.3)
    x, y = noise(9, 6, 2, 6, 5), noise(9, 6, 3, seed=3)

    def run(net, optimizer, steps):
        for n in steps:
            optimizer.zero_grad()
            ((net(x[n]) - y[n]) ** 2).mean().backward()
            optimizer.step()

    def start(sd=None, osd=None):
        net = TorchImages()
        net.load_state_dict(sd) if sd else None
        optimizer = torch.optim.AdamW(net.parameters(), **options)
        optimizer.load_state_dict(osd) if osd else None
        return net, optimizer

    net, optimizer = start()
    first = {name: array.clone() for name, array in net.state_dict().items()}
    run(net, optimizer, range(4))
    transformed = hk.transform_with_state(images)
    binding = js.bind(transformed, as_jax(x[0], True))
    template = template_of(transformed, as_jax(x[0], True))
    params, state = js.load_state_dict(template, net.state_dict(), binding)
    tx = js.optim.adamw(**options)
    opt = js.optim.load_state_dict(tx.init(params), optimizer.state_dict(), binding)

    @jax.jit
    def step(params, opt, x, y):
        loss = lambda params: ((transformed.apply(params, state, None, x)[0] - y) ** 2).mean()  # noqa: E731
        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    for n in range(4, 7):
        params, opt = step(params, opt, as_jax(x[n], True), as_jax(y[n]))
    tensors = {name: torch.from_numpy(array) for name, array in js.state_dict(params, binding).items()}
    osd = js.optim.state_dict(opt, binding)
    osd = jax.tree.map(lambda a: torch.from_numpy(a) if isinstance(a, np.ndarray) else a, osd)
    again, optimizer_again = start(tensors, osd)
    run(again, optimizer_again, range(7, 9))
    whole, optimizer_whole = start(first)
    run(whole, optimizer_whole, range(9))
    for name, array in whole.state_dict().items():
        moved = (array - first[name]).abs().max()
        assert (again.state_dict()[name] - array).abs().max() <= 1e-5 * moved, name


def test_no_optimizer_state_crosses_a_sum_of_biases():
    def function(x):
        core = hk.LSTM(4)
        return core(x, core.initial_state(2))[0]

    transformed = hk.transform(function)
    binding = js.bind(transformed, X)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), template_of(transformed, X))
    opt = js.optim.adam().init(params)
    with pytest.raises(js.OptimizerError, match='"bias_ih", "bias_hh" are held as their sum'):
        js.optim.state_dict(opt, binding)
    assert set(js.state_dict(params, binding)) == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}


class Own(hk.Module):
    def __call__(self, x):
        return x @ hk.get_parameter("w", (3, 4), init=jnp.ones)


class Halved(hk.Linear):
    def __call__(self, x):
        return super().__call__(x) / 2


def _gru(x):
    core = hk.GRU(4)
    return core(x, core.initial_state(2))[0]


def _wide_attention(x):
    return hk.MultiHeadAttention(2, 4, w_init=jnp.zeros)(x, x, x)


REFUSED = {
    "an array of one's own": (
        lambda x: Own()(x),
        {},
        r'own.w of shape \(3, 4\) in Own.*\n.*Rule\("w", "own.w"',
    ),
    "a call of one's own": (lambda x: Halved(4)(x), {}, r"Halved \(a Linear with a __call__ of its own\)"),
    "a GRU": (_gru, {}, 'GRU "gru" resets its state before the product'),
    "a mask": (lambda x: hk.Conv1D(4, 1, mask=np.ones((1, 1, 4)))(x[..., None]), {}, "has a mask"),
    "four axes": (lambda x: hk.ConvND(4, 2, 1)(x[:, :, None, None, None, None]), {}, "over more than three"),
    "a norm of images": (
        lambda x: hk.LayerNorm((1, 2, 3), True, True, param_axis=(1, 2, 3))(x[:, :, None, None]),
        {},
        "three or more feature axes",
    ),
    "several axes": (
        lambda x: hk.BatchNorm(True, True, 0.9, axis=[0])(x[:, :, None], True),
        {"stateful": True},
        "normalises over several axes",
    ),
    "other inputs": (lambda x, y: hk.Linear(4)(x), {}, "init does not run with these inputs: TypeError"),
    "statistics that are not made": (
        lambda x: hk.BatchNorm(True, True, 0.9)(x, False),
        {"stateful": True},
        "BatchNorm makes no statistics",
    ),
    "packed attention": (_wide_attention, {"attention": "packed"}, "one width for queries, heads together"),
    "no such core": (
        lambda x: hk.Linear(4)(x),
        {"multilayer": "rnn"},
        r"multilayer=\['rnn'\]: no recurrent core has such a name",
    ),
    "no core": (
        lambda x: hk.Linear(4, name="fc")(hk.Linear(3)(x)),
        {"multilayer": "fc"},
        "no layer of a torch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name):
    function, options, message = REFUSED[name]
    transform = hk.transform_with_state if "stateful" in options else hk.transform
    said = {option: value for option, value in options.items() if option != "stateful"}
    with pytest.raises(js.BindingError, match=message):
        js.bind(transform(function), X, **said)


def test_a_class_is_given_rules():
    layers = {Own: lambda module: [js.Rule("weight", "w", "i o -> o i")]}
    binding = js.bind(hk.transform(lambda x: hk.Linear(2)(Own()(x))), X, layers=layers)
    assert binding.keys == ("own.weight", "linear.weight", "linear.bias")


def test_a_function_holds_no_arrays():
    with pytest.raises(js.BindingError, match=r"js.state_dict\(\(params, state\), binding\)"):
        js.state_dict(hk.transform(images))
