"""Whole Equinox models: names and order, State, what is shared, what is stacked, training that moves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _nnx_oracle import as_jax, assert_close, assert_same_bits, noise, randomized
from equinox_twins import KEY, Case, assert_there_and_back, built, evaluated
from torch import nn

import jaxstate as js


class TorchBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.gain * torch.tanh(self.fc(self.norm(x)))


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    fc: eqx.nn.Linear
    gain: jax.Array

    def __init__(self, width, key):
        self.norm, self.fc = eqx.nn.LayerNorm(width), eqx.nn.Linear(width, width, key=key)
        self.gain = jnp.ones(width)

    def __call__(self, x):
        return x + self.gain * jnp.tanh(self.fc(self.norm(x)))


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.blocks = nn.ModuleList([TorchBlock(4) for _ in range(11)])
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 3, bias=False), "z": nn.Linear(4, 2)})
        self.register_buffer("count", torch.zeros(3, dtype=torch.int32))
        self.fc = nn.Linear(3 * 5 * 4, 4)

    def forward(self, x):
        x = self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))
        for block in self.blocks:
            x = block(x)
        return torch.cat([self.heads["z"](x), self.heads["a"](x)], -1)


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    bn: eqx.nn.BatchNorm
    blocks: list[Block]
    heads: dict[str, eqx.nn.Linear]
    count: jax.Array
    fc: eqx.nn.Linear
    scale: float = eqx.field(static=True)

    def __init__(self, key, mode="batch"):
        self.conv = eqx.nn.Conv2d(2, 3, 3, padding=1, key=key)
        self.bn = eqx.nn.BatchNorm(3, "batch", mode=mode)
        self.blocks = [Block(4, key) for _ in range(11)]
        self.heads = {"z": eqx.nn.Linear(4, 2, key=key), "a": eqx.nn.Linear(4, 3, use_bias=False, key=key)}
        self.count, self.fc = jnp.zeros(3, int), eqx.nn.Linear(3 * 5 * 4, 4, key=key)
        self.scale = 2.0

    def __call__(self, x, state):
        x, state = self.bn(self.conv(x), state)
        x = self.fc(jax.nn.relu(x).ravel())
        for block in self.blocks:
            x = block(x)
        return jnp.concatenate([self.heads["z"](x), self.heads["a"](x)]), state


def test_a_stateful_model_goes_as_a_pair_and_keeps_its_names_and_order():
    theirs = randomized(TorchNet())
    sd, template = theirs.state_dict(), eqx.nn.make_with_state(Net)(KEY)
    binding = js.bind(template, like=sd)
    model, state = js.load_state_dict(template, sd, binding)
    assert type(model) is Net and type(state) is eqx.nn.State and model.scale == 2.0
    x = noise(2, 2, 5, 4)
    with torch.no_grad():
        assert_close(evaluated((model, state), as_jax(x)), theirs(x))
    assert_same_bits(js.state_dict((model, state), binding), sd)
    assert list(js.bind(template).keys) == list(sd)
    assert js.bind(template, jnp.zeros((2, 5, 4))) == js.bind(template)
    assert template[1].get(template[0].bn.batch_counter) == 0  # the template is as it was, and still valid
    parameters = js.state_dict(eqx.filter(model, eqx.is_inexact_array), binding)
    assert list(parameters) == [name for name, _ in theirs.named_parameters()]


def test_a_dictionary_keeps_its_order_until_jax_sorts_it():
    model = {"z": eqx.nn.Linear(2, 2, key=KEY), "a": eqx.nn.PReLU()}
    assert js.bind(model).keys == ("z.weight", "z.bias", "a.weight")
    sorted_ = jax.tree.map(lambda leaf: leaf, model)
    assert js.bind(sorted_).keys == ("a.weight", "z.weight", "z.bias")
    assert js.bind(sorted_, like=js.state_dict(model)).keys == ("z.weight", "z.bias", "a.weight")


def test_running_statistics_move_on_as_in_torch():
    """The variance is left out: torch's running one is unbiased, Equinox's is not."""
    theirs, x = randomized(nn.BatchNorm2d(3, momentum=0.1)), noise(8, 3, 4, 5)
    for mode in ("ema", "batch"):
        make = lambda k, mode=mode: eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode=mode)  # noqa: E731
        norm, state = js.load_state_dict(built(make), theirs.state_dict())
        run = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        there = nn.BatchNorm2d(3, momentum=0.1)
        there.load_state_dict(theirs.state_dict())
        for n in range(3):
            _, state = run(as_jax(x * (n + 1)), state)
            there.train()(x * (n + 1))
        assert_close(js.state_dict((norm, state))["running_mean"], there.running_mean, 1e-6)


def test_a_young_average_is_written_without_its_bias():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", momentum=0.9, mode="batch")
    run = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    _, state = run(as_jax(x := noise(8, 3)), state)
    assert_close(js.state_dict((norm, state))["running_mean"], x.mean(0), 1e-5)


def test_a_model_that_holds_its_initial_state_is_whole():
    theirs = randomized(nn.BatchNorm1d(4))
    norm = js.load_state_dict(eqx.nn.BatchNorm(4, "batch", mode="ema"), theirs.state_dict())
    assert_same_bits(js.state_dict(norm, js.bind(norm, like=theirs.state_dict())), theirs.state_dict())
    state = eqx.nn.State(norm)
    assert_same_bits(
        js.state_dict((norm, state), js.bind((norm, state), like=theirs.state_dict())), theirs.state_dict()
    )
    with torch.no_grad():
        assert_close(evaluated((norm, state), as_jax(noise(5, 4))), theirs(noise(5, 4)))


class TorchLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lm = nn.ModuleList([nn.Embedding(7, 4), nn.Linear(4, 7)])
        self.lm[1].weight = self.lm[0].weight

    def forward(self, tokens):
        return self.lm[1](self.lm[0](tokens))


class LM(eqx.Module):
    lm: eqx.nn.Shared

    def __init__(self, key, get=lambda pair: pair[0].weight):
        pair = (eqx.nn.Embedding(7, 4, key=key), eqx.nn.Linear(4, 7, key=key))
        self.lm = eqx.nn.Shared(pair, lambda pair: pair[1].weight, get)

    def __call__(self, token):
        embedding, linear = self.lm()
        return linear(embedding(token))


def test_what_is_shared_is_tied():
    model = assert_there_and_back(Case("LM", TorchLM, LM, (7,), integers=7))
    sd = js.state_dict(model)
    assert sd["lm.0.weight"] is sd["lm.1.weight"]
    sd["lm.1.weight"] = sd["lm.1.weight"] + 1
    with pytest.raises(js.StateDictError, match="are one array in the model"):
        js.load_state_dict(model, sd)


def test_what_a_shared_computes_is_refused():
    with pytest.raises(js.BindingError, match="lm shares what it computes.*eqx.nn.Shared"):
        js.bind(built(lambda k: LM(k, lambda pair: jnp.flip(pair[0].weight, 0))))


class Scanned(eqx.Module):
    embed: eqx.nn.Linear
    blocks: Block

    def __init__(self, key):
        self.embed = eqx.nn.Linear(3, 4, key=key)
        self.blocks = eqx.filter_vmap(lambda k: Block(4, k))(jax.random.split(key, 5))

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        return jax.lax.scan(lambda x, one: (eqx.combine(one, static)(x), None), self.embed(x), arrays)[0]


class TorchScanned(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.Sequential(*[TorchBlock(4) for _ in range(5)])

    def forward(self, x):
        return self.blocks(self.embed(x))


def test_stacked_blocks_are_torchs_list_of_blocks():
    assert_there_and_back(Case("Scanned", TorchScanned, Scanned, (7, 3)))


def test_an_ensemble_is_a_list_of_models():
    case = Case(
        "ensemble",
        lambda: nn.ModuleList([nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(3)]),
        lambda k: eqx.filter_vmap(
            lambda k: eqx.nn.Sequential(
                [eqx.nn.Linear(3, 4, key=k), eqx.nn.BatchNorm(4, "batch", mode="batch")]
            )
        )(jax.random.split(k, 3)),
        (7, 3),
        call=lambda pair, x: eqx.filter_vmap(lambda m, s: evaluated((m, s), x))(*pair),
        reference=lambda module, x: torch.stack([one(x) for one in module]),
        options={"stacked": {"": 0}},
    )
    assert_there_and_back(case)


@pytest.mark.parametrize("scan", [False, True])
def test_an_mlp_counts_its_layers(scan):
    def theirs():
        widths = [3, 4, 4, 4, 2]
        layers = [nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False)]
        return nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def reference(module, x):
        *hidden, last = module["layers"]
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x)

    ours = lambda k: eqx.nn.MLP(3, 2, 4, 3, scan=scan, key=k)  # noqa: E731
    assert_there_and_back(Case("MLP", theirs, ours, (7, 3), reference=reference))


def test_cells_are_the_layers_of_a_torch_rnn():
    theirs = randomized(nn.LSTM(3, 4, 2))
    cells = lambda k: [eqx.nn.LSTMCell(3, 4, key=k), eqx.nn.LSTMCell(4, 4, key=k)]  # noqa: E731
    gru = lambda k: eqx.nn.GRUCell(3, 4, key=k)  # noqa: E731
    for make, module in ((cells, theirs), (gru, randomized(nn.GRU(3, 4)))):
        ours = built(lambda k, make=make: {"rnn": make(k)})
        sd = {f"rnn.{name}": array for name, array in module.state_dict().items()}
        binding = js.bind(ours, multilayer="rnn", like=sd)
        loaded = js.load_state_dict(ours, sd, binding)
        assert_same_bits(js.state_dict(loaded, binding), sd)
        first = loaded["rnn"][0] if isinstance(loaded["rnn"], list) else loaded["rnn"]
        assert_close(first.weight_hh, sd["rnn.weight_hh_l0"])


def test_a_flatten_is_torchs_own_unless_the_channels_were_moved():
    class Moved(eqx.Module):
        conv: eqx.nn.Conv2d
        fc: eqx.nn.Linear

        def __call__(self, x):
            return self.fc(jnp.moveaxis(self.conv(x), 0, -1).ravel())

    keep = lambda k: eqx.nn.Sequential(  # noqa: E731
        [eqx.nn.Conv2d(2, 3, 1, key=k), eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(3 * 4 * 5, 2, key=k)]
    )
    x = jax.ShapeDtypeStruct((2, 4, 5), "float32")
    assert js.bind(built(keep), x) == js.bind(built(keep))
    moved = js.bind(built(lambda k: Moved(eqx.nn.Conv2d(2, 3, 1, key=k), eqx.nn.Linear(60, 2, key=k))), x)
    assert [row[2] for row in moved.rows if row[0] == "fc.weight"] == ["o (h w c) -> o (c h w)"]


def test_a_flatten_that_is_told_is_that_of_the_columns():
    """A square weight: Equinox has the inputs second, where Flax has them first."""
    make = lambda k: {"fc": eqx.nn.Linear(12, 12, key=k)}  # noqa: E731
    binding = js.bind(built(make), flatten={"fc": (2, 3, 2)})
    assert [row[2] for row in binding.rows] == ["o (h w c) -> o (c h w)", "o -> o"]


def test_what_a_file_leaves_out_keeps_its_statistics_and_their_count():
    pair = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", momentum=0.9, mode="batch")
    run = jax.vmap(pair[0], axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    norm, state = pair[0], run(as_jax(noise(8, 3)), pair[1])[1]
    loaded = js.load_state_dict((norm, state), {"weight": np.full(3, 2, "float32")}, strict=False)
    assert_close(loaded[0].weight, np.full(3, 2, "float32"), 0)
    assert loaded[1].get(norm.batch_counter) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(loaded[1]), jax.tree.leaves(state))


def test_a_pair_goes_through_orbax_and_averages(tmp_path):
    norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
    theirs = randomized(nn.BatchNorm1d(3))
    pair = js.load_state_dict(eqx.nn.make_with_state(lambda: norm)(), theirs.state_dict())
    averaged = js.averaging.update_parameters(js.averaging.AveragedModel.of(pair), pair, js.bind(pair))
    js.orbax.save(tmp_path / "pair", averaged.module)
    restored = js.orbax.restore(tmp_path / "pair", built(lambda k: norm)).model
    assert_same_bits(js.state_dict(restored, js.bind(pair, like=theirs.state_dict())), theirs.state_dict())


class TorchTrained(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.norm = nn.GroupNorm(1, 2)
        self.fc = nn.Linear(2 * 5 * 4, 3)

    def forward(self, x):
        return self.fc(self.norm(self.up(torch.tanh(self.conv(x)))).flatten(1))


class Trained(eqx.Module):
    conv: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    norm: eqx.nn.GroupNorm
    fc: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(2, 3, 3, key=key)
        self.up = eqx.nn.ConvTranspose2d(3, 2, 2, key=key)
        self.norm, self.fc = eqx.nn.GroupNorm(1, 2), eqx.nn.Linear(2 * 5 * 4, 3, key=key)

    def __call__(self, x):
        return self.fc(self.norm(self.up(jnp.tanh(self.conv(x)))).ravel())


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
        net = TorchTrained()
        net.load_state_dict(sd) if sd else None
        optimizer = torch.optim.AdamW(net.parameters(), **options)
        optimizer.load_state_dict(osd) if osd else None
        return net, optimizer

    net, optimizer = start()
    first = {name: array.clone() for name, array in net.state_dict().items()}
    run(net, optimizer, range(4))
    model = js.load_state_dict(built(Trained), net.state_dict())
    binding, params = js.bind(model), eqx.filter(model, eqx.is_inexact_array)
    tx = js.optim.adamw(**options)
    opt = js.optim.load_state_dict(tx.init(params), optimizer.state_dict(), binding)

    @eqx.filter_jit
    def step(model, opt, x, y):
        grads = eqx.filter_grad(lambda m: ((jax.vmap(m)(x) - y) ** 2).mean())(model)
        updates, opt = tx.update(grads, opt, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt

    for n in range(4, 7):
        model, opt = step(model, opt, as_jax(x[n]), as_jax(y[n]))
    tensors = {name: torch.from_numpy(array) for name, array in js.state_dict(model, binding).items()}
    osd = jax.tree.map(
        lambda a: torch.from_numpy(a) if isinstance(a, np.ndarray) else a, js.optim.state_dict(opt, binding)
    )
    again, optimizer_again = start(tensors, osd)
    run(again, optimizer_again, range(7, 9))
    whole, optimizer_whole = start(first)
    run(whole, optimizer_whole, range(9))
    for name, array in whole.state_dict().items():
        moved = (array - first[name]).abs().max()
        assert (again.state_dict()[name] - array).abs().max() <= 1e-5 * moved, name
