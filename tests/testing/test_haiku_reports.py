"""Reports on models in Haiku: layers by the names of modules, mistakes with their place and cause."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from twins import NCHW, TorchCNN, TorchMLP, noise, randomized

import jaxstate as js

hk = pytest.importorskip("haiku")

ONE = ((1, 1), (1, 1))


def cnn(x, training, pool=hk.max_pool, stride=2, padding=ONE, eps=1e-5):
    x = hk.Conv2D(4, 3, padding=ONE, name="conv1")(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9, eps=eps, name="bn")(x, training))
    x = hk.Conv2D(4, 3, stride=stride, padding=padding, name="conv2")(x)
    x = hk.Conv2DTranspose(4, 3, padding=ONE, name="up")(x)
    return hk.Linear(5, name="fc")(pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(len(x), -1))


def mlp(x, silu=jax.nn.silu):
    x = silu(hk.Linear(6, name="fc2")(jax.nn.relu(hk.Linear(6, name="fc1")(x))))
    return hk.Linear(4, name="head")(jnp.tanh(hk.Linear(6, name="fc3")(x)))


class Made:
    """A right twin: torch's module, what is transformed, its binding, and arguments of the assertions."""

    def __init__(self, theirs, ours, x, state, **options):
        self.theirs, self.ours, self.state, self.options = randomized(theirs).eval(), ours, state, options
        self.x = x
        kwargs = {"training": True} if state else {}
        layout = js.Layout(options["input_layout"]).inverse if state else np.asarray
        inputs = jnp.array(layout(x))
        self.binding = js.bind(self.transformed(), inputs, kwargs=kwargs)
        self.template = jax.eval_shape(lambda: self.transformed().init(jax.random.key(0), inputs, **kwargs))

    def transformed(self, **changes):
        function = functools.partial(self.ours, **changes)
        return hk.transform_with_state(function) if self.state else hk.transform(function)

    def loaded(self, entries=None, binding=None, **changes):
        known = {key: tensor.numpy() for key, tensor in self.theirs.state_dict().items()}
        variables = js.load_state_dict(self.template, {**known, **(entries or {})}, binding or self.binding)
        return self.transformed(**changes), variables

    def report(self, model, **options):
        with pytest.raises(js.ParityError) as caught:
            js.testing.assert_same_outputs(self.theirs, model, self.x, **{**self.options, **options})
        return str(caught.value)


@functools.cache
def made(name):
    if name == "mlp":
        return Made(TorchMLP(), mlp, noise(3, 6), False)
    image = dict(input_layout=NCHW, kwargs={"training": False})
    return Made(TorchCNN(), cnn, noise(2, 3, 8, 8), True, **image)


@pytest.mark.parametrize(("name", "count"), [("cnn", 5), ("mlp", 4)])
def test_right_twins_agree_layer_by_layer(name, count):
    twin = made(name)
    js.testing.assert_same_outputs(twin.theirs, twin.loaded(), twin.x, **twin.options)
    rows = js.testing.compare(twin.theirs, twin.loaded(), twin.x, **twin.options).rows
    assert [row.path for row in rows[:-1]] == [row.name for row in rows[:-1]] and len(rows) == count + 1
    assert max(row.distance.relative for row in rows) < 1e-6
    assert not js.testing.warnings(twin.theirs, twin.loaded(), twin.x, **twin.options)


def of(twin, key):
    return twin.theirs.state_dict()[key].numpy()


CNN = [
    (dict(eps=1e-3), "bn", "eps 0.001", "BatchNorm(..., eps=1e-05)"),
    (dict(padding="SAME"), "conv2", "padding SAME", "padding=((1, 1), (1, 1))"),
    (dict(stride=1), "conv2", "stride (1, 1)", "stride=(2, 2)"),
    (dict(pool=hk.avg_pool), "fc", "avg_pool2d", "hk.max_pool"),
]
WEIGHTS = [
    ("cnn", "conv1.weight", lambda a: a[..., ::-1, ::-1], "flipped in space"),
    ("cnn", "up.weight", lambda a: np.swapaxes(a, 0, 1), "inputs and outputs swapped"),
    ("cnn", "bn.running_var", lambda a: a[::-1], "bn.running_var"),
    ("mlp", "fc2.weight", lambda a: a.T, "transposed"),
    ("mlp", "fc3.bias", np.zeros_like, "zero everywhere"),
]


@pytest.mark.parametrize(("changes", "place", "cause", "mend"), CNN)
def test_settings(changes, place, cause, mend):
    twin = made("cnn")
    report = twin.report(twin.loaded(**changes))
    found = [
        line for line in report.splitlines() if "first layer that differs" in line or "reads diff" in line
    ]
    assert f'"{place}"' in found[0].partition("in JAX")[0], report
    assert f"cause: JAX {'' if 'pool' in cause else 'has '}" in report and cause in report
    assert mend in report.partition("mend:")[2], report


@pytest.mark.parametrize(("name", "key", "change", "cause"), WEIGHTS)
def test_weights(name, key, change, cause):
    twin = made(name)
    report = twin.report(twin.loaded({key: change(of(twin, key))}))
    assert f'first layer that differs: "{key.partition(".")[0]}"' in report
    assert f'weights: "{key}"' in report and cause in report.partition("cause:")[2]


def test_statistics_of_the_batch_are_said_in_the_call():
    twin = made("cnn")
    report = twin.report(twin.loaded(), kwargs={"training": True})
    assert 'first layer that differs: "bn"' in report and "cause: JAX has batch statistics True" in report
    assert "mend:  BatchNorm(..., is_training=False)" in report


def test_another_activation_in_a_jitted_and_mapped_call():
    twin = made("mlp")
    call = jax.jit(lambda apply, x: jax.vmap(apply)(x), static_argnums=0)
    js.testing.assert_same_outputs(twin.theirs, twin.loaded(), twin.x, call=call)
    report = twin.report(twin.loaded(silu=jax.nn.relu), call=call)
    assert 'after "fc2", which agrees, what "fc3" (Linear)' in report
    assert "relu where torch computes silu" in report and "mend:  jax.nn.silu(x)" in report


def test_gradients_and_training():
    twin = made("mlp")
    js.testing.assert_same_gradients(twin.theirs, twin.loaded(), twin.x)
    other = twin.loaded({"fc1.weight": of(twin, "fc1.weight").T})
    with pytest.raises(js.ParityError, match='(?s)gradients differ.*"fc1.weight"'):
        js.testing.assert_same_gradients(twin.theirs, other, twin.x)
    optimizer = torch.optim.SGD(twin.theirs.parameters(), lr=0.1)
    losses = dict(torch_loss=lambda m, x: m(x).square().mean(), loss=lambda m, x: (m(x) ** 2).mean())
    js.testing.assert_same_training(
        twin.theirs, optimizer, twin.loaded(), optax.sgd(0.1), [(twin.x,)] * 3, **losses, binding=twin.binding
    )


def test_statistics_move_in_training():
    twin = made("cnn")
    twin.theirs.train()
    optimizer = torch.optim.SGD(twin.theirs.parameters(), lr=0.1)
    loss = lambda m, x: (m(x, training=True) ** 2).mean()  # noqa: E731
    torch_loss = lambda m, x: m(x).square().mean()  # noqa: E731
    try:
        js.testing.assert_same_training(
            twin.theirs,
            optimizer,
            twin.loaded(),
            optax.sgd(0.1),
            [(twin.x,)] * 2,
            loss=loss,
            torch_loss=torch_loss,
            binding=twin.binding,
            input_layout=NCHW,
            ignore="*running_var",
            rtol=1e-3,
        )
    finally:
        twin.theirs.eval()


def test_a_function_without_its_variables_is_refused():
    twin = made("mlp")
    with pytest.raises(TypeError, match=r"holds no weights: pass \(transformed, variables\)"):
        js.testing.assert_same_outputs(twin.theirs, twin.transformed(), twin.x)
