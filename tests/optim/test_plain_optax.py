"""Plain optax states, to torch and from torch, and training that goes on in the other library."""

import jax
import jax.numpy as jnp
import optax
import pytest

torch = pytest.importorskip("torch")

from optimizer_pair import FEW, Pair, as_tensors, displacement_error, to_jax, to_torch  # noqa: E402

from jaxstate.errors import OptimizerError  # noqa: E402
from jaxstate.optim import (  # noqa: E402
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    load_state_dict,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
    state_dict,
)

CASES = {
    "sgd": (torch.optim.SGD, sgd, {"lr": 0.05, "momentum": 0.9}, optax.sgd(0.05, momentum=0.9)),
    "adam": (torch.optim.Adam, adam, {"lr": 0.05, "betas": (0.8, 0.9)}, optax.adam(0.05, b1=0.8, b2=0.9)),
    "adamw": (
        torch.optim.AdamW,
        adamw,
        {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1},
        optax.adamw(0.05, b1=0.8, b2=0.9, weight_decay=0.1),
    ),
    "adamax": (
        torch.optim.Adamax,
        adamax,
        {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1},
        optax.chain(optax.add_decayed_weights(0.1), optax.adamax(0.05, b1=0.8, b2=0.9)),
    ),
}


def steps(pair, tx, arrays, opt, start, stop):
    params, update = to_jax(FEW, arrays), jax.jit(tx.update)
    for grads in pair.grads[start:stop]:
        updates, opt = update(to_jax(FEW, grads), opt, params)
        params = optax.apply_updates(params, updates)
    return to_torch(FEW, params), opt


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_in_the_other_library(name):
    torch_class, make, options, tx = CASES[name]
    tx, which = optax.chain(optax.clip(100.0), tx), make(**options)
    pair = Pair(torch_class, which, FEW, options)
    init = tx.init(to_jax(FEW, pair.start))
    reference = pair.torch_steps(*pair.torch(pair.start), 0, 8)

    opt, params = pair.torch(pair.start)
    arrays = pair.torch_steps(opt, params, 0, 4)
    loaded = load_state_dict(init, opt.state_dict(), FEW, optimizer=which)
    assert jax.tree.structure(loaded) == jax.tree.structure(init)
    there, _ = steps(pair, tx, arrays, loaded, 4, 8)

    arrays, opt = steps(pair, tx, pair.start, init, 0, 4)
    osd = as_tensors(state_dict(opt, FEW, optimizer=which))
    back = pair.torch_steps(*pair.torch(arrays, osd), 4, 8)
    # optax forms 1 - beta**t in float32, which costs some digits even at these betas.
    assert max(displacement_error(x, reference, pair.start) for x in (there, back)) < 1e-5


def adam_pair():
    pair = Pair(torch.optim.Adam, adam(), FEW, {})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 3)
    return pair, opt.state_dict()


def test_every_count_is_set():
    pair, osd = adam_pair()
    tx = optax.chain(optax.adam(optax.constant_schedule(1e-3)), optax.scale_by_schedule(lambda n: 1.0))
    loaded = load_state_dict(tx.init(to_jax(FEW, pair.start)), osd, FEW, optimizer=adam())
    counts = optax.tree_utils.tree_get_all_with_path(loaded, "count")
    assert [int(count) for _, count in counts] == [3, 3, 3]


def test_other_hyperparameters_than_the_files_are_listed():
    pair, osd = adam_pair()
    init = optax.adam(0.1).init(to_jax(FEW, pair.start))
    with pytest.raises(OptimizerError, match=r"(?s)lr=0.001, and optimizer= says 0.1.*betas=\(0.9, 0.999\)"):
        load_state_dict(init, osd, FEW, optimizer=adam(lr=0.1, betas=(0.5, 0.5)))


def test_steps_that_differ_are_refused():
    pair, osd = adam_pair()
    del osd["state"][0]
    with pytest.raises(OptimizerError, match=r"optax counts once.*\[0, 3\]"):
        load_state_dict(optax.adam(1e-3).init(to_jax(FEW, pair.start)), osd, FEW, optimizer=adam())


@pytest.mark.parametrize(
    "tx, which, words",
    [
        (optax.adam(1e-3), adam(amsgrad=True), "optax.amsgrad corrects the bias before the maximum"),
        (optax.sgd(1e-3, momentum=0.9), sgd(momentum=0.9, dampening=0.5), "momentum without dampening"),
        (optax.sgd(1e-3), sgd(), "momentum without dampening"),
        (optax.nadam(1e-3), nadam(), r"no schedule of its momentum; js.optim.nadam\("),
        (optax.radam(1e-3), radam(), r"eps to the corrected root, torch before; js.optim.radam\("),
        (optax.rprop(1e-3), rprop(), r"moves by the step before; js.optim.rprop\("),
        (optax.adagrad(1e-3), adagrad(), r"eps under the root, torch outside of it.*js.optim.adagrad\("),
        (optax.rmsprop(1e-3, momentum=0.9), rmsprop(momentum=0.9), r"times the learning rate.*js.optim.rms"),
        (optax.sgd(1e-3), asgd(), r"averages no iterates as torch does; js.optim.asgd\("),
        (optax.sgd(1e-3, momentum=0.9), adam(), 'has 0 parts with the fields "count", "mu", "nu"'),
        (optax.chain(optax.adam(1.0), optax.adam(1.0)), adam(), "has 2 parts"),
    ],
)
def test_what_is_not_the_same_optimizer_is_refused(tx, which, words):
    with pytest.raises(OptimizerError, match=words):
        state_dict(tx.init({"w": jnp.ones(3)}), FEW, optimizer=which)


def test_a_schedule_beside_sgd_cannot_be_set():
    pair = Pair(torch.optim.SGD, None, FEW, {"lr": 1e-3, "momentum": 0.9})
    opt, params = pair.torch(pair.start)
    pair.torch_steps(opt, params, 0, 2)
    init = optax.sgd(optax.constant_schedule(1e-3), momentum=0.9).init(to_jax(FEW, pair.start))
    with pytest.raises(OptimizerError, match="a schedule counts steps, and SGD writes none"):
        load_state_dict(init, opt.state_dict(), FEW, optimizer=sgd(momentum=0.9))


def test_a_plain_state_asks_which_optimizer_it_is():
    with pytest.raises(OptimizerError, match=r"optimizer=js.optim.adamw\(lr="):
        state_dict(optax.adam(1.0).init({"w": jnp.ones(3)}), FEW)


def test_torch_free():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import jax.numpy as jnp, jaxstate.optim as optim\n"
        "from jaxstate.binding import Binding, Rule\n"
        "tx, params = optim.adamw(), {'w': jnp.ones((2, 3))}\n"
        "_, opt = tx.update(params, tx.init(params), params)\n"
        "binding = Binding((Rule('w', 'w', 'i o -> o i'),))\n"
        "optim.load_state_dict(tx.init(params), optim.state_dict(opt, binding), binding)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
