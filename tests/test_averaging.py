"""Averages of weights against torch.optim.swa_utils.AveragedModel, buffers and all, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch.optim import swa_utils

import jaxstate as js
from jaxstate import averaging
from jaxstate.errors import BindingError, OptimizerError, StateDictError
from jaxstate.tree import flat


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 5), rngs=rngs)
        self.bn = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(4, 7, rngs=rngs)


class TorchNet(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, (3, 5))
        self.bn = torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(width, 7)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(3, (3, 5), name="conv")(x)
        x = linen.BatchNorm(use_running_average=True, name="bn")(x)
        return linen.Dense(7, name="head")(x)


def random_net(seed, width=4):
    """A net in the course of its training."""
    generator = torch.Generator().manual_seed(seed)
    net = TorchNet(width)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 4 - 1)
            else:
                tensor.fill_(10 + seed)
    return net


NETS = [random_net(seed) for seed in range(7)]
LINEN = js.Binding(
    (
        js.Rule("conv.weight", "params.conv.kernel", "h w i o -> o i h w"),
        js.Rule("conv.bias", "params.conv.bias", "o -> o"),
        js.Rule("bn.weight", "params.bn.scale", "c -> c"),
        js.Rule("bn.bias", "params.bn.bias", "c -> c"),
        js.Rule("bn.running_mean", "batch_stats.bn.mean", "c -> c", buffer=True),
        js.Rule("bn.running_var", "batch_stats.bn.var", "c -> c", buffer=True),
        js.TorchOnly("bn.num_batches_tracked", np.int64(0), counter=True),
        js.Rule("head.weight", "params.head.kernel", "i o -> o i"),
        js.Rule("head.bias", "params.head.bias", "o -> o"),
    )
)
KINDS = {
    "swa": (lambda net, **o: swa_utils.AveragedModel(net, **o), None),
    "ema": (
        lambda net, **o: swa_utils.AveragedModel(net, avg_fn=swa_utils.get_ema_avg_fn(0.83), **o),
        averaging.get_ema_avg_fn(0.83),
    ),
    "multi ema": (
        lambda net, **o: swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.4), **o),
        averaging.get_ema_avg_fn(0.4),
    ),
}
MODEL = Net(nnx.Rngs(0))
BINDING = js.bind(MODEL)
COUNTER = "module.bn.num_batches_tracked"


def ours_of(net):
    return js.load_state_dict(MODEL, net.state_dict(), BINDING)


def updated(averaged, nets, avg_fn, use_buffers):
    for net in nets:
        averaged = averaging.update_parameters(
            averaged, ours_of(net), BINDING, avg_fn=avg_fn, use_buffers=use_buffers
        )
    return averaged


def as_tensors(sd):
    return {key: torch.from_numpy(array) for key, array in sd.items()}


def assert_close(found, oracle, counter):
    expected = oracle.state_dict()
    assert list(found) == list(expected)
    assert found._metadata == expected._metadata and list(found._metadata) == list(expected._metadata)
    for key, tensor in expected.items():
        array = tensor.numpy()
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype)
        if key != COUNTER or counter:
            assert np.allclose(found[key], array, rtol=1e-6, atol=1e-6), key


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_first_and_ours_first(kind, use_buffers, k):
    make, avg_fn = KINDS[kind]
    oracle = make(NETS[0], use_buffers=use_buffers)
    ours = updated(averaging.AveragedModel.of(ours_of(NETS[0])), NETS[1 : 1 + k], avg_fn, use_buffers)
    for net in NETS[1 : 1 + k]:
        oracle.update_parameters(net)
    there = averaging.load_state_dict(averaging.AveragedModel.of(MODEL), oracle.state_dict(), BINDING)
    back = make(NETS[6], use_buffers=use_buffers)
    like = BINDING.like(NETS[k].state_dict())
    back.load_state_dict(as_tensors(averaging.state_dict(ours, like)))
    for net in NETS[1 + k : 6]:
        oracle.update_parameters(net)
        back.update_parameters(net)
    there = updated(there, NETS[1 + k : 6], avg_fn, use_buffers)
    known = BINDING.like(NETS[5].state_dict())
    assert_close(averaging.state_dict(there, known), oracle, not use_buffers)
    found = averaging.state_dict(there, known)
    for key, tensor in back.state_dict().items():
        if key != COUNTER or not use_buffers:
            assert np.allclose(found[key], tensor.numpy(), rtol=1e-6, atol=1e-6), key
    assert int(there.n_averaged) == 5


def test_a_round_trip_is_bit_identical():
    oracle = swa_utils.AveragedModel(NETS[0])
    oracle.update_parameters(NETS[1])
    oracle.update_parameters(NETS[2])
    sd = oracle.state_dict()
    there = averaging.load_state_dict(averaging.AveragedModel.of(MODEL), sd)
    model = {key.removeprefix("module."): v for key, v in sd.items() if key != "n_averaged"}
    found = averaging.state_dict(there, BINDING.like(model))
    assert [(k, v.tobytes()) for k, v in found.items()] == [(k, v.numpy().tobytes()) for k, v in sd.items()]


def test_linen_variables_in_a_compiled_step():
    x, nets = jnp.ones((1, 6, 6, 2)), [random_net(seed, width=3) for seed in range(4)]
    variables = LinenNet().init(jax.random.key(0), x)
    binding = LINEN.of(flat(variables))
    step = jax.jit(lambda averaged, model: averaging.update_parameters(averaged, model, binding))
    averaged, oracle = averaging.AveragedModel.of(variables), swa_utils.AveragedModel(nets[0])
    for net in nets:
        oracle.update_parameters(net)
        averaged = step(averaged, js.load_state_dict(variables, net.state_dict(), binding))
    assert step._cache_size() == 1
    known = binding.like(nets[-1].state_dict())
    assert_close(averaging.state_dict(averaged, known), oracle, True)


def test_nnx_models_in_a_compiled_step():
    step = jax.jit(lambda averaged, model: averaging.update_parameters(averaged, model, BINDING))
    averaged, oracle = averaging.AveragedModel.of(MODEL), swa_utils.AveragedModel(NETS[0])
    for net in NETS:
        oracle.update_parameters(net)
        averaged = step(averaged, ours_of(net))
    assert_close(averaging.state_dict(averaged, BINDING.like(NETS[-1].state_dict())), oracle, True)


def test_the_model_itself_tells_its_buffers():
    given = averaging.update_parameters(averaging.AveragedModel.of(MODEL), MODEL, BINDING)
    read = averaging.update_parameters(averaging.AveragedModel.of(MODEL), MODEL)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), given, read))


def test_an_average_shares_nothing_with_its_model():
    model = Net(nnx.Rngs(1))
    averaged = averaging.AveragedModel.of(model)
    kept = np.array(averaged.module.head.bias[...])
    model.head.bias[...] = model.head.bias[...] + 1
    assert np.array_equal(averaged.module.head.bias[...], kept)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((averaged.module, model))]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_average_keeps_its_dtype(dtype):
    averaged = averaging.AveragedModel.of({"w": jnp.zeros(3, dtype), "n": jnp.int32(5)})
    oracle = torch.zeros(3, dtype={jnp.bfloat16: torch.bfloat16, jnp.float16: torch.float16}[dtype])
    swa = swa_utils.get_swa_avg_fn()
    for i, w in enumerate([1.0, 2.5, -3.0]):
        new = oracle.new_full((3,), w)
        oracle = swa(oracle, new, torch.tensor(i)) if i else new
        model = {"w": jnp.full(3, w, dtype), "n": jnp.int32(4 + i)}
        averaged = averaging.update_parameters(averaged, model, use_buffers=True)
    assert averaged.module["w"].dtype == dtype and averaged.module["n"].dtype == jnp.int32
    assert np.allclose(averaged.module["w"].astype("float32"), oracle.float().numpy(), rtol=1e-2)
    assert int(averaged.module["n"]) == 4  # 4, then 4.5 and 4.67 without their fractions


def test_a_template_may_be_abstract():
    oracle = swa_utils.AveragedModel(NETS[0])
    for net in NETS[:3]:
        oracle.update_parameters(net)
    concrete = averaging.AveragedModel.of(MODEL)
    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    template = averaging.AveragedModel(abstract, jax.ShapeDtypeStruct((), jnp.int32))
    found = averaging.load_state_dict(template, oracle.state_dict())
    expected = averaging.load_state_dict(concrete, oracle.state_dict())
    same = jax.tree.map(lambda x, y: bool((x == y).all()) and x.dtype == y.dtype, found, expected)
    assert jax.tree.all(same) and int(found.n_averaged) == 3


def test_what_does_not_fit_is_refused():
    averaged, sd = averaging.AveragedModel.of(MODEL), swa_utils.AveragedModel(NETS[0]).state_dict()
    with pytest.raises(StateDictError, match='Missing key.*"n_averaged"(.|\n)*Unexpected key.*"other"'):
        bad = {**{k: v for k, v in sd.items() if k != "n_averaged"}, "other": sd["module.head.bias"]}
        averaging.load_state_dict(averaged, bad)
    with pytest.raises(StateDictError, match='Missing key.*"head.bias"'):
        averaging.load_state_dict(averaged, {k: v for k, v in sd.items() if k != "module.head.bias"})
    with pytest.raises(StateDictError, match="n_averaged is one number"):
        averaging.load_state_dict(averaged, {**sd, "n_averaged": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(BindingError, match="differ in b, w$"):
        averaging.update_parameters(
            averaging.AveragedModel.of({"w": jnp.ones(2)}), {"b": jnp.ones(2)}, use_buffers=True
        )
    with pytest.raises(BindingError, match=r"differ in w: \(2,\) and \(3,\)"):
        averaging.update_parameters(
            averaging.AveragedModel.of({"w": jnp.ones(2)}), {"w": jnp.ones(3)}, use_buffers=True
        )
    with pytest.raises(BindingError, match="does not tell what its layers are"):
        averaging.update_parameters(averaging.AveragedModel.of({"w": jnp.ones(2)}), {"w": jnp.ones(2)})


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_that_is_none_is_refused_in_torchs_words(decay):
    with pytest.raises(ValueError) as theirs:
        swa_utils.get_ema_avg_fn(decay)
    with pytest.raises(OptimizerError) as ours:
        averaging.get_ema_avg_fn(decay)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("decay, expected", [(0.0, 5.0), (1.0, 2.0)])
def test_the_ends_of_a_decay(decay, expected):
    theirs = swa_utils.get_ema_avg_fn(decay)(torch.tensor(2.0), torch.tensor(5.0), torch.tensor(1))
    assert averaging.get_ema_avg_fn(decay)(jnp.float32(2), jnp.float32(5), jnp.int32(1)) == expected == theirs
